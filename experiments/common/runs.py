"""A finished run and its data, for the binaries that look at it again."""

from pathlib import Path
from typing import NamedTuple, get_args

import jax

from ocresnet.costs import make_cost
from ocresnet.data.sources import open_dataset
from ocresnet.data.training_data import TrainingData
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.systems.architecture import ResidualArchitecture
from ocresnet.systems.network import Network
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.evaluation import evaluate
from ocresnet.training.restore import Checkpoint, load_configs, restore

from .flag_kinds import Flag, FlagValues, Section


class FinishedRun(NamedTuple):
    """A run read back from its workdir.

    Attributes:
      workdir: its folder.
      network: its network; one with residual blocks has exits (calibrated on the training set if
        it was trained without stage cost).
      training: its training configuration.
      data: its data, split as in training.
      unsplit_data: the same before a validation set was held out.
    """

    workdir: Path
    network: Network
    training: TrainingConfig
    data: TrainingData
    unsplit_data: TrainingData

    def measure(self, network: Network, part: str, *, own_output: bool = False) -> Trajectory:
        """A network on a part of the run's data, with the run's loss, on all local devices.

        Args:
          network: the run's, or another one for the same data.
          part: "train", "validation" or "test".
          own_output: measure the network's own output only.
        """
        training = self.training
        return evaluate(
            network,
            self.data.images(part),
            self.data.labels(part),
            loss=make_cost(training.loss, training.label_smoothing).value,
            devices=jax.local_devices(),
            own_output=own_output,
            execution=training.execution,
        )


class FinishedRunFlags:
    """Which run."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Run")
        self._workdir = section.text("workdir", "Folder of the run.")
        self._data_dir = section.text("data_dir", "Folder of the TFDS data. Default: the run's.")
        self._checkpoint = section.choice(
            "checkpoint",
            get_args(Checkpoint),
            "Which one: the last, or the best on the validation set.",
            "last",
        )

    @property
    def checkpoint(self) -> Checkpoint:
        """Which checkpoint of the run."""
        return self._checkpoint.value

    def load(self) -> FinishedRun:
        """The run that the flags name.

        Raises:
          ValueError: if no workdir is given; and what `load_run` raises.
        """
        return load_run(needed_workdir(self._workdir), self._data_dir.value, self.checkpoint)


def needed_workdir(workdir: Flag) -> Path:
    """The folder that the flag names.

    Raises:
      ValueError: if it names none.
    """
    if not workdir.value:
        raise ValueError("--workdir is needed: the folder of a run of experiments.train.")
    return Path(workdir.value)


def load_run(
    workdir: Path, data_dir: str | None = None, checkpoint: Checkpoint = "last"
) -> FinishedRun:
    """Read network and data of a run.

    Args:
      workdir: folder of the run.
      data_dir: where its TFDS data lies; None is where it lay in training.
      checkpoint: "last", or "best" on the validation split.

    Raises:
      ValueError: if the data is not that of the run.
      FileNotFoundError: if run, checkpoint or data are missing.
    """
    _, training, description = load_configs(workdir)
    network, trained_for = restore(workdir, checkpoint)
    run = records.read_json(workdir / records.RUN)
    source = run.get("dataset") if isinstance(run, dict) else None
    if not source:
        raise ValueError(f"the data of the run in {workdir} was not loaded by name: it is unknown.")
    unsplit_data = open_dataset(source, data_dir or run.get("data_dir"))
    data = unsplit_data.split(training.validation, training.seed)
    if data.fingerprint != description["fingerprint"]:
        raise ValueError(f"the data {source} is not what the run in {workdir} was trained on.")
    blocks = isinstance(network.architecture, ResidualArchitecture)
    if blocks and trained_for.stage_cost == 0:
        network = calibrate_exits(network, data.images("train"), execution=training.execution)
    return FinishedRun(workdir, network, training, data, unsplit_data)
