"""The horizon as a control: how long a Neural ODE is integrated when training may choose.

  python -m experiments.continuous.horizon_study --network=digits_ode_adaptive \\
      --start=1.0 --start=0.2 --output=results/horizon_study/digits

From every start the horizon T stays, or is moved by the first-order or by the second-order rule,
beside one optimizer of all other parameters. Table: T and the evaluations of a solve at the end,
test accuracy and training loss. Figure: T over steps, accuracy and evaluations over T, means over
the seeds. Writes <output>.json, .md and .png, and .jsonl as it goes; what is found there is not run
again.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ocresnet.continuous.evaluations import evaluations_of_batch
from ocresnet.plots.studies import draw_horizons
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.system import Variables
from ocresnet.training.optimizers import AdamW, Optimizer, SNOpt
from ocresnet.training.sweep import measured_steps, sweep

from ..common import command_line
from ..common.flag_kinds import FlagValues, Section
from ..common.reports import markdown_table
from ..optimizers.flags import StudyFlags, spread
from ..optimizers.methods import describe
from ..optimizers.runs import training_of
from ..optimizers.tasks import Task

OPTIMIZERS: dict[str, Optimizer] = {
    "adam": AdamW(schedule="cosine", weight_decay=0.0),
    "snopt": SNOpt(),
}
RULES = ("constant", "first", "second")

Row = dict[str, Any]


class Flags(StudyFlags):
    """The study, where horizons start, and how they are moved."""

    def __init__(self, values: FlagValues) -> None:
        super().__init__(values, network="digits_ode_adaptive", seeds=3, least_seeds=2)
        section = Section(values, "Horizon")
        self.starts = section.numbers("start", "T at first, repeatable.", [1.0, 0.2])
        self.rules = section.choices("rule", RULES, "What moves T, repeatable.", RULES)
        self.optimizer = section.choice(
            "optimizer", OPTIMIZERS, "What moves all other parameters.", "adam"
        )
        self.rate = section.number("rate", "Learning rate of the rule.", 0.1)
        self.price = section.number("price", "c, of the cost c T^2 / 2.", 1e-3)
        self.every = section.whole("every", "Steps between two moves of T.", 10, least=1)
        self.points = Section(values, "How").whole("points", "Of a curve.", 20, least=1)

    def trained_by(self, rule: str) -> Optimizer:
        """The optimizer with this rule of the horizon."""
        optimizer = OPTIMIZERS[self.optimizer.value]
        if rule == "constant":
            return optimizer
        fields: dict[str, Any] = {
            "horizon_order": rule,
            "horizon_rate": self.rate.value,
            "horizon_price": self.price.value,
            "horizon_every": self.every.value,
        }
        return replace(optimizer, **fields)


def measure(task: Task, start: float, rule: str, flags: Flags) -> Row:
    """Over seeds and points on the way: horizons, evaluations of a solve, accuracies in percent."""
    if not isinstance(task.architecture, NeuralODEConfig):
        raise ValueError(f"--network={flags.network} is no Neural ODE: choose one with ode in it.")
    free = rule != "constant"
    architecture = replace(task.architecture, horizon=start, free_horizon=free)
    optimizer, points = flags.trained_by(rule), flags.points.value
    batch = jnp.asarray(task.data.train_images[: flags.batch_size])

    def on_the_way(variables: Variables) -> dict[str, Any]:
        return {
            "horizons": jnp.asarray(architecture.horizon_of(variables.params)),
            "evaluations": evaluations_of_batch(architecture, variables, batch),
        }

    found = sweep(
        architecture,
        training_of(task, optimizer, flags.epochs, flags.batch_size),
        task.data,
        learning_rates=[optimizer.learning_rate],
        weight_decays=[0.0],
        seeds=flags.seeds,
        together=task.together,
        points=points,
        on_the_way=on_the_way,
    )
    steps = flags.epochs * (task.data.samples("train") // flags.batch_size)
    return {
        "steps": measured_steps(steps, points),
        "accuracies": 100 * found.accuracies_on_the_way[0, 0],
        "train_loss": found.train_losses[0, 0],
        **{name: values[0, 0] for name, values in found.measured_on_the_way.items()},
    }


def table(rows: Sequence[Row]) -> str:
    """How every rule ends, as Markdown."""
    columns = ["rule", "start", "horizon", "evaluations in a solve", "test accuracy (%)", "loss"]
    lines = [
        [
            row["rule"],
            f"{row['start']:g}",
            *(spread(np.asarray(row[name])[:, -1]) for name in ("horizons", "evaluations")),
            spread(np.asarray(row["accuracies"])[:, -1]),
            spread(row["train_loss"], 4),
        ]
        for row in rows
    ]
    return markdown_table(columns, lines)


def curve(row: Row) -> Row:
    """What the figure shows of a row: means over the seeds."""
    means = {name: np.mean(row[name], axis=0) for name in ("horizons", "evaluations", "accuracies")}
    return {"method": f"{row['rule']}, from {row['start']:g}", "steps": row["steps"], **means}


def study(flags: Flags) -> None:
    """Run every rule from every start, and write table and figure."""
    task = flags.task()
    found, rows = flags.study(points=flags.points.value), []
    for start in flags.starts.value:
        for rule in flags.rules.value:
            optimizer = describe(flags.trained_by(rule))
            key = {"rule": rule, "start": start, "optimizer": optimizer}
            rows.append(found.row(key, partial(measure, task, start, rule, flags)))
            print(table(rows[-1:]), flush=True)
    text = table(rows)
    print(f"\n{text}")
    found.write(text)
    if found.writes:
        draw_horizons([curve(row) for row in rows]).savefig(found.path(".png"), dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study as the arguments say; returns the exit status."""
    return command_line.run(study, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
