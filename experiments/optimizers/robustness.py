"""How far the learning rate can be off: accuracy over learning rates and weight decays.

  python -m experiments.optimizers.robustness --network=digits_fcn \\
      --output=results/robustness/digits_fcn

For every method, the accuracy on the test set after training with each learning rate of a grid of
half decades, and the measure: how many decades of learning rate stay within one point of the best
that the method reaches. SGD (also with the gradient clipped to norm 1), RMSprop, Adam and EKFAC
against OCNOpt on each of their curvatures in every form of feedback. "stacked linear" is the
control without any feedback pass: the base step divided by 1 + beta T. Writes <output>.json, .md
and .png, and .jsonl as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ocresnet.control.settings import Feedback
from ocresnet.plots.studies import draw_learning_rates
from ocresnet.training.optimizers import Optimizer

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import StudyFlags
from .methods import Base, make_method
from .runs import measure_rates
from .tasks import Task

LEARNING_RATES: dict[Base, list[float]] = {
    "sgd": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
    "rmsprop": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "adam": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "ekfac": [3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0],
}

BASES = ("sgd", "rmsprop", "ekfac", "adam")


class Flags(StudyFlags):
    """The study, and which methods, decays and schedule."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values)
        section = Section(values, "What")
        self.bases = section.choices("base", BASES, "Optimizers.", BASES)
        self.momentum = section.number("momentum", "Of SGD and everything on top of it.", 0.0)
        self.per_sample = section.switch(
            "per_sample", "Also per-sample feedback (no batch norm).", True
        )
        section = Section(values, "How")
        self.decays = section.numbers("weight_decay", "Weight decays.", [0.0])
        self.schedule = section.choice(
            "schedule",
            ("constant", "cosine"),
            "Of the learning rate; cosine falls to zero.",
            "constant",
        )


def methods(base: Base, flags: Flags) -> dict[str, Optimizer]:
    """Everything that is compared on one base optimizer."""
    common = {"schedule": flags.schedule.value}
    if base == "sgd":
        common["momentum"] = flags.momentum.value

    def make(feedback: Feedback = "none", **fields: Any) -> Optimizer:
        return make_method(base, feedback, **common, **fields)

    compared = {"no feedback": make()}
    if base == "adam":
        return compared
    if base == "sgd":
        compared["no feedback, clipped"] = make(gradient_clip=1.0)
    compared["joint 8 linear"] = make("joint", rollout="linear", groups=8)
    compared["joint 8 nonlinear"] = make("joint", groups=8)
    if base == "sgd":
        name = f"joint {flags.batch_size} linear (Levenberg-Marquardt)"
        compared[name] = make("joint", rollout="linear", groups=flags.batch_size)
    compared["stacked linear (scaling only)"] = make("stacked", rollout="linear")
    compared["stacked nonlinear"] = make("stacked")
    compared["stacked, value correction only"] = make("stacked", beta=0.0, value_beta=1.0)
    if flags.per_sample.value:
        beta = 1 / flags.batch_size
        compared["per sample, beta 1"] = make("per_sample")
        compared["per sample, beta 1/B"] = make("per_sample", beta=beta)
        compared["per sample, as in the papers"] = make(
            "per_sample", beta=beta, value_beta=beta**2, value_update="clipped"
        )
    return compared


def measure(
    task: Task, method: Optimizer, base: Base, decay: float, flags: Flags
) -> dict[str, Any]:
    """Accuracy and training loss over learning rates and seeds, and how wide the good range is."""
    rates = LEARNING_RATES[base]
    row = measure_rates(task, method, rates, decay, flags)
    mean = row["accuracy"].mean(axis=-1)
    return {**row, "best": mean.max(), "decades": decades_within(rates, mean, mean.max())}


def decades_within(
    learning_rates: Sequence[float], accuracies: np.ndarray, best: float, points: float = 1.0
) -> float:
    """log10 of the largest contiguous range of learning rates within `points` of `best`."""
    good = accuracies >= best - points
    longest, start = 0.0, None
    for index, ok in enumerate(good):
        if not ok:
            start = None
            continue
        start = index if start is None else start
        longest = max(longest, float(np.log10(learning_rates[index] / learning_rates[start])))
    return longest


def table(base: Base, rows: Sequence[dict[str, Any]]) -> str:
    """Mean accuracies on one base optimizer as Markdown."""
    cells = []
    for row in rows:
        decay = f", weight decay {row['weight_decay']:g}" if row["weight_decay"] else ""
        means = [f"{mean:.1f}" for mean in np.mean(row["accuracy"], axis=-1)]
        cells.append(
            [f"{row['method']}{decay}", *means, f"{row['best']:.1f}", f"{row['decades']:.1f}"]
        )
    rates = [f"{rate:g}" for rate in LEARNING_RATES[base]]
    return markdown_table([f"{base}, learning rate", *rates, "best", "decades"], cells)


def study(flags: Flags) -> None:
    """Run every method over its learning rates, and write tables and figure."""
    task = flags.task()
    found = flags.study(momentum=flags.momentum.value, schedule=flags.schedule.value)
    for base in flags.bases.value:
        for name, method in flags.chosen(methods(base, flags)).items():
            for decay in flags.decays.value:
                row = found.row(
                    {"base": base, "method": name, "weight_decay": decay},
                    partial(measure, task, method, base, decay, flags),
                )
                means = np.round(np.mean(row["accuracy"], axis=-1), 1)
                print(f"{base:8} {name:32} wd {decay:g}: {means} {row['decades']:.1f}", flush=True)
    rows = found.rows
    bases = dict.fromkeys(row["base"] for row in rows)
    found.write(
        "\n\n".join(table(base, [row for row in rows if row["base"] == base]) for base in bases)
    )
    if found.writes:
        first = [row for row in rows if row["weight_decay"] == flags.decays.value[0]]
        draw_learning_rates(first).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
