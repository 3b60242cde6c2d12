"""Time and memory of a training step, by ratio in one process.

  python -m experiments.benchmarks.step --output=results/benchmark_step/two_cores
  python -m experiments.benchmarks.step --parts=torch --threads=1

Parts:
  stage_cost   stage-cost step (shared heads) over plain step, standard and homogeneous
  overhead     the same in time and memory over depth and width, shared and separate heads
  scan         scanned over unrolled: step, first call; first call at 54 over 18 blocks
  remat        time and memory of what the backward pass recomputes
  torch        ours over the same network, loss and optimizer in PyTorch (needs ocresnet[bench]),
               and the same for the network's convolutions alone

A step is forward pass, backward pass and update (SGD with momentum and weight decay), float32. The
networks are the paper's 54-block ones. Writes <output>.json and .md, and .jsonl as it goes: the
same command measures what is not there yet.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.data.batches import Batch
from ocresnet.systems import resnet
from ocresnet.systems.convolution import convolution
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizer import paper_optimizer
from ocresnet.training.step import init_state, make_train_step

from ..common import command_line, reports
from ..common.flag_kinds import FlagValues, Section
from .timing import alternate, ratio

GAMMA = 0.02

OVERHEAD_SHAPES = ((6, 16), (18, 16), (54, 16), (12, 8), (12, 32), (12, 64))
"""Blocks and filters of the homogeneous networks of the part "overhead"."""


class Flags:
    """What is measured, and how."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "What")
        self.parts = section.choices("parts", PARTS, "What to measure.", PARTS)
        self._blocks = section.whole("blocks", "Residual blocks.", 54, least=3)
        self._batch_size = section.whole(
            "batch_size", "Images a step of the standard network.", 32, least=1
        )
        self._homogeneous_batch_size = section.whole(
            "homogeneous_batch_size", "Images a step of the homogeneous network.", 8, least=1
        )
        section = Section(values, "How")
        self._rounds = section.whole("rounds", "Alternating measurements.", 15, least=1)
        self._threads = section.whole("threads", "CPU cores to use. Default: all.")
        self.output = section.text(
            "output", "Where to write, without extension; what is found there is not run again."
        )

    def setting(self) -> "Setting":
        """What all parts have in common, on the cores that are wanted."""
        threads = self._threads.value
        if threads is not None:
            cores = sorted(os.sched_getaffinity(0))
            if not 1 <= threads <= len(cores):
                raise ValueError(f"--threads is {threads}, but must be 1 to {len(cores)}.")
            # Before JAX starts: it makes one thread for every core that it sees.
            os.sched_setaffinity(0, cores[:threads])
        return Setting(
            blocks=self._blocks.value,
            batch_size=self._batch_size.value,
            homogeneous_batch_size=self._homogeneous_batch_size.value,
            rounds=self._rounds.value,
        )


@dataclass(frozen=True)
class Setting:
    """What all parts have in common.

    Attributes:
      blocks: of the networks.
      batch_size, homogeneous_batch_size: images a step of either.
      rounds: alternating measurements.
    """

    blocks: int
    batch_size: int
    homogeneous_batch_size: int
    rounds: int

    @property
    def standard(self) -> ResNetConfig:
        """The standard network."""
        return ResNetConfig.standard(self.blocks)

    @property
    def cases(self) -> dict[str, tuple[ResNetConfig, int]]:
        """Both networks with their batch sizes."""
        homogeneous = ResNetConfig.homogeneous(self.blocks)
        return {
            "standard": (self.standard, self.batch_size),
            "homogeneous": (homogeneous, self.homogeneous_batch_size),
        }

    def describe(self) -> dict[str, Any]:
        """The setting and the machine: rows of another one are not comparable."""
        made = reports.provenance()
        machine = {name: made[name] for name in ("device", "cores", "versions")}
        return {**vars(self), **machine}


class Line(NamedTuple):
    """One line of the result.

    Attributes:
      what: what was compared.
      value: measured, with its unit or quartiles.
      milliseconds: median time of the first thing compared, if it is a time.
      seconds: every measurement of the two things compared, in the order it was taken.
    """

    what: str
    value: str
    milliseconds: float | None = None
    seconds: dict[str, list[float]] | None = None


Measurements = dict[str, Callable[[], list[Line]]]
"""What a part measures, by name: each is measured and written down by itself."""


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


def stage_cost(setting: Setting) -> Measurements:
    def measure(name: str) -> list[Line]:
        network, batch_size = setting.cases[name]
        steps = {
            "plain": Step(replace(network, exits="none"), 0.0, batch_size),
            "stage cost": Step(network, GAMMA, batch_size),
        }
        seconds = alternate(steps, setting.rounds)
        what = f"{name}, batch {batch_size}: stage cost / plain"
        return [_time_line(what, seconds, "stage cost", "plain")]

    return {name: partial(measure, name) for name in setting.cases}


def overhead(setting: Setting) -> Measurements:
    def measure(blocks: int, filters: int) -> list[Line]:
        network = ResNetConfig.homogeneous(blocks, filters)
        batch_size = setting.homogeneous_batch_size
        steps = {
            "plain": Step(replace(network, exits="none"), 0.0, batch_size),
            "shared": Step(network, GAMMA, batch_size),
            "separate": Step(replace(network, exits="separate"), GAMMA, batch_size),
        }
        seconds = alternate(steps, setting.rounds)
        lines = []
        for name in ("shared", "separate"):
            memory = steps[name].temporary_megabytes / steps["plain"].temporary_megabytes
            what = (
                f"{blocks} blocks, {filters} filters, batch {batch_size}: {name} / plain "
                f"(memory {memory:.2f})"
            )
            lines.append(_time_line(what, seconds, name, "plain"))
        return lines

    return {f"{shape[0]}x{shape[1]}": partial(measure, *shape) for shape in OVERHEAD_SHAPES}


