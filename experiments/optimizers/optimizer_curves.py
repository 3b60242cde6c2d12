"""Training loss over steps and seconds: OCNOpt against SGD with the stage-cost paper's schedule.

  python -m experiments.optimizers.optimizer_curves --network=mnist_resnet_stage_cost \\
      --data=mnist.npz --output=results/optimizer_curves/mnist_stage_cost

SGD has momentum 0.9, learning rate 0.1, divided by ten after a half and three quarters of the run,
as the paper's schedule divides it, and weight decay 1e-4 (decoupled); OCNOpt has the same where its
base is SGD. Seconds are of training alone, without compilation and evaluation. Writes
<output>.json, .md and .png, and .jsonl as it goes.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ocresnet import plots

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from .flags import StudyFlags
from .runs import Method, Task, describe, evaluate, make_run

REFRESH = (20, 100)

METHODS: dict[str, tuple[float, Method]] = {
    "SGD, momentum": (0.1, Method("sgd", momentum=0.9)),
    "OCNOpt identity, stacked": (0.1, Method("sgd", "stacked", momentum=0.9)),
    "OCNOpt identity, joint 4": (
        0.1,
        Method("sgd", "joint", "linear", groups=4, momentum=0.9),
    ),
    "SGD, momentum, rate x 10": (1.0, Method("sgd", momentum=0.9)),
    "OCNOpt identity, stacked, rate x 10": (1.0, Method("sgd", "stacked", momentum=0.9)),
    "EKFAC": (0.03, Method("ekfac", refresh=REFRESH)),
    "OCNOpt EKFAC, stacked": (0.03, Method("ekfac", "stacked", refresh=REFRESH)),
    "OCNOpt EKFAC, joint 4": (0.03, Method("ekfac", "joint", "linear", groups=4, refresh=REFRESH)),
}


WEIGHT_DECAY = 1e-4


class Flags(StudyFlags):
    """The study, and how fine its curves are."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(
            values, network="mnist_resnet_stage_cost", epochs=2, batch_size=128, seeds=1
        )
        self.parts = Section(values, "How").whole("parts", "Points of a curve.", 20, least=1)


def measure(task: Task, method: Method, rate: float, flags: Flags) -> dict[str, Any]:
    """Losses and seconds over the parts of a run, means over the seeds, and final accuracies."""
    parts = flags.parts.value
    steps = flags.epochs * (len(task.train_labels) // flags.batch_size)
    length = steps // parts
    if length == 0:
        raise ValueError(f"{parts} parts need at least as many steps; there are {steps}.")
    schedule = optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1, 3 * steps // 4: 0.1})
    run = make_run(task, method, flags.epochs, flags.batch_size, schedule)
    start, advance = jax.jit(run.start), jax.jit(run.advance)
    accuracy_of = jax.jit(
        lambda variables: evaluate(task, variables, task.test_images, task.test_labels)[0]
    )
    learning_rate, decay = jnp.asarray(rate), jnp.asarray(WEIGHT_DECAY)
    losses, seconds, accuracies = [], [], []
    for seed in flags.seeds:
        state, order = start(learning_rate, decay, jnp.asarray(seed))
        order = order[: parts * length].reshape(parts, length, -1)
        if seed == 0:
            jax.block_until_ready(advance(state, learning_rate, decay, order[0]))
        curve, times = [], []
        for part in order:
            before = time.perf_counter()
            state, loss = jax.block_until_ready(advance(state, learning_rate, decay, part))
            times.append(time.perf_counter() - before)
            curve.append(float(loss))
        losses.append(curve)
        seconds.append(np.cumsum(times))
        accuracies.append(float(accuracy_of(state[0])))
    return {
        "settings": describe(method),
        "learning_rate": rate,
        "steps": [length * (index + 1) for index in range(parts)],
        "seconds": np.mean(seconds, axis=0),
        "losses": np.mean(losses, axis=0),
        "losses_of_seeds": losses,
        "accuracy": accuracies,
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
    for name, (rate, method) in flags.chosen(METHODS).items():
        row = found.row({"method": name}, partial(measure, task, method, rate, flags))
        print(f"{name}: {row['losses'][-1]:.4f}", flush=True)
    text = table(found.rows)
    print(text)
    found.write(text)
    if found.writes:
        plots.draw_losses(found.rows).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
