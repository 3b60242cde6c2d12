"""What steps of OCNOpt promise, what of it they keep, and what another batch has of it.

  python -m experiments.optimizers.promises --network=cifar10_transformer --samples=10000 \\
      --output=results/promises/cifar10_transformer

A step predicts a change of its batch's cost to first order; the quadratic model, at its minimum,
promises half of it (`ocresnet/control/region.py`). Beside them the change that there is, that of
another batch's cost by the same step, and the caution that is left to the next one: means over each
part of a run. The learning rate rises over half of the run and then stays. For the regions
"smaller" and "measured", and a tenth of the learning rate. Writes <output>.json and .md, and .jsonl
as it goes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ocresnet.problem import objective
from ocresnet.training.optimizers import OCNOpt
from ocresnet.training.step import training_problem

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import Study, markdown_table
from .flags import StudyFlags
from .methods import describe
from .runs import training_of
from .tasks import Task

METHODS: dict[str, OCNOpt] = {
    "smaller": OCNOpt(region="smaller"),
    "smaller, a tenth of the rate": OCNOpt(region="smaller", learning_rate=0.1),
    "measured": OCNOpt(region="measured"),
}

MEASURED = ("cost", "predicted", "kept", "on another batch", "caution")


class Flags(StudyFlags):
    """The study, and in how many parts a run is shown."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, network="digits_cnn", epochs=4, batch_size=128, seeds=1)
        self.parts = Section(values, "How").whole("parts", "Of a run, each a row.", 4, least=1)


def measure(task: Task, method: OCNOpt, flags: Flags) -> dict[str, Any]:
    """`MEASURED` of every step and seed: lists [seeds, steps]."""
    training = training_of(task, method, flags.epochs, flags.batch_size)
    problem = training_problem(task.architecture, training)
    images, labels = (
        jnp.asarray(part) for part in (task.data.train_images, task.data.train_labels)
    )
    if 2 * flags.batch_size > len(labels):
        raise ValueError(
            f"--batch_size={flags.batch_size} leaves no other batch of {len(labels)} samples: give "
            f"at most {len(labels) // 2}."
        )
    steps = flags.epochs * (len(labels) // flags.batch_size)
    rising = optax.linear_schedule(0.0, method.learning_rate, max(1, steps // 2))
    optimizer = method.build(problem, lambda count: rising(count + 1), seed=0)

    @jax.jit
    def step(variables: Any, state: Any, batch: Any, other: Any) -> Any:
        params, stats = variables
        cost = partial(objective, problem)
        before, gradient = jax.value_and_grad(cost)(params, stats, *batch)
        updates, state = optimizer.update(
            gradient, state, params, batch=batch, batch_stats=stats, value=before
        )
        moved = optax.apply_updates(params, updates)
        measured = {
            "cost": before,
            "predicted": optax.tree.vdot(gradient, updates),
            "kept": cost(moved, stats, *batch) - before,
            "on another batch": cost(moved, stats, *other) - cost(params, stats, *other),
            "caution": optax.tree.get(state, "caution"),
        }
        return variables._replace(params=moved), state, measured

    found: list[list[Any]] = []
    for seed in flags.seeds:
        rng = np.random.default_rng(seed)
        variables = jax.jit(task.architecture.init)(jax.random.key(seed))
        state = jax.jit(optimizer.init)(variables.params)
        found.append([])
        for _ in range(steps):
            chosen = rng.choice(len(labels), 2 * flags.batch_size, replace=False)
            first, second = np.split(chosen, 2)
            batch, other = ((images[part], labels[part]) for part in (first, second))
            variables, state, measured = step(variables, state, batch, other)
            found[-1].append(jax.device_get(measured))
    return {name: [[float(row[name]) for row in run] for run in found] for name in MEASURED}


def table(rows: Sequence[dict[str, Any]], parts: int) -> str:
    """Means over every part of the runs, as Markdown."""
    lines = []
    for row in rows:
        split = {name: np.array_split(np.asarray(row[name]), parts, axis=1) for name in MEASURED}
        for part in range(parts):
            mean = {name: float(np.mean(split[name][part])) for name in MEASURED}
            lines.append(
                [
                    row["method"],
                    f"{part + 1} of {parts}",
                    f"{mean['cost']:.3f}",
                    f"{mean['predicted'] / 2:.3f}",
                    f"{mean['kept']:.3f}",
                    f"{mean['on another batch']:+.3f}",
                    f"{mean['caution']:.2f}",
                ]
            )
    columns = ["region", "part", "cost", "promised", "kept", "on another batch", "caution"]
    return markdown_table(columns, lines, left=2)


def study(flags: Flags) -> None:
    """Run every region, and write the table."""
    task, methods = flags.task(), flags.chosen(METHODS)
    found: Study = flags.study()
    rows = []
    for name, method in methods.items():
        key = {"method": name, "optimizer": describe(method)}
        rows.append(found.row(key, partial(measure, task, method, flags)))
        print(table(rows[-1:], flags.parts.value), flush=True)
    found.write(table(rows, flags.parts.value))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
