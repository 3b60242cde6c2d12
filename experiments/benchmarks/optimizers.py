"""Time and memory of an optimizer's step, by ratio in one process.

  python -m experiments.benchmarks.optimizers --output=results/benchmark_optimizers/two_cores

A step is that of `fit`, compiled: forward pass, backward pass and update; the problem is linearised
once, and OCNOpt is handed the result. For the dense, the convolutional and the residual network of
`optimizers.tasks`: identity curvature in every form of feedback over SGD; EKFAC over SGD and with
feedback over itself, both on average over the steps between two eigendecompositions; OCNOpt as it
comes; Adam. Memory is what XLA allocates for intermediate values, over that of the base optimizer's
step. EKFAC's steps that refresh nothing, the factors, or the eigenvectors too are shown apart.
Writes <output>.json and .md, and .jsonl as it goes: the same command measures what is not there
yet.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ocresnet.training.optimizers import OCNOpt, Optimizer

from ..common import command_line, reports
from ..common.flag_kinds import FlagValues, Section
from ..optimizers.methods import make_method
from ..optimizers.runs import training_of
from ..optimizers.tasks import NETWORKS, Task, make_task
from .timing import ratio
from .training_step import TrainingStep

REFRESH = (10, 100)

LEARNING_RATE = 1e-4
"""So small that nothing diverges on the fixed batch."""

_sgd = partial(make_method, "sgd", learning_rate=LEARNING_RATE)
_ekfac = partial(make_method, "ekfac", refresh=REFRESH, learning_rate=LEARNING_RATE)

METHODS: dict[str, tuple[str, Optimizer]] = {
    "SGD": ("SGD", _sgd()),
    "Adam": ("SGD", make_method("adam", learning_rate=LEARNING_RATE)),
    "identity, stacked linear": ("SGD", _sgd("stacked", rollout="linear")),
    "identity, stacked nonlinear": ("SGD", _sgd("stacked")),
    "identity, joint 8 linear": ("SGD", _sgd("joint", rollout="linear", groups=8)),
    "identity, joint 8 nonlinear": ("SGD", _sgd("joint", groups=8)),
    "identity, per sample": ("SGD", _sgd("per_sample")),
    "EKFAC": ("SGD", _ekfac()),
    "EKFAC, stacked linear": ("EKFAC", _ekfac("stacked", rollout="linear")),
    "EKFAC, stacked nonlinear": ("EKFAC", _ekfac("stacked")),
    "EKFAC, as it comes": ("SGD", OCNOpt(learning_rate=LEARNING_RATE)),
    "EKFAC, joint 8 linear": ("EKFAC", _ekfac("joint", rollout="linear", groups=8)),
}
"""{name: (what it is compared with, method)}."""


class Flags:
    """What is measured, and how."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        self.networks = section.choices(
            "network", NETWORKS, "Networks.", ["mnist_fcn", "mnist_cnn", "mnist_resnet_plain"]
        )
        self._methods = section.choices("method", METHODS, "Steps.", METHODS)
        self.data = section.text("data", "Name or .npz of the data. Default: by network.")
        self.batch_sizes = section.wholes("batch_size", "Samples a step.", (32, 128, 512))
        section = Section(values, "How")
        self.rounds = section.whole("rounds", "Alternating measurements.", 7, least=1)
        self.output = section.text(
            "output", "Where to write, without extension; what is found there is not run again."
        )

    def methods(self) -> dict[str, tuple[str, Optimizer]]:
        """The steps that are wanted, and those that they are compared with."""
        wanted = {base for name in self._methods.value for base in (name, METHODS[name][0])}
        return {name: method for name, method in METHODS.items() if name in wanted | {"SGD"}}


