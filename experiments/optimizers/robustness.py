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
import optax

from ocresnet import plots

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import OPTIMIZERS, StudyFlags
from .runs import Base, Method, Task, decades_within, describe, make_run, run_grid

LEARNING_RATES: dict[str, list[float]] = {
    "sgd": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
    "rmsprop": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "adam": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0],
    "ekfac": [3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0],
}


class Flags(StudyFlags):
    """The study, and which methods, decays and schedule."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values)
        section = Section(values, "What")
        self.bases = section.choices("base", OPTIMIZERS, "Optimizers.", OPTIMIZERS)
        self.momentum = section.number("momentum", "Of SGD and everything on top of it.", 0.0)
        self.per_sample = section.switch(
            "per_sample", "Also per-sample feedback (no batch norm).", True
        )
        section = Section(values, "How")
        self.decays = section.numbers("weight_decay", "Decoupled weight decays.", [0.0])
        self.schedule = section.choice(
            "schedule",
            ("constant", "cosine"),
            "Of the learning rate; cosine falls to zero.",
            "constant",
        )


def methods(base: Base, flags: Flags) -> dict[str, Method]:
    """Everything that is compared on one base optimizer."""
    momentum = flags.momentum.value if base == "sgd" else 0.0
    groups = flags.batch_size
    compared = {"no feedback": Method(base, momentum=momentum)}
    if base == "adam":
        return compared
    if base == "sgd":
        compared["no feedback, clipped"] = Method(base, momentum=momentum, clip=1.0)
    compared["joint 8 linear"] = Method(base, "joint", "linear", groups=8, momentum=momentum)
    compared["joint 8 nonlinear"] = Method(base, "joint", groups=8, momentum=momentum)
    if base == "sgd":
        name = f"joint {groups} linear (Levenberg-Marquardt)"
        compared[name] = Method(base, "joint", "linear", groups=groups, momentum=momentum)
    compared["stacked linear (scaling only)"] = Method(base, "stacked", "linear", momentum=momentum)
    compared["stacked nonlinear"] = Method(base, "stacked", momentum=momentum)
    compared["stacked, value correction only"] = Method(
        base, "stacked", forward_feedback=False, momentum=momentum
    )
    if flags.per_sample.value:
        beta = 1 / flags.batch_size
        compared["per sample, beta 1"] = Method(base, "per_sample", momentum=momentum)
        compared["per sample, beta 1/B"] = Method(base, "per_sample", beta=beta, momentum=momentum)
        compared["per sample, as in the papers"] = Method(
            base,
            "per_sample",
            beta=beta,
            value_beta=beta**2,
            value_update="clipped",
            momentum=momentum,
        )
    return compared


def measure(task: Task, method: Method, base: Base, decay: float, flags: Flags) -> dict[str, Any]:
    """Accuracy and training loss over learning rates and seeds, and how wide the good range is."""
    schedule = None
    if flags.schedule.value == "cosine":
        steps = flags.epochs * (len(task.train_labels) // flags.batch_size)
        schedule = optax.cosine_decay_schedule(1.0, steps)
    rates = LEARNING_RATES[base]
    run = make_run(task, method, flags.epochs, flags.batch_size, schedule)
    result = run_grid(task, run, rates, [decay], flags.seeds, flags.together)
    mean = result.accuracy[0].mean(axis=-1)
    return {
        "settings": describe(method),
        "learning_rates": rates,
        "accuracy": result.accuracy[0],
        "train_loss": result.train_loss[0],
        "best": mean.max(),
        "decades": decades_within(rates, mean, mean.max()),
    }


def table(base: str, rows: Sequence[dict[str, Any]]) -> str:
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
        plots.draw_learning_rates(first).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
