"""The flags of a training run, and what they make of a preset."""

from dataclasses import dataclass, replace
from typing import get_args

import jax
from absl import flags

from experiments.presets import PAPER_BLOCKS, PRESETS
from ocresnet.data.augmentation import Augmentation
from ocresnet.data.sources import NAMES
from ocresnet.stage_cost.objective import Loss, StageCostSchedule, WeightDecayOn
from ocresnet.systems.resnet_config import Block, Exits, Precision, ResNetConfig, Stem
from ocresnet.systems.system import Remat
from ocresnet.training.config import TrainingConfig

PRESET = flags.DEFINE_enum(
    "preset", None, list(PRESETS), "Run to start from; every other flag overrides a part of it."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; a run found there is continued. Default: runs/<preset>."
)

DATASET = flags.DEFINE_string(
    "dataset", None, f"One of {', '.join(NAMES)}, or the path of a .npz file."
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the TFDS data (array_record).")
DOWNLOAD = flags.DEFINE_bool("download", False, "Let TFDS download and prepare missing data.")
AUGMENTATION = flags.DEFINE_enum(
    "augmentation", None, get_args(Augmentation), "Of training images: random crop, crop and flip."
)
VALIDATION = flags.DEFINE_float(
    "validation", None, "Share of the training set held out, to choose depth and best checkpoint."
)

BLOCKS = flags.DEFINE_list(
    "blocks",
    None,
    "Residual blocks: one number (split evenly over the stages; the first ones of a SubResNet), or "
    "one a stage.",
)
FILTERS = flags.DEFINE_list("filters", None, "Channels of each stage, e.g. 64 or 16,32,64.")
BLOCK = flags.DEFINE_enum("block", None, get_args(Block), "Residual branches.")
STEM = flags.DEFINE_enum("stem", None, get_args(Stem), "One 3x3 convolution, or ImageNet's.")
STEM_STRIDE = flags.DEFINE_integer("stem_stride", None, "Stride of the first convolution.")
EXITS = flags.DEFINE_enum(
    "exits", None, get_args(Exits), "Intermediate outputs: none, shared heads, separate heads."
)

STAGE_COST = flags.DEFINE_float(
    "stage_cost", None, "gamma, weight of the intermediate losses; 0 is standard training."
)
STAGE_COST_SCHEDULE = flags.DEFINE_enum(
    "stage_cost_schedule", None, get_args(StageCostSchedule), "How gamma is spread over depth."
)
LOSS = flags.DEFINE_enum("loss", None, get_args(Loss), "Per-sample loss.")
LABEL_SMOOTHING = flags.DEFINE_float("label_smoothing", None, "Share of the target spread evenly.")
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", None, "lambda, of lambda/2 |w|^2.")
WEIGHT_DECAY_ON = flags.DEFINE_enum(
    "weight_decay_on", None, get_args(WeightDecayOn), "Which parameters decay (Theorem 1)."
)

EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over the training set.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Samples a step, over all devices.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Of SGD, before the schedule.")
MOMENTUM = flags.DEFINE_float("momentum", None, "Of SGD.")
MILESTONES = flags.DEFINE_list(
    "milestones", None, "Epochs after which the learning rate drops, e.g. 82,123."
)
DECAY_FACTOR = flags.DEFINE_float("decay_factor", None, "Learning rate factor at a milestone.")
WARMUP_EPOCHS = flags.DEFINE_float("warmup_epochs", None, "Epochs of linear warm-up.")
GRADIENT_CLIP = flags.DEFINE_float("gradient_clip", None, "Largest gradient norm; 0: no limit.")
AVERAGE_DECAY = flags.DEFINE_float(
    "average_decay", None, "Of a moving average of the network, which is then evaluated; 0: none."
)
SEED = flags.DEFINE_integer("seed", None, "Of initialisation, data order and augmentation.")

PRECISION = flags.DEFINE_enum(
    "precision", None, get_args(Precision)[:2], "Dtype of activations; parameters stay float32."
)
REMAT = flags.DEFINE_enum("remat", None, get_args(Remat), "What the backward pass recomputes.")
UNROLL = flags.DEFINE_bool("unroll", None, "Run blocks one by one: slow to compile.")
DEVICES = flags.DEFINE_integer("devices", None, "Local devices to use. Default: all.")
KEEP_CHECKPOINTS = flags.DEFINE_integer("keep_checkpoints", 2, "Last checkpoints to keep.")
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Also write TensorBoard files.")

GROUPS: dict[str, list[flags.FlagHolder]] = {
    "Run": [PRESET, WORKDIR],
    "Data": [DATASET, DATA_DIR, DOWNLOAD, AUGMENTATION, VALIDATION],
    "Network": [BLOCKS, FILTERS, BLOCK, STEM, STEM_STRIDE, EXITS],
    "Objective": [
        STAGE_COST,
        STAGE_COST_SCHEDULE,
        LOSS,
        LABEL_SMOOTHING,
        WEIGHT_DECAY,
        WEIGHT_DECAY_ON,
    ],
    "Optimizer": [
        EPOCHS,
        BATCH_SIZE,
        LEARNING_RATE,
        MOMENTUM,
        MILESTONES,
        DECAY_FACTOR,
        WARMUP_EPOCHS,
        GRADIENT_CLIP,
        AVERAGE_DECAY,
        SEED,
    ],
    "Execution": [PRECISION, REMAT, UNROLL, DEVICES, KEEP_CHECKPOINTS, TENSORBOARD],
}


@dataclass(frozen=True)
class RunFlags:
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


def run_flags() -> RunFlags:
    """Read the flags: the preset, with what was overridden.

    Raises:
      ValueError: if a value is impossible.
    """
    if PRESET.value is None:
        raise ValueError(f"--preset is needed; it must be one of {', '.join(PRESETS)}.")
    preset = PRESETS[PRESET.value]
    return RunFlags(
        dataset=preset.dataset if DATASET.value is None else DATASET.value,
        network=_network(preset.network),
        training=_training(preset.training),
        workdir=WORKDIR.value or f"runs/{PRESET.value}",
    )


def chosen_devices() -> list[jax.Device]:
    """The first `--devices` local devices, or all.

    Raises:
      ValueError: if there are not that many.
    """
    devices = jax.local_devices()
    if DEVICES.value is None:
        return devices
    if not 1 <= DEVICES.value <= len(devices):
        raise ValueError(
            f"--devices is {DEVICES.value}, but this machine has {len(devices)}: choose 1 to "
            f"{len(devices)}."
        )
    return devices[: DEVICES.value]


def _network(network: ResNetConfig) -> ResNetConfig:
    filters = network.filters if FILTERS.value is None else _integers("filters", FILTERS.value)
    blocks = network.blocks if BLOCKS.value is None else _integers("blocks", BLOCKS.value)
    if BLOCKS.value is None and len(filters) != len(blocks):
        blocks = (network.depth,)
    if len(blocks) == 1 and len(filters) > 1:
        blocks = _over_stages(blocks[0], filters, of_subresnet=0 in network.blocks)
    given = _given(block=BLOCK, stem=STEM, stem_stride=STEM_STRIDE, exits=EXITS)
    return replace(network, blocks=blocks, filters=filters, **given)


def _over_stages(blocks: int, filters: tuple[int, ...], of_subresnet: bool) -> tuple[int, ...]:
    """`blocks` split evenly over the stages; a SubResNet has the first ones of the paper's 54."""
    if of_subresnet:
        return ResNetConfig.standard(PAPER_BLOCKS, filters).subresnet(blocks).blocks
    return ResNetConfig.standard(blocks, filters).blocks


def _training(training: TrainingConfig) -> TrainingConfig:
    fields = _given(
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        decay_factor=DECAY_FACTOR,
        warmup_epochs=WARMUP_EPOCHS,
        weight_decay=WEIGHT_DECAY,
        weight_decay_on=WEIGHT_DECAY_ON,
        stage_cost=STAGE_COST,
        stage_cost_schedule=STAGE_COST_SCHEDULE,
        loss=LOSS,
        label_smoothing=LABEL_SMOOTHING,
        gradient_clip=GRADIENT_CLIP,
        average_decay=AVERAGE_DECAY,
        augmentation=AUGMENTATION,
        validation=VALIDATION,
        seed=SEED,
    )
    if MILESTONES.value is not None:
        fields["milestones"] = _integers("milestones", MILESTONES.value)
    execution = _given(precision=PRECISION, remat=REMAT, unroll=UNROLL)
    fields["execution"] = replace(training.execution, **execution)
    return replace(training, **fields)


def _given(**holders: flags.FlagHolder) -> dict:
    """The values of the flags that were given."""
    return {name: holder.value for name, holder in holders.items() if holder.value is not None}


def _integers(name: str, values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise ValueError(
            f"--{name} is {','.join(values)!r}, but must be integers separated by commas."
        ) from None
