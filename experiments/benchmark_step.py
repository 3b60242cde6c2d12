"""Time and memory of a training step, by ratio in one process.

  python -m experiments.benchmark_step --output=results/benchmark_step
  python -m experiments.benchmark_step --parts=torch --threads=1

Parts:
  stage_cost   stage-cost step (shared heads) over plain step, standard and homogeneous
  overhead     the same in time and memory over depth and width, shared and separate heads
  scan         scanned over unrolled: step, first call; first call at 54 over 18 blocks
  remat        time and memory of what the backward pass recomputes
  torch        ours over the same network, loss and optimizer in PyTorch (needs ocresnet[bench]),
               and the same for the network's convolutions alone

A step is forward pass, backward pass and update (SGD with momentum and weight decay), float32. The
networks are the paper's 54-block ones. Writes <output>.json and <output>.md.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import command_line
from experiments.timing import alternate, ratio
from ocresnet.data.batches import Batch
from ocresnet.systems import resnet
from ocresnet.systems.convolution import convolution
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizer import paper_optimizer
from ocresnet.training.step import init_state, make_train_step

PARTS = ("stage_cost", "overhead", "scan", "remat", "torch")

CHOSEN = flags.DEFINE_multi_enum("parts", list(PARTS), PARTS, "What to measure.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images a step of the standard network.")
HOMOGENEOUS_BATCH_SIZE = flags.DEFINE_integer(
    "homogeneous_batch_size", 8, "Images a step of the homogeneous network."
)
BLOCKS = flags.DEFINE_integer("blocks", 54, "Residual blocks.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Alternating measurements of each step.")
THREADS = flags.DEFINE_integer("threads", None, "CPU cores to use. Default: all.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write, without extension.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "What": [CHOSEN, BLOCKS, BATCH_SIZE, HOMOGENEOUS_BATCH_SIZE],
    "How": [ROUNDS, THREADS, OUTPUT],
}

GAMMA = 0.02

OVERHEAD_SHAPES = ((6, 16), (18, 16), (54, 16), (12, 8), (12, 32), (12, 64))
"""Blocks and filters of the homogeneous networks of the part "overhead"."""


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
      part: which part of the benchmark.
      what: what was compared.
      value: measured, with its unit or quartiles.
      milliseconds: median time of the first thing compared, if it is a time.
      seconds: every measurement of the two things compared, in the order it was taken.
    """

    part: str
    what: str
    value: str
    milliseconds: float | None = None
    seconds: dict[str, list[float]] | None = None


def standard() -> ResNetConfig:
    return ResNetConfig.standard(BLOCKS.value)


def homogeneous() -> ResNetConfig:
    return ResNetConfig.homogeneous(BLOCKS.value)


def images_and_labels(network: ResNetConfig, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, *network.image_shape)).astype(np.float32)
    return images, rng.integers(0, network.classes, batch_size)


class Step:
    """A compiled training step on its own state and a fixed batch; calling it takes one step."""

    def __init__(
        self, network: ResNetConfig, stage_cost: float, batch_size: int, **how: Any
    ) -> None:
        config = TrainingConfig(stage_cost=stage_cost, execution=Execution(**how))
        self.variables = resnet.init(network, jax.random.key(0))
        optimizer = paper_optimizer(config, self.variables.params, steps_per_epoch=100)
        state = init_state(network, config, self.variables, optimizer)
        batch = Batch(*map(jnp.asarray, images_and_labels(network, batch_size)))
        start = time.perf_counter()
        self._compiled = (
            jax.jit(make_train_step(network, config, optimizer)).lower(state, batch).compile()
        )
        self._state, info = self._compiled(state, batch)
        self.first_objective = float(info.objective)
        self.first_call_seconds = time.perf_counter() - start
        self._batch = batch

    def __call__(self) -> float:
        self._state, info = self._compiled(self._state, self._batch)
        return float(info.objective)

    @property
    def temporary_megabytes(self) -> float:
        """What XLA allocates for intermediate values."""
        analysis = self._compiled.memory_analysis()
        return float("nan") if analysis is None else analysis.temp_size_in_bytes / 1e6


