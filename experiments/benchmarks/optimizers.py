"""Time and memory of an optimizer's step, by ratio in one process.

  python -m experiments.benchmarks.optimizers --output=results/benchmark_optimizers/two_cores

A step is forward pass, backward pass and update, compiled; the backward pass of OCNOpt is its own
(`linearize`). For the dense, the convolutional and the residual network of `optimizers.tasks`:
identity curvature in every form of feedback over SGD; EKFAC over SGD and with feedback over itself,
both on average over the steps between two eigendecompositions; Adam. Memory is what XLA allocates
for intermediate values, over that of the base optimizer's step. Writes <output>.json and .md, and
.jsonl as it goes: the same command measures what is not there yet.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..common import command_line, reports
from ..common.flag_kinds import FlagValues, Section
from ..optimizers.runs import Method, Task, make_run
from ..optimizers.tasks import NETWORKS, make_task
from .timing import ratio

REFRESH = (10, 100)

METHODS: dict[str, tuple[str, Method]] = {
    "SGD": ("SGD", Method("sgd")),
    "Adam": ("SGD", Method("adam")),
    "identity, stacked linear": ("SGD", Method("sgd", "stacked", "linear")),
    "identity, stacked nonlinear": ("SGD", Method("sgd", "stacked")),
    "identity, joint 8 linear": ("SGD", Method("sgd", "joint", "linear", groups=8)),
    "identity, joint 8 nonlinear": ("SGD", Method("sgd", "joint", groups=8)),
    "identity, per sample": ("SGD", Method("sgd", "per_sample")),
    "EKFAC": ("SGD", Method("ekfac", refresh=REFRESH)),
    "EKFAC, stacked linear": ("EKFAC", Method("ekfac", "stacked", "linear", refresh=REFRESH)),
    "EKFAC, stacked nonlinear": ("EKFAC", Method("ekfac", "stacked", refresh=REFRESH)),
    "EKFAC, joint 8 linear": (
        "EKFAC",
        Method("ekfac", "joint", "linear", groups=8, refresh=REFRESH),
    ),
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

    def methods(self) -> dict[str, tuple[str, Method]]:
        """The steps that are wanted, and those that they are compared with."""
        wanted = {base for name in self._methods.value for base in (name, METHODS[name][0])}
        return {name: method for name, method in METHODS.items() if name in wanted | {"SGD"}}


class Step:
    """A compiled step on its own state and a fixed batch; calling it takes one step."""

    def __init__(self, task: Task, method: Method, batch_size: int) -> None:
        run = make_run(task, method, 1, batch_size)
        rate, decay = jnp.asarray(1e-4), jnp.asarray(0.0)
        self._state, order = jax.jit(run.start)(rate, decay, jnp.asarray(0))
        self._advance = (
            jax.jit(run.advance, donate_argnums=0)
            .lower(self._state, rate, decay, order[:1])
            .compile()
        )
        self._arguments = (rate, decay, order[:1])

    def __call__(self) -> None:
        self._state, loss = self._advance(self._state, *self._arguments)
        jax.block_until_ready(loss)

    @property
    def temporary_megabytes(self) -> float:
        """What XLA allocates for intermediate values."""
        analysis = self._advance.memory_analysis()
        return float("nan") if analysis is None else analysis.temp_size_in_bytes / 1e6


def measure(steps: dict[str, Step], repeats: dict[str, int], rounds: int) -> dict[str, np.ndarray]:
    """Seconds a step, averaged over `repeats` of them, in turn: {name: [rounds]}."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                step()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: np.array(values) for name, values in seconds.items()}


def compare(network: str, batch_size: int, flags: Flags) -> dict[str, Any]:
    """Every step of one network and batch size."""
    methods = flags.methods()
    task = make_task(network, flags.data.value, 2 * batch_size)
    if jax.tree.leaves(task.init(jax.random.key(0)).batch_stats):
        methods = {name: m for name, m in methods.items() if m[1].feedback != "per_sample"}
    steps = {name: Step(task, method, batch_size) for name, (_, method) in methods.items()}
    first = {name: _seconds(step) for name, step in steps.items()}
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
        ]
    }


def _seconds(step: Callable[[], Any]) -> float:
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


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
    study.write(table(study.rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the arguments say; returns the exit status."""
    return command_line.run(benchmark, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