def scan(setting: Setting) -> Measurements:
    def measure() -> list[Line]:
        network, batch_size = replace(setting.standard, exits="none"), setting.batch_size
        steps: dict[str, Step] = {
            "scanned": Step(network, 0.0, batch_size),
            "unrolled": Step(network, 0.0, batch_size, unroll=True),
        }
        shallow = Step(ResNetConfig.standard(18, exits="none"), 0.0, batch_size)
        seconds = alternate(steps, setting.rounds)
        first = {name: step.first_call_seconds for name, step in steps.items()}
        what = f"first call: scanned {first['scanned']:.1f} s / unrolled {first['unrolled']:.1f} s"
        growth = first["scanned"] / shallow.first_call_seconds
        return [
            _time_line("step: scanned / unrolled", seconds, "scanned", "unrolled"),
            Line(what, f"{first['scanned'] / first['unrolled']:.2f}"),
            Line(f"first call, scanned: {setting.blocks} blocks / 18 blocks", f"{growth:.2f}"),
        ]

    return {"standard": measure}


def remat(setting: Setting) -> Measurements:
    def measure() -> list[Line]:
        steps = {
            kind: Step(setting.standard, GAMMA, setting.batch_size, remat=kind)
            for kind in ("none", "convolutions", "everything")
        }
        seconds = alternate(steps, setting.rounds)
        lines = []
        for kind, step in steps.items():
            lines.append(Line(f"{kind}: temporaries", f"{step.temporary_megabytes:.0f} MB"))
            if kind != "none":
                lines.append(_time_line(f"step: {kind} / none", seconds, kind, "none"))
        return lines

    return {"standard": measure}


def torch(setting: Setting) -> Measurements:
    import torch as pytorch

    from .torch_network import torch_convolutions, torch_step

    pytorch.set_num_threads(len(os.sched_getaffinity(0)))

    def measure(name: str, gamma: float) -> list[Line]:
        network, batch_size = setting.cases[name]
        config = network if gamma else replace(network, exits="none")
        ours = Step(config, gamma, batch_size)
        batch = images_and_labels(config, batch_size)
        steps: dict[str, Callable[[], float]] = {"ours": ours}
        layouts = ("contiguous", "channels_last")
        for layout in layouts:
            steps[layout] = torch_step(
                config, ours.variables, *batch, gamma, layout == "channels_last"
            )
            _check_same_loss(ours.first_objective, steps[layout]())
        seconds = alternate(steps, setting.rounds)
        kind = "stage cost" if gamma else "plain"
        lines = [
            _time_line(
                f"{name}, {kind}, batch {batch_size}: ours / PyTorch {layout}",
                seconds,
                "ours",
                layout,
            )
            for layout in layouts
        ]
        if gamma:
            return lines
        stages = convolution_stages(network, batch_size)
        alone: dict[str, Callable[[], float]] = {
            "convolutions, ours": convolutions(stages),
            "convolutions, PyTorch": torch_convolutions(stages),
            "step, ours": ours,
            "step, PyTorch": steps["contiguous"],
        }
        _check_same_loss(alone["convolutions, ours"](), alone["convolutions, PyTorch"]())
        seconds = alternate(alone, setting.rounds)
        for first, second in (
            ("convolutions, ours", "convolutions, PyTorch"),
            ("convolutions, ours", "step, ours"),
            ("convolutions, PyTorch", "step, PyTorch"),
        ):
            what = f"{name}, batch {batch_size}: {first} / {second}"
            lines.append(_time_line(what, seconds, first, second))
        return lines

    return {
        f"{name}, gamma {gamma:g}": partial(measure, name, gamma)
        for name in setting.cases
        for gamma in (0.0, GAMMA)
    }


PARTS: dict[str, Callable[[Setting], Measurements]] = {
    "stage_cost": stage_cost,
    "overhead": overhead,
    "scan": scan,
    "remat": remat,
    "torch": torch,
}


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


def _time_line(what: str, seconds: dict[str, np.ndarray], name: str, base: str) -> Line:
    milliseconds = 1e3 * float(np.median(seconds[name]))
    raw = {key: seconds[key].tolist() for key in (name, base)}
    return Line(what, str(ratio(seconds, name, base)), milliseconds, raw)


def table(rows: Sequence[dict[str, Any]], setting: dict[str, Any]) -> str:
    """Every line as Markdown, below the machine they were measured on."""
    about = (
        f"{setting['device']}, {setting['cores']} cores, jax {setting['versions']['jax']}, Python "
        f"{setting['versions']['python']}. Ratios: median (quartiles) of {setting['rounds']} "
        "alternating rounds; ms: median of the first of the two."
    )
    cells = []
    for row in rows:
        for line in row["lines"]:
            time = line["milliseconds"]
            rounded = None if time is None else f"{time:.0f}"
            cells.append([row["part"], line["what"], line["value"], rounded])
    return f"{about}\n\n{reports.markdown_table(['part', 'what', 'value', 'ms'], cells, left=2)}"


def benchmark(flags: Flags) -> None:
    """Measure every part, and write the table."""
    setting = flags.setting()
    study = reports.Study(flags.output.value, setting.describe())
    for part in flags.parts.value:
        for name, measure in PARTS[part](setting).items():
            key = {"part": part, "of": name}
            row = study.row(key, lambda measure=measure: {"lines": measure()})  # type: ignore[misc]
            for line in row["lines"]:
                print(f"{part}: {line['what']}: {line['value']}", flush=True)
    text = table(study.rows, setting.describe())
    print(text)
    study.write(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure as the arguments say; returns the exit status."""
    return command_line.run(benchmark, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
