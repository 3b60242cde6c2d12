"""The flags of a training run: a class for each configuration that they build.

A class defines its flags on the values of one binary and gives the fields that were set; what was
not set is left to the preset.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from ocresnet.costs import Loss
from ocresnet.data.augmentation import Augmentation
from ocresnet.data.sources import NAMES, open_dataset
from ocresnet.data.training_data import TrainingData
from ocresnet.problem import StageCostSchedule
from ocresnet.systems import families
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.system import Execution, Precision, Remat
from ocresnet.training import optimizers
from ocresnet.training.config import StageCostUntil, TrainingConfig
from ocresnet.training.optimizers import Optimizer

from .flag_kinds import FlagValues, Section, did_you_mean, given
from .hosts import HostFlags
from .kind_flags import KindFlags
from .presets import PRESETS, Preset
from .recipe import Recipe, can_shrink, with_recipe
from .starting_points import (
    DEFAULT_NETWORKS,
    DEFAULT_OPTIMIZERS,
    default_optimizer,
    of_family,
    preset_for,
    with_epochs,
    with_fields,
    with_optimizer,
)

FROM_THE_DATA = [field.name for field in fields(Architecture)]
"""Fields of an architecture that are no flags."""

REMOVED_BLOCKS = "bare_levels"
"""A field that only removing blocks sets."""


def family_of(network: Architecture) -> str:
    """The name of a network's family."""
    return families.describe(network)["family"]


def name_of(optimizer: Optimizer) -> str:
    """The name of an optimizer."""
    return optimizers.describe(optimizer)["name"]


class RunFlags:
    """Where a run starts from and where it lies."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Run")
        self._preset = section.choice(
            "preset",
            PRESETS,
            "Run to start from; every other flag overrides a part of it. Default: a small network "
            "on --dataset, of 12 residual blocks unless --architecture says otherwise.",
        )
        self._workdir = section.text(
            "workdir",
            "Folder of the run; a run found there is continued. Default: runs/<preset>, or "
            "runs/<architecture>_<dataset>.",
        )

    def start(self, dataset: str | None, family: str | None, optimizer: str | None) -> Preset:
        """The preset with this family and optimizer, or without one a start that suits them.

        Raises:
          ValueError: if there is neither preset nor data set.
        """
        if self._preset.value is not None:
            preset = PRESETS[self._preset.value]
            if family not in (None, family_of(preset.network)):
                preset = of_family(preset, family)
            if optimizer in (None, name_of(preset.training.optimizer)):
                return preset
            return replace(preset, training=with_optimizer(preset.training, optimizer))
        if dataset is None:
            raise ValueError("--preset or --dataset is needed; --list_presets shows the presets.")
        preset = preset_for(dataset, family or "resnet")
        if optimizer is None:
            return preset
        own = default_optimizer(optimizer, preset.network)
        return replace(preset, training=replace(preset.training, optimizer=own))

    def workdir(self, dataset: str, family: str) -> str:
        """The folder of the run."""
        name = self._preset.value or f"{family}_{Path(dataset.partition('[')[0]).stem}"
        return self._workdir.value or f"runs/{name}"


class DataFlags:
    """Which data, and what becomes of it."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Data")
        self._dataset = section.text(
            "dataset",
            f"One of {', '.join(NAMES)}, or the path of a .npz file; [:n] behind it takes the "
            "first n training samples.",
        )
        self._data_dir = section.text("data_dir", "Folder of the TFDS data (array_record).")
        self._download = section.switch("download", "Let TFDS download and prepare missing data.")
        self._augmentation = section.choice(
            "augmentation",
            get_args(Augmentation),
            "Of training images: crop, crop and flip.",
        )
        self._validation = section.number(
            "validation",
            "Share of the training set held out, to choose depth and best checkpoint.",
        )

    @property
    def dataset(self) -> str | None:
        """Name or path of the data, if it is given.

        Raises:
          ValueError: for a name that there is not.
        """
        name = self._dataset.value
        if name is None or name.endswith(".npz"):
            return name
        base = name.partition("[:")[0]
        if base not in NAMES and not base.endswith(".npz"):
            raise ValueError(
                f"there is no data set {name!r}.{did_you_mean(base, NAMES)} --dataset must be one "
                f"of {', '.join(NAMES)}, or the path of a .npz file."
            )
        return name

    def fields(self) -> dict[str, Any]:
        """Of `TrainingConfig`."""
        return given(augmentation=self._augmentation, validation=self._validation)

    def open(self, dataset: str) -> TrainingData:
        """Open the data called `dataset`."""
        return open_dataset(dataset, self._data_dir.value, download=self._download.value)