def measure(
    steps: dict[str, TrainingStep], repeats: dict[str, int], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds a step, averaged over `repeats` of them, in turn: {name: [rounds]}."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(step.seconds(repeats[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def parts(step: TrainingStep) -> dict[str, float]:
    """Median milliseconds of EKFAC's steps, over two periods: those that refresh nothing, the
    factors, and the eigenvectors too."""
    seconds: dict[str, list[float]] = {"nothing": [], "factors": [], "eigenvectors": []}
    factors, eigenvectors = REFRESH
    for _ in range(2 * eigenvectors):
        fresh = (step.taken % factors == 0) + (step.taken % eigenvectors == 0)
        seconds[list(seconds)[fresh]].append(step.seconds(1))
    return {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}


def compare(network: str, batch_size: int, flags: Flags) -> dict[str, Any]:
    """Every step of one network and batch size."""
    methods = flags.methods()
    task = make_task(network, flags.data.value, batch_size)
    if jax.tree.leaves(jax.eval_shape(task.architecture.init, jax.random.key(0)).batch_stats):
        methods = {name: m for name, m in methods.items() if not _is_per_sample(m[1])}
    steps = {name: _make_step(task, method, batch_size) for name, (_, method) in methods.items()}
    first = {name: step.seconds(1) for name, step in steps.items()}
    # Long enough to measure; EKFAC over whole periods, so that refreshes count as they should.
    repeats = {
        name: REFRESH[1] if "EKFAC" in name else max(1, min(100, int(0.2 / first[name])))
        for name in steps
    }
    seconds = measure(steps, repeats, flags.rounds.value)
    return {
        "steps": [
            {
                "method": name,
                "base": base,
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "time_ratio": str(ratio(seconds, name, base)),
                "memory_megabytes": steps[name].temporary_megabytes,
                "memory_ratio": steps[name].temporary_megabytes / steps[base].temporary_megabytes,
                "seconds": seconds[name],
            }
            for name, (base, _) in methods.items()
        ],
        "refreshes": {name: parts(step) for name, step in steps.items() if "EKFAC" in name},
    }


def _make_step(task: Task, method: Optimizer, batch_size: int) -> TrainingStep:
    config = training_of(task, method, epochs=1, batch_size=batch_size)
    return TrainingStep(task.architecture, config, task.data.train_images, task.data.train_labels)


def _is_per_sample(method: Optimizer) -> bool:
    return isinstance(method, OCNOpt) and method.feedback == "per_sample"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every step as Markdown."""
    columns = ["network", "step", "batch", "ms", "time ratio (quartiles)", "MB", "memory ratio"]
    cells = [
        [
            row["network"],
            f"{step['method']} / {step['base']}",
            row["batch_size"],
            f"{step['milliseconds']:.2f}",
            step["time_ratio"],
            f"{step['memory_megabytes']:.1f}",
            f"{step['memory_ratio']:.2f}",
        ]
        for row in rows
        for step in row["steps"]
    ]
    return reports.markdown_table(columns, cells, left=2)


def refreshes(rows: Sequence[Mapping[str, Any]]) -> str:
    """EKFAC's steps apart, as Markdown."""
    columns = ["network", "step", "batch", "refreshes nothing (ms)", "factors", "eigenvectors too"]
    cells = [
        [row["network"], name, row["batch_size"], *(f"{value:.2f}" for value in found.values())]
        for row in rows
        for name, found in row["refreshes"].items()
    ]
    return reports.markdown_table(columns, cells, left=2)


def benchmark(flags: Flags) -> None:
    """Measure every network and batch size, and write the table."""
    made = reports.provenance()
    # Rows of another machine are not comparable.
    machine = {name: made[name] for name in ("device", "cores", "versions")}
    settings = {
        "data": flags.data.value,
        "rounds": flags.rounds.value,
        "methods": list(flags.methods()),
        **machine,
    }
    study = reports.Study(flags.output.value, settings)
    for network in flags.networks.value:
        for batch_size in flags.batch_sizes.value:
            key = {"network": network, "batch_size": batch_size}
            row = study.row(key, partial(compare, network, batch_size, flags))
            print(table([row]), flush=True)
    study.write(f"{table(study.rows)}\n\n{refreshes(study.rows)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the arguments say; returns the exit status."""
    return command_line.run(benchmark, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