def stage_cost() -> list[Row]:
    rows = []
    for name, network, batch_size in (
        ("standard", standard(), BATCH_SIZE.value),
        ("homogeneous", homogeneous(), HOMOGENEOUS_BATCH_SIZE.value),
    ):
        steps = {
            "plain": Step(replace(network, exits="none"), 0.0, batch_size),
            "stage cost": Step(network, GAMMA, batch_size),
        }
        seconds = alternate(steps, ROUNDS.value)
        what = f"{name}, batch {batch_size}: stage cost / plain"
        rows.append(_time_row("stage_cost", what, seconds, "stage cost", "plain"))
    return rows


def overhead() -> list[Row]:
    rows = []
    for blocks, filters in OVERHEAD_SHAPES:
        network = ResNetConfig.homogeneous(blocks, filters)
        batch_size = HOMOGENEOUS_BATCH_SIZE.value
        steps = {
            "plain": Step(replace(network, exits="none"), 0.0, batch_size),
            "shared": Step(network, GAMMA, batch_size),
            "separate": Step(replace(network, exits="separate"), GAMMA, batch_size),
        }
        seconds = alternate(steps, ROUNDS.value)
        for name in ("shared", "separate"):
            memory = steps[name].temporary_megabytes / steps["plain"].temporary_megabytes
            what = (
                f"{blocks} blocks, {filters} filters, batch {batch_size}: {name} / plain "
                f"(memory {memory:.2f})"
            )
            rows.append(_time_row("overhead", what, seconds, name, "plain"))
    return rows


def scan() -> list[Row]:
    network, batch_size = replace(standard(), exits="none"), BATCH_SIZE.value
    steps: dict[str, Step] = {
        "scanned": Step(network, 0.0, batch_size),
        "unrolled": Step(network, 0.0, batch_size, unroll=True),
    }
    shallow = Step(ResNetConfig.standard(18, exits="none"), 0.0, batch_size)
    seconds = alternate(steps, ROUNDS.value)
    first = {name: step.first_call_seconds for name, step in steps.items()}
    what = f"first call: scanned {first['scanned']:.1f} s / unrolled {first['unrolled']:.1f} s"
    growth = first["scanned"] / shallow.first_call_seconds
    return [
        _time_row("scan", "step: scanned / unrolled", seconds, "scanned", "unrolled"),
        Row("scan", what, f"{first['scanned'] / first['unrolled']:.2f}"),
        Row("scan", f"first call, scanned: {BLOCKS.value} blocks / 18 blocks", f"{growth:.2f}"),
    ]


def remat() -> list[Row]:
    network, batch_size = standard(), BATCH_SIZE.value
    steps = {
        kind: Step(network, GAMMA, batch_size, remat=kind)
        for kind in ("none", "convolutions", "everything")
    }
    seconds = alternate(steps, ROUNDS.value)
    rows = []
    for kind, step in steps.items():
        rows.append(Row("remat", f"{kind}: temporaries", f"{step.temporary_megabytes:.0f} MB"))
        if kind != "none":
            rows.append(_time_row("remat", f"step: {kind} / none", seconds, kind, "none"))
    return rows


def torch() -> list[Row]:
    import torch as pytorch

    from experiments.benchmark_torch import torch_convolutions, torch_step

    pytorch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for name, network, batch_size in (
        ("standard", standard(), BATCH_SIZE.value),
        ("homogeneous", homogeneous(), HOMOGENEOUS_BATCH_SIZE.value),
    ):
        for gamma in (0.0, GAMMA):
            config = network if gamma else replace(network, exits="none")
            ours = Step(config, gamma, batch_size)
            batch = images_and_labels(config, batch_size)
            steps: dict[str, Callable[[], float]] = {"ours": ours}
            for layout in ("contiguous", "channels_last"):
                steps[layout] = torch_step(
                    config, ours.variables, *batch, gamma, layout == "channels_last"
                )
                _check_same_loss(ours.first_objective, steps[layout]())
            seconds = alternate(steps, ROUNDS.value)
            kind = "stage cost" if gamma else "plain"
            for layout in ("contiguous", "channels_last"):
                what = f"{name}, {kind}, batch {batch_size}: ours / PyTorch {layout}"
                rows.append(_time_row("torch", what, seconds, "ours", layout))
            if not gamma:
                stages = convolution_stages(network, batch_size)
                alone: dict[str, Callable[[], float]] = {
                    "convolutions, ours": convolutions(stages),
                    "convolutions, PyTorch": torch_convolutions(stages),
                    "step, ours": ours,
                    "step, PyTorch": steps["contiguous"],
                }
                _check_same_loss(alone["convolutions, ours"](), alone["convolutions, PyTorch"]())
                seconds = alternate(alone, ROUNDS.value)
                for first, second in (
                    ("convolutions, ours", "convolutions, PyTorch"),
                    ("convolutions, ours", "step, ours"),
                    ("convolutions, PyTorch", "step, PyTorch"),
                ):
                    what = f"{name}, batch {batch_size}: {first} / {second}"
                    rows.append(_time_row("torch", what, seconds, first, second))
    return rows


