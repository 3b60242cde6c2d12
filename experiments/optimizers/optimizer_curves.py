"""Training loss over steps and seconds: OCNOpt against SGD with the stage-cost paper's schedule.

  python -m experiments.optimizers.optimizer_curves --network=mnist_resnet_stage_cost \\
      --data=mnist.npz --output=results/optimizer_curves/mnist_stage_cost

SGD has momentum 0.9, learning rate 0.1, divided by ten after a half and three quarters of the run,
as the paper's schedule divides it, and weight decay 1e-4; OCNOpt has the same where its base is SGD
(its decay is decoupled). Seconds are steps times the time of one, measured apart on a fixed batch.
Writes <output>.json, .md and .png, and .jsonl as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ocresnet.plots.studies import draw_losses
from ocresnet.training.optimizers import Optimizer

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import StudyFlags
from .methods import describe, make_method
from .runs import run_grid, seconds_of_step, training_of
from .tasks import Task

REFRESH = (20, 100)

_sgd = partial(make_method, "sgd", momentum=0.9, schedule="milestones", weight_decay=1e-4)
_ekfac = partial(
    make_method,
    "ekfac",
    refresh=REFRESH,
    learning_rate=0.03,
    schedule="milestones",
    weight_decay=1e-4,
)

METHODS: dict[str, Optimizer] = {
    "SGD, momentum": _sgd(learning_rate=0.1),
    "OCNOpt identity, stacked": _sgd("stacked", learning_rate=0.1),
    "OCNOpt identity, joint 4": _sgd("joint", rollout="linear", groups=4, learning_rate=0.1),
    "SGD, momentum, rate x 10": _sgd(learning_rate=1.0),
    "OCNOpt identity, stacked, rate x 10": _sgd("stacked", learning_rate=1.0),
    "EKFAC": _ekfac(),
    "OCNOpt EKFAC, stacked": _ekfac("stacked"),
    "OCNOpt EKFAC, joint 4": _ekfac("joint", rollout="linear", groups=4),
}


class Flags(StudyFlags):
    """The study, and how fine its curves are."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(
            values, network="mnist_resnet_stage_cost", epochs=2, batch_size=128, seeds=1
        )
        self.parts = Section(values, "How").whole("parts", "Points of a curve.", 20, least=1)


def measure(task: Task, method: Optimizer, flags: Flags) -> dict[str, Any]:
    """Losses over the parts of a run, means over its steps and the seeds, the seconds they take,
    and final accuracies."""
    parts = flags.parts.value
    steps = flags.epochs * (task.data.samples("train") // flags.batch_size)
    length = steps // parts
    if length == 0:
        raise ValueError(f"{parts} parts need at least as many steps; there are {steps}.")
    training = training_of(task, method, flags.epochs, flags.batch_size)
    found = run_grid(task, method, [method.learning_rate], method.weight_decay, flags)
    objectives = found.objectives[0, :, : parts * length]
    losses = objectives.reshape(-1, parts, length).mean(axis=-1)
    ends = length * np.arange(1, parts + 1)
    return {
        "settings": describe(method),
        "learning_rate": method.learning_rate,
        "steps": ends,
        "seconds": ends * seconds_of_step(task, training, REFRESH[1]),
        "losses": losses.mean(axis=0),
        "losses_of_seeds": losses,
        "accuracy": 100 * found.accuracies[0],
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """How every method ends, as Markdown."""
    return markdown_table(
        ["method", "final training loss", "test accuracy (%)", "ms a step"],
        [
            [
                row["method"],
                f"{row['losses'][-1]:.4f}",
                f"{np.mean(row['accuracy']):.2f}",
                f"{1e3 * row['seconds'][-1] / row['steps'][-1]:.1f}",
            ]
            for row in rows
        ],
    )


def study(flags: Flags) -> None:
    """Run every method, and write table and figure."""
    task = flags.task()
    found = flags.study(parts=flags.parts.value)
    for name, method in flags.chosen(METHODS).items():
        row = found.row({"method": name}, partial(measure, task, method, flags))
        print(f"{name}: {row['losses'][-1]:.4f}", flush=True)
    text = table(found.rows)
    print(text)
    found.write(text)
    if found.writes:
        draw_losses(found.rows).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