class ArchitectureFlags:
    """The network."""

    def __init__(self, values: FlagValues, families: Collection[str] = ()) -> None:
        """Of these families; without any, of all."""
        self._alone = next(iter(families)) if len(families) == 1 else None
        self._flags = KindFlags(
            Section(values, "Network"),
            "architecture",
            {name: DEFAULT_NETWORKS[name] for name in families or DEFAULT_NETWORKS},
            "Family of the network. Default: the preset's, or resnet. What follows describes one "
            "family or several; the defaults are those without a preset of that family. One number "
            "of blocks is split evenly over the levels of a resnet. Image shape and classes are "
            "those of the data.",
            leave_out=(*FROM_THE_DATA, REMOVED_BLOCKS),
        )

    @property
    def family(self) -> str | None:
        """The family, if it is given, or there is no other."""
        return self._flags.kind or self._alone

    def build(self, start: Architecture) -> Architecture:
        """The architecture to start from, with what was given."""
        return with_fields(start, self._flags.given(family_of(start)))


class ObjectiveFlags:
    """What the network is trained for."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Objective")
        self._stage_cost = section.number(
            "stage_cost", "gamma, weight of the intermediate losses; 0 is standard training."
        )
        self._schedule = section.choice(
            "stage_cost_schedule", get_args(StageCostSchedule), "How gamma is spread over depth."
        )
        self._recipe = section.choice(
            "recipe",
            get_args(Recipe),
            "How the network comes to its depth. shrink: the depth rule cuts after a tenth and a "
            "quarter of the epochs, and what is left is trained alone; paper: stage costs to the "
            "end, as in the stage-cost paper. Default: the preset's; without one shrink for a "
            "resnet with stage cost, shared exits and 6 epochs or more.",
        )
        self._shrink = section.wholes(
            "shrink",
            "Epochs, separated by commas, after which the depth rule cuts and the smaller network "
            "trains on; without any it is not cut. Default: those of the recipe.",
        )
        self._shrink_tolerance = section.number(
            "shrink_tolerance",
            "Percentage points that each of these cuts may lose. Default: the recipe's 1, or 0.5 "
            "of cuts that are given.",
        )
        self._until = section.choice(
            "stage_cost_until",
            get_args(StageCostUntil),
            "Whether gamma is paid after the last of these cuts.",
        )
        self._loss = section.choice("loss", get_args(Loss), "Per-sample loss.")
        self._label_smoothing = section.number(
            "label_smoothing", "Share of the target spread evenly."
        )

    def build(self, network: Architecture, start: TrainingConfig, recipe: Recipe) -> TrainingConfig:
        """The training to start from, with what was given.

        Args:
          network: what is trained.
          start: the training to start from.
          recipe: of that start; it is left where it does not fit, unless a flag wants it.

        Raises:
          ValueError: for an impossible value, or cuts beside the paper's recipe.
        """
        wanted, training = self._recipe.value, replace(start, **self._fields())
        if self._shrink.value is not None:
            if wanted == "paper" and self._shrink.value:
                raise ValueError("--recipe=paper has no cuts: leave out --shrink, or --recipe.")
            return training
        if wanted is None and not can_shrink(network, training):
            return training
        cut = with_recipe(training, wanted or recipe)
        return replace(cut, **given(shrink_tolerance=self._shrink_tolerance))

    def _fields(self) -> dict[str, Any]:
        return given(
            stage_cost=self._stage_cost,
            stage_cost_schedule=self._schedule,
            shrink=self._shrink,
            shrink_tolerance=self._shrink_tolerance,
            stage_cost_until=self._until,
            loss=self._loss,
            label_smoothing=self._label_smoothing,
        )


class TrainingFlags:
    """How long it is trained."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Training")
        self._epochs = section.whole(
            "epochs",
            "Passes over the training set; the preset's milestones stay at their shares of them.",
        )
        self._batch_size = section.whole("batch_size", "Samples a step, over all devices.")
        self._average_decay = section.number(
            "average_decay",
            "Of a moving average of the network, which is then evaluated; 0: none.",
        )
        self._seed = section.whole("seed", "Of initialisation, data order and augmentation.")

    def build(self, start: TrainingConfig) -> TrainingConfig:
        """The training to start from, with what was given.

        Raises:
          ValueError: for an impossible value.
        """
        if self._epochs.value is not None:
            start = with_epochs(start, self._epochs.value)
        rest = given(
            batch_size=self._batch_size, average_decay=self._average_decay, seed=self._seed
        )
        return replace(start, **rest)