def convolution_stages(
    network: ResNetConfig, batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and kernels of each stage, for the convolutions of the network without all else."""
    rng = np.random.default_rng(0)
    size = network.image_shape[0]
    stages = []
    for stage, (blocks, channels) in enumerate(zip(network.blocks, network.filters, strict=True)):
        side = size // 2**stage
        x = rng.normal(size=(batch_size, side, side, channels)).astype(np.float32)
        kernels = 0.02 * rng.normal(size=(blocks, 2, 3, 3, channels, channels))
        stages.append((x, kernels.astype(np.float32)))
    return stages


def convolutions(stages: list[tuple[np.ndarray, np.ndarray]]) -> Callable[[], float]:
    """Value and gradient of sum over stages of mean(x_N^2), x_{k+1} = x_k + w_k2 * (w_k1 * x_k)."""

    def value(stages: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        def block(x: jax.Array, kernels: jax.Array) -> tuple[jax.Array, None]:
            return x + convolution(convolution(x, kernels[0]), kernels[1]), None

        ends = [jax.lax.scan(block, x, kernels)[0] for x, kernels in stages]
        return sum((jnp.mean(jnp.square(end)) for end in ends), jnp.zeros(()))

    gradient = jax.jit(jax.value_and_grad(value))
    on_device = jax.device_put(stages)

    def step() -> float:
        result, slopes = gradient(on_device)
        jax.block_until_ready(slopes)
        return float(result)

    return step


def _check_same_loss(ours: float, theirs: float) -> None:
    if not np.isclose(ours, theirs, rtol=1e-4):
        raise ValueError(f"the two do not compute the same loss: {ours} and {theirs}.")


def _time_row(part: str, what: str, seconds: dict, name: str, base: str) -> Row:
    milliseconds = 1e3 * float(np.median(seconds[name]))
    raw = {key: seconds[key].tolist() for key in (name, base)}
    return Row(part, what, str(ratio(seconds, name, base)), milliseconds, raw)


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    lines = [
        f"{about['device']}, {about['cores']} cores, {about['versions']}. Ratios: median "
        f"(quartiles) of {about['rounds']} alternating rounds; ms: median of the first of the two.",
        "",
        "| part | what | value | ms |",
        "|---|---|---:|---:|",
    ]
    for row in rows:
        milliseconds = "" if row.milliseconds is None else f"{row.milliseconds:.0f}"
        lines.append(f"| {row.part} | {row.what} | {row.value} | {milliseconds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if THREADS.value is not None:
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= THREADS.value <= len(cores):
            raise ValueError(f"--threads is {THREADS.value}, but must be 1 to {len(cores)}.")
        # Before JAX starts: it makes one thread for every core that it sees.
        os.sched_setaffinity(0, cores[: THREADS.value])
    measure = {
        "stage_cost": stage_cost,
        "overhead": overhead,
        "scan": scan,
        "remat": remat,
        "torch": torch,
    }
    rows: list[Row] = []
    for part in CHOSEN.value:
        rows += measure[part]()
    about = {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "versions": f"jax {jax.__version__}, Python {platform.python_version()}",
        "rounds": ROUNDS.value,
        "blocks": BLOCKS.value,
        "command": ["python", *sys.orig_argv[1:]],
    }
    text = markdown(rows, about)
    print(text)
    if OUTPUT.value:
        # Appended, not replaced as a suffix: a name such as jax_0.10 has a dot of its own.
        path = Path(f"{OUTPUT.value}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(path, {**about, "rows": [asdict(r) for r in rows]})
        Path(f"{OUTPUT.value}.md").write_text(text)


if __name__ == "__main__":
    command_line.run(main, __doc__, GROUPS)
