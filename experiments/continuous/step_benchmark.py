"""Time and memory of a training step on a Neural ODE, by solver, adjoint and optimizer.

  python -m experiments.continuous.step_benchmark --network=mnist_ode --data=mnist.npz \\
      --output=results/benchmark_neural_ode/two_cores

The network of `optimizers.tasks` with its own steps, and with dopri5 and the direct and the
backsolve adjoint. Every optimizer's step is compared with that of SGD on the same solver, in turn
and on average over a whole period of refreshes; memory is what XLA allocates for intermediate
values. Writes <output>.json and .md, and .jsonl as it goes: the same command measures what is not
there yet.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.training.optimizers import EKFAC, SGD, AdamW, Optimizer, SNOpt

from ..benchmarks.optimizers import LEARNING_RATE, measure, table
from ..benchmarks.timing import ratio
from ..benchmarks.training_step import TrainingStep
from ..common import command_line, reports
from ..common.flag_kinds import FlagValues, Section
from ..optimizers.runs import training_of
from ..optimizers.tasks import NETWORKS, Task, make_task

BASE = "SGD"
METHODS: dict[str, type[Optimizer]] = {BASE: SGD, "Adam": AdamW, "EKFAC": EKFAC, "SNOpt": SNOpt}

SOLVERS: dict[str, dict[str, Any]] = {
    "own steps": {},
    "dopri5, direct": {"solver": "dopri5", "steps": None, "adjoint": "direct"},
    "dopri5, backsolve": {"solver": "dopri5", "steps": None, "adjoint": "backsolve"},
}


class Flags:
    """What is measured, and how."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        networks = [name for name in NETWORKS if name.endswith("_ode")]
        self.network = section.choice("network", networks, "Which.", "mnist_ode")
        self.data = section.text("data", "Name or .npz of the data. Default: by network.")
        self.solvers = section.choices("solver", SOLVERS, "Solvers.", SOLVERS)
        self.batch_size = section.whole("batch_size", "Samples a step.", 128, least=1)
        section = Section(values, "How")
        self.refresh_every = section.whole(
            "refresh_every", "Steps between two measurements of a curvature.", 100, least=1
        )
        self.rounds = section.whole("rounds", "Alternating measurements.", 5, least=1)
        self.output = section.text(
            "output", "Where to write, without extension; what is found there is not run again."
        )

    def methods(self) -> dict[str, Optimizer]:
        """The optimizers, at a constant rate so small that nothing diverges."""
        every = self.refresh_every.value
        often = {
            "EKFAC": {"factor_every": every, "eigen_every": every, "momentum": 0.0},
            "SNOpt": {"refresh_every": every},
        }
        return {
            name: kind(learning_rate=LEARNING_RATE, schedule="constant", **often.get(name, {}))
            for name, kind in METHODS.items()
        }


def compare(task: Task, solver: str, flags: Flags) -> dict[str, Any]:
    """Every step with one solver."""
    architecture, batch_size = task.architecture, flags.batch_size.value
    assert isinstance(architecture, NeuralODEConfig)
    task = task._replace(architecture=replace(architecture, **SOLVERS[solver]))
    batch = task.data.train_images[:batch_size], task.data.train_labels[:batch_size]
    steps = {
        name: TrainingStep(task.architecture, training_of(task, method, 1, batch_size), *batch)
        for name, method in flags.methods().items()
    }
    repeats = {name: int(flags.refresh_every.value) for name in steps}
    seconds = measure(steps, repeats, flags.rounds.value)
    return {
        "steps": [
            {
                "method": name,
                "base": BASE,
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "time_ratio": str(ratio(seconds, name, BASE)),
                "memory_megabytes": step.temporary_megabytes,
                "memory_ratio": step.temporary_megabytes / steps[BASE].temporary_megabytes,
                "seconds": seconds[name],
            }
            for name, step in steps.items()
        ]
    }


def benchmark(flags: Flags) -> None:
    """Measure every solver, and write the table."""
    made = reports.provenance()
    # Rows of another machine are not comparable.
    machine = {name: made[name] for name in ("device", "cores", "versions")}
    asked = (flags.network, flags.data, flags.batch_size, flags.refresh_every, flags.rounds)
    study = reports.Study(
        flags.output.value, {**{flag.name: flag.value for flag in asked}, **machine}
    )
    task = make_task(flags.network.value, flags.data.value)
    rows = []
    for solver in flags.solvers.value:
        name = f"{flags.network.value}, {solver}"
        key = {"network": name, "batch_size": flags.batch_size.value}
        rows.append(study.row(key, partial(compare, task, solver, flags)))
        print(table(rows[-1:]), flush=True)
    study.write(table(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the arguments say; returns the exit status."""
    return command_line.run(benchmark, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
