"""Which layers of a block act in the same stage: does it make a difference?

  python -m experiments.optimizers.alignments --output=results/alignments/digits

OCNOpt on a residual network with projection shortcuts: a block as one stage; one layer after the
other, with the projection at the first or at the last; and what a bandit (EXP3++) chooses of these.
Stacked feedback and joint feedback of four groups, along a nonlinear rollout, at a good learning
rate and at ten times that. All alignments see the same seeds, that is the same initial parameters
and the same batches, so that differences from the first one are taken seed by seed. Writes
<output>.json and <output>.md, and .jsonl as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import numpy as np

from ocresnet.control.settings import Feedback
from ocresnet.training.control_optimizers import AlignmentChoice
from ocresnet.training.optimizers import Optimizer

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import StudyFlags, spread
from .methods import make_method
from .runs import measure_rates
from .tasks import Task

REFRESH = (20, 200)

GOOD_LEARNING_RATE = 1e-2

FORMS: dict[Feedback, dict[str, Any]] = {"stacked": {}, "joint": {"groups": 4}}

ALIGNMENTS: tuple[AlignmentChoice, ...] = get_args(AlignmentChoice)
"""The first one is what the others are compared with."""


class Flags(StudyFlags):
    """The study, the forms of feedback, and how long the bandit holds an alignment."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, network="digits_projections", epochs=10, seeds=8, least_seeds=2)
        section = Section(values, "What")
        self.forms = section.choices("feedback", FORMS, "Forms of feedback.", FORMS)
        self.hold = section.whole(
            "hold", "Updates that the bandit holds an alignment for, an even number.", 20, least=2
        )


def methods(form: Feedback, hold: int) -> dict[str, Optimizer]:
    """Every alignment with one form of feedback, on EKFAC's curvature."""
    return {
        alignment: make_method(
            "ekfac",
            form,
            refresh=REFRESH,
            alignment=alignment,
            alignment_hold=hold,
            **FORMS[form],
        )
        for alignment in ALIGNMENTS
    }


def measure(task: Task, method: Optimizer, flags: Flags) -> dict[str, Any]:
    """Accuracy and training loss at both learning rates, over the seeds."""
    return measure_rates(task, method, [GOOD_LEARNING_RATE, 10 * GOOD_LEARNING_RATE], 0.0, flags)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracies, losses and their differences from the first alignment's, as Markdown."""
    cells = []
    for form in dict.fromkeys(row["feedback"] for row in rows):
        first, *others = [row for row in rows if row["feedback"] == form]
        for index, rate in enumerate(first["learning_rates"]):
            for row in (first, *others):
                shown = {"accuracy": 2, "train_loss": 4}
                found = [spread(row[name][index], digits) for name, digits in shown.items()]
                for name, digits in shown.items():
                    own, compared = row[name][index], first[name][index]
                    found.append("" if row is first else difference(own, compared, digits))
                cells.append([form, row["method"], f"{rate:g}", *found])
    than = f"less that of {rows[0]['method']}"
    columns = ["feedback", "alignment", "learning rate", "test accuracy (%)", "training loss"]
    return markdown_table([*columns, f"accuracy {than}", f"loss {than}"], cells, left=2)


def difference(values: Any, others: Any, digits: int) -> str:
    """Mean of the differences of the same seeds, and the deviation of that mean."""
    differences = np.subtract(values, others)
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    return f"{np.mean(differences):+.{digits}f} ± {error:.{digits}f}"


def study(flags: Flags) -> None:
    """Run every alignment with every form of feedback, and write the table."""
    task = flags.task()
    found = flags.study(hold=flags.hold.value)
    for form in flags.forms.value:
        for name, method in flags.chosen(methods(form, flags.hold.value)).items():
            row = found.row(
                {"feedback": form, "method": name}, partial(measure, task, method, flags)
            )
            print(form, name, np.round(np.mean(row["accuracy"], axis=-1), 2), flush=True)
    text = table(found.rows)
    print(text)
    found.write(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
