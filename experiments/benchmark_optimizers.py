"""Time and memory of an optimizer's step, by ratio in one process.

  python -m experiments.benchmark_optimizers --output=results/benchmark_optimizers/two_cores

A step is forward pass, backward pass and update, compiled; the backward pass of OCNOpt is its own
(`linearize`). For the dense, the convolutional and the residual network of `optimizer_tasks`:
identity curvature in every form of feedback over SGD; EKFAC over SGD and with feedback over itself,
both on average over the steps between two eigendecompositions; Adam. Memory is what XLA allocates
for intermediate values, over that of the base optimizer's step. Writes <output>.json and .md.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command_line
from experiments.optimizer_runs import Method, Task, make_run, write_record
from experiments.optimizer_tasks import NETWORKS, make_task
from experiments.timing import ratio

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


CHOSEN = flags.DEFINE_multi_enum(
    "network", ["mnist_fcn", "mnist_cnn", "mnist_resnet_plain"], list(NETWORKS), "Networks."
)
SOURCE = flags.DEFINE_string("data", None, "Name or .npz of the data. Default: by network.")
BATCH_SIZES = flags.DEFINE_multi_integer("batch_size", [32, 128, 512], "Samples a step.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Alternating measurements of each step.")
CHOSEN_METHODS = flags.DEFINE_multi_enum("method", list(METHODS), list(METHODS), "Steps.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write, without extension.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "What": [CHOSEN, CHOSEN_METHODS, SOURCE, BATCH_SIZES],
    "How": [ROUNDS, OUTPUT],
}


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


def compare(network: str, batch_size: int, methods: dict[str, tuple[str, Method]]) -> list[dict]:
    """Rows of the table for one network and batch size."""
    task = make_task(network, SOURCE.value, 2 * batch_size)
    if jax.tree.leaves(task.init(jax.random.key(0)).batch_stats):
        methods = {name: m for name, m in methods.items() if m[1].feedback != "per_sample"}
    steps = {name: Step(task, method, batch_size) for name, (_, method) in methods.items()}
    first = {name: _seconds(step) for name, step in steps.items()}
    # Long enough to measure; EKFAC over whole periods, so that refreshes count as they should.
    repeats = {
        name: REFRESH[1] if "EKFAC" in name else max(1, min(100, int(0.2 / first[name])))
        for name in steps
    }
    seconds = measure(steps, repeats, ROUNDS.value)
    rows = []
    for name, (base, _) in methods.items():
        rows.append(
            {
                "network": network,
                "batch_size": batch_size,
                "method": name,
                "base": base,
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "time_ratio": str(ratio(seconds, name, base)),
                "memory_megabytes": steps[name].temporary_megabytes,
                "memory_ratio": steps[name].temporary_megabytes / steps[base].temporary_megabytes,
                "seconds": seconds[name],
            }
        )
        print(line(rows[-1]), flush=True)
    return rows


def _seconds(step: Callable[[], Any]) -> float:
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    return (
        f"| {row['network']} | {row['batch_size']} | {row['method']} / {row['base']} | "
        f"{row['milliseconds']:.2f} | {row['time_ratio']} | {row['memory_megabytes']:.1f} | "
        f"{row['memory_ratio']:.2f} |"
    )


def main() -> None:
    wanted = {base for name in CHOSEN_METHODS.value for base in (name, METHODS[name][0])} | {"SGD"}
    methods = {name: method for name, method in METHODS.items() if name in wanted}
    rows = []
    for network in CHOSEN.value:
        for batch_size in BATCH_SIZES.value:
            rows += compare(network, batch_size, methods)
    if OUTPUT.value:
        output = Path(OUTPUT.value)
        write_record(output.with_name(f"{output.name}.json"), {"rounds": ROUNDS.value}, rows)
        lines = [
            "| network | batch | step | ms | time ratio (quartiles) | MB | memory ratio |",
            "|---|---:|---|---:|---:|---:|---:|",
            *(line(row) for row in rows),
        ]
        output.with_name(f"{output.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