class OptimizerFlags:
    """How the parameters move."""

    def __init__(self, values: FlagValues) -> None:
        self._flags = KindFlags(
            Section(values, "Optimizer"),
            "optimizer",
            DEFAULT_OPTIMIZERS,
            "How the parameters move. Default: the preset's; without preset sgd for "
            "--architecture=resnet and adamw for others. Another one than the preset's has its own "
            "learning rate, and keeps schedule, weight decay and, but for ocnopt, clipping. What "
            "follows describes one optimizer or several; the defaults are those without preset.",
        )

    @property
    def name(self) -> str | None:
        """Which optimizer, if it is given."""
        return self._flags.kind

    def build(self, start: Optimizer) -> Optimizer:
        """The optimizer to start from, with what was given.

        Raises:
          ValueError: for an impossible value, or milestones of another schedule.
        """
        values = self._flags.given(name_of(start))
        if "milestones" in values and values.setdefault("schedule", "milestones") != "milestones":
            raise ValueError(
                f"--milestones belongs to --schedule=milestones, but it is {values['schedule']}."
            )
        return replace(start, **values)


class ExecutionFlags:
    """How it is computed, and what is kept on the way."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Execution")
        self._precision = section.choice(
            "precision",
            get_args(Precision)[:2],
            "Dtype of activations; parameters stay float32.",
        )
        self._remat = section.choice("remat", get_args(Remat), "What the backward pass recomputes.")
        self._unroll = section.switch("unroll", "Run blocks one by one: slow to compile.", None)
        self._keep_checkpoints = section.whole("keep_checkpoints", "Last checkpoints to keep.", 2)
        self._tensorboard = section.switch("tensorboard", "Also write TensorBoard files.")

    def build(self, start: Execution) -> Execution:
        """The execution to start from, with what was given."""
        return replace(
            start, **given(precision=self._precision, remat=self._remat, unroll=self._unroll)
        )

    def records(self) -> dict[str, Any]:
        """What `fit` is told about checkpoints and TensorBoard."""
        return given(keep_checkpoints=self._keep_checkpoints, tensorboard=self._tensorboard)


@dataclass(frozen=True)
class WantedRun:
    """What the flags ask for.

    Attributes:
      dataset: name, or path of a `.npz` file.
      network: the architecture, its data-dependent fields not yet filled in.
      training: everything else that determines the numbers.
      workdir: folder of the run.
    """

    dataset: str
    network: Architecture
    training: TrainingConfig
    workdir: str


class TrainingRunFlags:
    """All flags of a training run."""

    def __init__(self, values: FlagValues, families: Collection[str] = ()) -> None:
        """Of networks of these families; without any, of all."""
        self._run = RunFlags(values)
        self.data = DataFlags(values)
        self._architecture = ArchitectureFlags(values, families)
        self._objective = ObjectiveFlags(values)
        self._training = TrainingFlags(values)
        self._optimizer = OptimizerFlags(values)
        self.execution = ExecutionFlags(values)
        self.hosts = HostFlags(values)

    def wanted(self, recipe: Recipe | None = None) -> WantedRun:
        """The preset, with what was overridden.

        Args:
          recipe: that of the binary, instead of the preset's.

        Raises:
          ValueError: if a value is impossible.
        """
        family, optimizer = self._architecture.family, self._optimizer.name
        start = self._run.start(self.data.dataset, family, optimizer)
        dataset = self.data.dataset or start.dataset
        network = self._architecture.build(start.network)
        training = self._training.build(start.training)
        training = replace(
            training,
            **self.data.fields(),
            optimizer=self._optimizer.build(training.optimizer),
            execution=self.execution.build(training.execution),
        )
        training = self._objective.build(network, training, recipe or start.recipe)
        return WantedRun(
            dataset=dataset,
            network=network,
            training=training,
            workdir=self._run.workdir(dataset, family_of(start.network)),
        )
