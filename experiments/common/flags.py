"""The flags of a training run: a class for each configuration that they build.

A class defines its flags on the values of one binary and gives the fields that were set; what was
not set is left to the preset.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ocresnet.data.augmentation import Augmentation
from ocresnet.data.sources import NAMES, open_dataset
from ocresnet.data.training_data import TrainingData
from ocresnet.stage_cost.objective import Loss, StageCostSchedule, WeightDecayOn
from ocresnet.systems.resnet_config import Block, Execution, Exits, Precision, ResNetConfig, Stem
from ocresnet.systems.system import Remat
from ocresnet.training.config import TrainingConfig

from .flag_kinds import FlagValues, Section, did_you_mean, given
from .hosts import HostFlags
from .presets import PAPER_BLOCKS, PRESETS, Preset, preset_for


class RunFlags:
    """Where a run starts from and where it lies."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Run")
        self._preset = section.choice(
            "preset",
            PRESETS,
            "Run to start from; every other flag overrides a part of it. Default: a network of 12 "
            "blocks that suits small images, on --dataset.",
        )
        self._workdir = section.text(
            "workdir",
            "Folder of the run; a run found there is continued. Default: runs/<preset>, or "
            "runs/<dataset>.",
        )

    def start(self, dataset: str | None, epochs: int | None) -> Preset:
        """The preset, or without one a start that suits the data set and the epochs.

        Raises:
          ValueError: if there is neither preset nor data set.
        """
        if self._preset.value is not None:
            return PRESETS[self._preset.value]
        if dataset is None:
            raise ValueError("--preset or --dataset is needed; --list_presets shows the presets.")
        return preset_for(dataset, epochs)

    def workdir(self, dataset: str) -> str:
        """The folder of the run."""
        name = self._preset.value or Path(dataset.partition("[")[0]).stem
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

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Network")
        self._blocks = section.wholes(
            "blocks",
            "Residual blocks: one number (split evenly over the stages; the first ones of a "
            "SubResNet), or one a stage.",
        )
        self._filters = section.wholes("filters", "Channels of each stage, e.g. 64 or 16,32,64.")
        self._block = section.choice("block", get_args(Block), "Residual branches.")
        self._stem = section.choice("stem", get_args(Stem), "One 3x3 convolution, or ImageNet's.")
        self._stem_stride = section.whole("stem_stride", "Stride of the first convolution.")
        self._exits = section.choice(
            "exits", get_args(Exits), "Intermediate outputs: none, shared heads, separate heads."
        )

    def build(self, start: ResNetConfig) -> ResNetConfig:
        """The architecture to start from, with what was given."""
        filters = self._filters.value or start.filters
        blocks = self._blocks.value or start.blocks
        if self._blocks.value is None and len(filters) != len(blocks):
            blocks = (start.depth,)
        if len(blocks) == 1 and len(filters) > 1:
            blocks = _over_stages(blocks[0], filters, of_subresnet=0 in start.blocks)
        named = given(
            block=self._block, stem=self._stem, stem_stride=self._stem_stride, exits=self._exits
        )
        return replace(start, blocks=blocks, filters=filters, **named)


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
        self._loss = section.choice("loss", get_args(Loss), "Per-sample loss.")
        self._label_smoothing = section.number(
            "label_smoothing", "Share of the target spread evenly."
        )
        self._weight_decay = section.number("weight_decay", "lambda, of lambda/2 |w|^2.")
        self._weight_decay_on = section.choice(
            "weight_decay_on", get_args(WeightDecayOn), "Which parameters decay (Theorem 1)."
        )

    def fields(self) -> dict[str, Any]:
        """Of `TrainingConfig`."""
        return given(
            stage_cost=self._stage_cost,
            stage_cost_schedule=self._schedule,
            loss=self._loss,
            label_smoothing=self._label_smoothing,
            weight_decay=self._weight_decay,
            weight_decay_on=self._weight_decay_on,
        )


class OptimizerFlags:
    """How its parameters move, and for how long."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Optimizer")
        self._epochs = section.whole("epochs", "Passes over the training set.")
        self._batch_size = section.whole("batch_size", "Samples a step, over all devices.")
        self._learning_rate = section.number("learning_rate", "Of SGD, before the schedule.")
        self._momentum = section.number("momentum", "Of SGD.")
        self._milestones = section.wholes(
            "milestones", "Epochs after which the learning rate drops, e.g. 82,123."
        )
        self._decay_factor = section.number("decay_factor", "Learning rate factor at a milestone.")
        self._warmup_epochs = section.number("warmup_epochs", "Epochs of linear warm-up.")
        self._gradient_clip = section.number("gradient_clip", "Largest gradient norm; 0: no limit.")
        self._average_decay = section.number(
            "average_decay",
            "Of a moving average of the network, which is then evaluated; 0: none.",
        )
        self._seed = section.whole("seed", "Of initialisation, data order and augmentation.")

    @property
    def epochs(self) -> int | None:
        """Passes over the training set, if they are given."""
        return self._epochs.value

    def fields(self, start: TrainingConfig) -> dict[str, Any]:
        """Of `TrainingConfig`.

        Raises:
          ValueError: if a milestone lies past the last epoch.
        """
        milestones = self._milestones.value or ()
        epochs = start.epochs if self.epochs is None else self.epochs
        late = [milestone for milestone in milestones if milestone >= epochs]
        if late:
            raise ValueError(
                f"--milestones has {late[0]}, but the run is over after {epochs} epochs: choose "
                "milestones below that."
            )
        return given(
            epochs=self._epochs,
            batch_size=self._batch_size,
            learning_rate=self._learning_rate,
            momentum=self._momentum,
            milestones=self._milestones,
            decay_factor=self._decay_factor,
            warmup_epochs=self._warmup_epochs,
            gradient_clip=self._gradient_clip,
            average_decay=self._average_decay,
            seed=self._seed,
        )


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
    network: ResNetConfig
    training: TrainingConfig
    workdir: str


class TrainingFlags:
    """All flags of a training run."""

    def __init__(self, values: FlagValues) -> None:
        self._run = RunFlags(values)
        self.data = DataFlags(values)
        self._architecture = ArchitectureFlags(values)
        self._objective = ObjectiveFlags(values)
        self._optimizer = OptimizerFlags(values)
        self.execution = ExecutionFlags(values)
        self.hosts = HostFlags(values)

    def wanted(self) -> WantedRun:
        """The preset, with what was overridden.

        Raises:
          ValueError: if a value is impossible.
        """
        start = self._run.start(self.data.dataset, self._optimizer.epochs)
        dataset = self.data.dataset or start.dataset
        training = replace(
            start.training,
            **self.data.fields(),
            **self._objective.fields(),
            **self._optimizer.fields(start.training),
            execution=self.execution.build(start.training.execution),
        )
        return WantedRun(
            dataset=dataset,
            network=self._architecture.build(start.network),
            training=training,
            workdir=self._run.workdir(dataset),
        )


def _over_stages(blocks: int, filters: Sequence[int], of_subresnet: bool) -> tuple[int, ...]:
    """`blocks` split evenly over the stages; a SubResNet has the first ones of the paper's 54."""
    filters = tuple(filters)
    if of_subresnet:
        return ResNetConfig.standard(PAPER_BLOCKS, filters).subresnet(blocks).blocks
    return ResNetConfig.standard(blocks, filters).blocks
