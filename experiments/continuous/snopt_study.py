"""SNOpt against Adam, SGD, EKFAC and OCNOpt on a Neural ODE, over steps, seconds and evaluations.

  python -m experiments.continuous.snopt_study --network=digits_ode --seeds=3 \\
      --output=results/snopt_study/digits_ode

Every method is tuned by the same small budget: a grid of learning rates around its usual one, in
half decades, with a cosine schedule and no weight decay. OCNOpt's stages are those of a solver of
equal steps, tied, or the one of an adaptive solve. Evaluations of the vector field are those of the
forward solves of the training steps. Seconds are steps times that of one, measured apart on a fixed
batch at the start; of an adaptive solver, as many times longer as its solves have become. SNOpt's
measurements of the curvature are in the seconds. Table: accuracy, training loss, evaluations in a
solve and milliseconds of a step, at each method's best rate. Figure: the training loss over each of
the three. Writes <output>.json, .md and .png, and .jsonl as it goes; what is found there is not run
again.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ocresnet.continuous.evaluations import evaluations_of_batch
from ocresnet.plots.studies import draw_losses
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.training.optimizers import EKFAC, SGD, AdamW, OCNOpt, SNOpt
from ocresnet.training.sweep import measured_steps, sweep

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import Study, markdown_table
from ..optimizers.flags import StudyFlags, spread
from ..optimizers.methods import describe
from ..optimizers.runs import seconds_of_step, training_of
from ..optimizers.tasks import Task
from ..optimizers.untuned_methods import Method
from ..optimizers.untuned_tables import rate_that_counts

REFRESH = 100
"""Steps between two measurements of a curvature, as in the paper."""

METHODS: dict[str, Method] = {
    name: Method(optimizer, below=1, above=1, tuned=True)
    for name, optimizer in {
        "SGD, momentum": SGD(learning_rate=0.02, schedule="cosine", weight_decay=0.0),
        "Adam": AdamW(schedule="cosine", weight_decay=0.0),
        "SNOpt": SNOpt(refresh_every=REFRESH),
        "EKFAC": EKFAC(momentum=0.0, factor_every=REFRESH, eigen_every=REFRESH),
        "OCNOpt": OCNOpt(weight_decay=0.0),
    }.items()
}

Row = dict[str, Any]


class Flags(StudyFlags):
    """The study, how fine its curves are, and how wide its grids."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, network="digits_ode", epochs=20, seeds=3, least_seeds=2)
        section = Section(values, "How")
        self.points = section.whole("points", "Of a curve.", 20, least=1)
        self.decades = section.whole("decades", "Of a grid, on each side.", 1, least=0)


def measure(task: Task, method: Method, flags: Flags) -> Row:
    """Accuracies in percent and training losses [rates, seeds]; on the way, after each of `steps`
    [points], mean losses of the steps before and evaluations of a solve [rates, seeds, points]."""
    architecture, points = task.architecture, flags.points.value
    if not isinstance(architecture, NeuralODEConfig):
        raise ValueError(f"--network={flags.network} is no Neural ODE: choose one with ode in it.")
    training = training_of(task, method.optimizer, flags.epochs, flags.batch_size)
    batch = jnp.asarray(task.data.train_images[: flags.batch_size])
    found = sweep(
        architecture,
        training,
        task.data,
        learning_rates=method.learning_rates,
        weight_decays=[0.0],
        seeds=flags.seeds,
        together=task.together,
        points=points,
        on_the_way=lambda variables: evaluations_of_batch(architecture, variables, batch),
    )
    steps = flags.epochs * (task.data.samples("train") // flags.batch_size)
    ends = measured_steps(steps, points)
    losses = np.stack(
        [part.mean(axis=-1) for part in np.split(found.objectives[0], ends[:-1], axis=-1)], axis=-1
    )
    return {
        "accuracy": 100 * found.accuracies[0],
        "train_loss": found.train_losses[0],
        "steps": ends,
        "losses": losses,
        "evaluations": found.measured_on_the_way[0],
        "seconds_a_step": seconds_of_step(task, training, REFRESH),
    }


def curve(row: Row) -> Row:
    """The best rate's mean over seeds: losses over `steps`, cumulated `seconds` and
    `evaluations`."""
    best = rate_that_counts({**row, "tuned": True})
    evaluations = np.mean(row["evaluations"][best], axis=0)
    lengths = np.diff(row["steps"], prepend=0)
    longer = evaluations / evaluations[0]
    return {
        "method": row["method"],
        "steps": row["steps"],
        "seconds": np.cumsum(lengths * row["seconds_a_step"] * longer),
        "evaluations": np.cumsum(lengths * evaluations),
        "losses": np.mean(row["losses"][best], axis=0),
    }


def table(rows: Sequence[Row]) -> str:
    """How every method ends at its best learning rate, as Markdown."""
    lines = []
    for row in rows:
        best = rate_that_counts({**row, "tuned": True})
        last = np.asarray(row["evaluations"])[best, :, -1]
        lines.append(
            [
                row["method"],
                f"{row['learning_rates'][best]:g}",
                spread(row["accuracy"][best]),
                spread(row["train_loss"][best], 4),
                f"{np.mean(last):.1f}",
                f"{1e3 * row['seconds_a_step']:.2f}",
            ]
        )
    columns = [
        "method",
        "learning rate",
        "test accuracy (%)",
        "training loss",
        "evaluations in a solve",
        "ms a step",
    ]
    return markdown_table(columns, lines)


def study(flags: Flags) -> None:
    """Run every method, and write table and figure."""
    task, methods = flags.task(), flags.chosen(METHODS)
    found: Study = flags.study(points=flags.points.value)
    rows = []
    for name, method in methods.items():
        own = method.within(flags.decades.value)
        key = {
            "method": name,
            "optimizer": describe(own.optimizer),
            "learning_rates": own.learning_rates,
        }
        rows.append(found.row(key, partial(measure, task, own, flags)))
        print(table(rows[-1:]), flush=True)
    text = table(rows)
    print(f"\n{text}")
    found.write(text)
    if found.writes:
        curves = [curve(row) for row in rows]
        draw_losses(curves, ("steps", "seconds", "evaluations")).savefig(
            found.path(".png"), dpi=150
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
