"""What each half of the feedback does: off, value correction only, or full.

  python -m experiments.optimizers.feedback_ablation --network=mnist_fcn --data=mnist.npz \\
      --output=results/feedback_ablation/mnist_fcn

Q_theta,x = 0 removes two things: the correction of the value function in the backward recursion,
and the feedback in the second forward pass. This separates them, on three curvatures, in the
stacked and the per-sample form, at a good learning rate of the base optimizer and at ten times
that. Writes <output>.json and <output>.md, and .jsonl as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ocresnet.control.settings import Feedback
from ocresnet.training.optimizers import Optimizer

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import StudyFlags, spread
from .methods import Base, make_method
from .runs import measure_rates
from .tasks import Task

REFRESH = (20, 200)

GOOD_LEARNING_RATE: dict[Base, float] = {"sgd": 0.1, "rmsprop": 1e-3, "ekfac": 1e-2}


class Flags(StudyFlags):
    """The study, and which curvatures."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, network="mnist_fcn", epochs=1, seeds=5, least_seeds=2)
        self.bases = Section(values, "What").choices(
            "base", GOOD_LEARNING_RATE, "Curvatures.", GOOD_LEARNING_RATE
        )


def methods(base: Base, batch_size: int) -> dict[str, Optimizer]:
    """Off, and the two halves of both forms."""
    make = partial(make_method, base, refresh=REFRESH)
    compared = {"off": make()}
    forms: list[tuple[Feedback, float]] = [("stacked", 1.0), ("per_sample", 1 / batch_size)]
    for form, beta in forms:
        compared[f"{form}: value correction only"] = make(form, beta=0.0, value_beta=beta)
        compared[f"{form}: forward feedback only"] = make(form, beta=beta, value_beta=0.0)
        compared[f"{form}: full"] = make(form, beta=beta)
    return compared


def measure(task: Task, method: Optimizer, base: Base, flags: Flags) -> dict[str, Any]:
    """Accuracy and training loss at both learning rates, over the seeds."""
    rates = [GOOD_LEARNING_RATE[base], 10 * GOOD_LEARNING_RATE[base]]
    return measure_rates(task, method, rates, 0.0, flags)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracies and losses as Markdown: by curvature, then by learning rate, then by method."""
    cells = []
    for base in dict.fromkeys(row["base"] for row in rows):
        of_base = [row for row in rows if row["base"] == base]
        for index, rate in enumerate(of_base[0]["learning_rates"]):
            for row in of_base:
                accuracy, loss = row["accuracy"][index], np.mean(row["train_loss"][index])
                cells.append([base, row["method"], f"{rate:g}", spread(accuracy), f"{loss:.4f}"])
    columns = ["curvature", "feedback", "learning rate", "test accuracy (%)", "training loss"]
    return markdown_table(columns, cells, left=2)


def study(flags: Flags) -> None:
    """Run every method on every curvature, and write the table."""
    task = flags.task()
    found = flags.study()
    for base in flags.bases.value:
        for name, method in flags.chosen(methods(base, flags.batch_size)).items():
            row = found.row(
                {"base": base, "method": name}, partial(measure, task, method, base, flags)
            )
            print(base, name, np.round(np.mean(row["accuracy"], axis=-1), 2), flush=True)
    text = table(found.rows)
    print(text)
    found.write(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
