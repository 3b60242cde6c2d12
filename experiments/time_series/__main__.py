"""Train a GRU-ODE on irregular series of noisy oscillators, beside the best possible answer.

  python -m experiments.time_series --workdir=runs/series
  python -m experiments.time_series --task=classification --workdir=runs/kinds

Predicts every measurement from those before it, or says which oscillator a series is of. The series
are drawn from the seed; the closed form is that of Kalman filters. Prints the errors, and writes to
the workdir what every run writes, time_series.md and .json, and a figure. The same command
continues a run that was stopped, to the same numbers. With --output, the run becomes a row of
<output>.jsonl, and the tables are over all its rows: of several seeds and of both tasks.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ocresnet.data.oscillators import Drawn, Generator
from ocresnet.data.time_series import TimeSeriesData
from ocresnet.plots.runs import FIGURES
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution
from ocresnet.training import config as configs
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.optimizers import AdamW

from ..common import command_line
from ..common.display import draw_figures
from ..common.flag_kinds import FlagValues, Section
from ..common.flags import ExecutionFlags, OptimizerFlags, TrainingFlags
from ..common.hosts import HostFlags, is_first
from ..common.kind_flags import KindFlags
from ..common.reports import Study
from ..common.starting_points import with_fields, with_optimizer
from .figures import draw_posterior, draw_series
from .measures import measure_classes, measure_predictions, tables

FROM_THE_DATA = [field.name for field in fields(Architecture)]

NETWORK = GRUODEConfig(task="prediction", solver="rk4", steps=1)
TRAINING = TrainingConfig(
    epochs=10,
    batch_size=64,
    optimizer=AdamW(learning_rate=5e-3, gradient_clip=1.0, warmup_epochs=1),
    stage_cost=0.0,
    validation=0.1,
    execution=Execution(remat="none"),
)

TEST_SERIES = 2000


class Flags:
    """The run, its data, its network and its training."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Run")
        self._workdir = section.text(
            "workdir", "Folder of the run; a run found there is continued.", "runs/time_series"
        )
        self._output = section.text(
            "output",
            "Where to write rows and tables, without extension. Default: <workdir>/time_series.",
        )
        section = Section(values, "Data")
        self._series = section.whole("series", "Training series to draw.", 15000, least=2)
        self._generator = KindFlags(
            section,
            "generator",
            {"oscillators": Generator()},
            "What makes the series.",
            leave_out=("kinds",),
        )
        self._network = KindFlags(
            Section(values, "Network"),
            "architecture",
            {"gru_ode": NETWORK},
            "Family of the network.",
            leave_out=FROM_THE_DATA,
        )
        self._training = TrainingFlags(values)
        self._optimizer = OptimizerFlags(values)
        self.execution = ExecutionFlags(values)
        self.hosts = HostFlags(values)

    @property
    def workdir(self) -> Path:
        """Folder of the run."""
        return Path(self._workdir.value)

    @property
    def series(self) -> int:
        """How many training series."""
        return self._series.value

    @property
    def output(self) -> Path:
        """Where rows and tables go, without extension."""
        return Path(self._output.value or self.workdir / "time_series")

    def generator(self) -> Generator:
        """What makes the series."""
        return replace(Generator(), **self._generator.given("oscillators"))

    def network(self) -> GRUODEConfig:
        """The architecture, before it is fitted to the data."""
        network = with_fields(NETWORK, self._network.given("gru_ode"))
        assert isinstance(network, GRUODEConfig)
        return network

    def training(self) -> TrainingConfig:
        """How it is trained."""
        start = TRAINING
        if self._optimizer.name not in (None, "adamw"):
            start = with_optimizer(start, self._optimizer.name)
        training = self._training.build(start)
        task = self._network.given("gru_ode").get("task", NETWORK.task)
        return replace(
            training,
            loss="mean_squared_error" if task == "prediction" else "cross_entropy",
            optimizer=self._optimizer.build(training.optimizer),
            execution=self.execution.build(training.execution),
        )


def run(flags: Flags) -> None:
    """Draw the series, train, measure, and write what was found."""
    generator, network, training = flags.generator(), flags.network(), flags.training()
    flags.hosts.start()
    train, test = (
        generator.draw(samples, (training.seed, part))
        for part, samples in enumerate((flags.series, TEST_SERIES))
    )
    predicts = network.task == "prediction"
    parts = {
        name: drawn.to_predict() if predicts else drawn.to_classify()
        for name, drawn in (("train", train), ("test", test))
    }
    data = TimeSeriesData("oscillators", parts)
    result = fit(
        for_dataset(network, data),
        training,
        data,
        workdir=flags.workdir,
        devices=flags.hosts.devices(),
        **flags.execution.records(),
    )
    if result.interrupted:
        raise KeyboardInterrupt
    if not is_first():
        return
    measure = measure_predictions if predicts else measure_classes
    study = Study(flags.output, _settings(generator, network, training, flags.series))
    study.row(
        {"task": network.task, "seed": training.seed},
        lambda: {"measured": measure(result.network, generator, train, test)},
    )
    text = tables(study.rows)
    print(text)
    study.write(text)
    draw_figures(flags.workdir)
    _draw(result.network, generator, test, flags, training.seed)


def _settings(
    generator: Generator, network: GRUODEConfig, training: TrainingConfig, series: int
) -> dict[str, Any]:
    """What the rows of the tables have in common, whatever their task, its loss and their seed."""
    described = {name: value for name, value in asdict(network).items() if name != "task"}
    for name in FROM_THE_DATA:
        del described[name]
    trained = configs.describe(training)
    del trained["seed"], trained["loss"]
    return {
        "series": {"train": series, "test": TEST_SERIES},
        "generator": asdict(generator),
        "network": described,
        "training": trained,
    }


def _draw(network: Network, generator: Generator, test: Drawn, flags: Flags, seed: int) -> None:
    """Draw the run's own figure beside the others, or say what is missing to do so."""
    try:
        if network.architecture.classifies:
            name, figure = "posterior.png", draw_posterior(network, generator, test)
        else:
            name, figure = "series.png", draw_series(network, generator, seed)
    except ImportError as error:
        print(f"no figure: {command_line.sentence(error)}", file=sys.stderr)
        return
    path = flags.workdir / FIGURES / name
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say; returns the exit status."""
    return command_line.run(run, Flags, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
