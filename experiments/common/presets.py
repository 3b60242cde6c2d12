"""The runs of the stage-cost paper by name, two that fit a small machine, and some for ImageNet.

Table 1 of Puettschneider et al. 2025 names the paper's accuracies. The paper has no runs on
ImageNet; those here have the usual 90 epochs and were never run by us.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ocresnet.systems import counts
from ocresnet.systems.resnet_config import Exits, ResNetConfig
from ocresnet.training.config import TrainingConfig

from ..paper.numbers import TABLE_1

PAPER_BLOCKS = 54
"""Residual blocks of the paper's full networks."""

TRAINING_SAMPLES = {
    "digits": 1437,
    "mnist": 60000,
    "cifar10": 50000,
    "cifar100": 50000,
    "imagenet2012": 1281167,
}
IMAGE_SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}
CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Preset:
    """A run by name.

    Attributes:
      dataset: which data.
      network: the architecture.
      training: everything else.
      expected: test accuracy to expect, and whose figure that is.
    """

    dataset: str
    network: ResNetConfig
    training: TrainingConfig
    expected: str

    @property
    def cost(self) -> float:
        """Multiply-adds of the whole training."""
        return training_cost(self.network, self.training, TRAINING_SAMPLES[self.dataset])


def training_cost(network: ResNetConfig, training: TrainingConfig, samples: int) -> float:
    """Multiply-adds of a training on `samples` images: forward, twice that backward, and exits."""
    macs = counts.multiply_adds(network)
    exits = macs.exits.sum() if training.stage_cost > 0 else 0
    return 3.0 * samples * training.epochs * float(macs.total + exits)


def paper_preset(
    dataset: str, architecture: str, blocks: int, exits: Exits, expected: str = ""
) -> Preset:
    """A run in the paper's setting (A.1); SubResNets of the standard network keep its stages."""
    fields: dict[str, Any] = {
        "image_shape": IMAGE_SHAPES[dataset],
        "classes": CLASSES[dataset],
        "exits": exits,
    }
    if architecture == "standard":
        network = ResNetConfig.standard(PAPER_BLOCKS, **fields).subresnet(blocks)
    else:
        filters = 64 if dataset.startswith("cifar") else 32
        network = ResNetConfig.homogeneous(blocks, filters, **fields)
    training = TrainingConfig(
        stage_cost=0.0 if exits == "none" else 0.02,
        augmentation="crop_flip" if dataset.startswith("cifar") else "none",
    )
    return Preset(dataset, network, training, expected)


def _imagenet_preset(depth: int, exits: Exits, accuracy: str) -> Preset:
    training = TrainingConfig(
        epochs=90,
        batch_size=256,
        milestones=(30, 60, 80),
        stage_cost=0.0 if exits == "none" else 0.02,
        augmentation="resized_crop_flip",
    )
    known = f"{accuracy} (torchvision's ResNet-{depth}, not pre-activated)"
    expected = known if exits == "none" else f"unknown; without stage cost {known}"
    return Preset("imagenet2012", ResNetConfig.imagenet(depth, exits=exits), training, expected)


_RUNS: tuple[tuple[str, int, Exits], ...] = (
    ("54_plain", 54, "none"),
    ("54_shared", 54, "shared"),
    ("54_separate", 54, "separate"),
    ("12_plain", 12, "none"),
)


def _expected(accuracies: Mapping[str, float], blocks: int, exits: Exits) -> str:
    """What Table 1 says of a run, and of the network cut from it."""
    if exits == "none":
        accuracy = f"{accuracies['full plain' if blocks == PAPER_BLOCKS else 'cut plain']:.2f}"
    else:
        accuracy = f"{accuracies[f'full {exits}']:.2f}, cut to 12: {accuracies[f'cut {exits}']:.2f}"
    return f"{accuracy} % (paper, Table 1)"


PRESETS: dict[str, Preset] = {
    f"{dataset}_{architecture}{suffix}": paper_preset(
        dataset, architecture, blocks, exits, _expected(accuracies, blocks, exits)
    )
    for (dataset, architecture), accuracies in TABLE_1.items()
    for suffix, blocks, exits in _RUNS
}

PRESETS |= {
    "imagenet_resnet18_plain": _imagenet_preset(18, "none", "69.8 %"),
    "imagenet_resnet18_shared": _imagenet_preset(18, "shared", "69.8 %"),
    "imagenet_resnet50_plain": _imagenet_preset(50, "none", "76.1 %"),
    "imagenet_resnet50_shared": _imagenet_preset(50, "shared", "76.1 %"),
}

PRESETS["digits_homogeneous12_shared"] = Preset(
    dataset="digits",
    network=ResNetConfig.homogeneous(12, 16, image_shape=IMAGE_SHAPES["digits"]),
    training=TrainingConfig(
        epochs=50,
        batch_size=32,
        milestones=(30, 42),
        weight_decay=2e-3,
        stage_cost=0.05,
        augmentation="crop",
        validation=0.15,
    ),
    expected="96 to 98.6 % (ours; the run of `make demo`)",
)

PRESETS["mnist_homogeneous12_small"] = Preset(
    dataset="mnist",
    network=ResNetConfig.homogeneous(12, 16, image_shape=IMAGE_SHAPES["mnist"], stem_stride=2),
    training=TrainingConfig(
        epochs=10,
        milestones=(6, 9),
        augmentation="crop",
        validation=0.05,
    ),
    expected="99.4 % (ours; ten minutes on two CPU cores)",
)


def preset_for(dataset: str, epochs: int | None = None) -> Preset:
    """Where a run on any small images starts that has no preset of its own.

    Args:
      dataset: name of the data, or path of a `.npz` file.
      epochs: passes over it; None: 30. The learning rate drops after 60 and 85 % of them.
    """
    epochs = 30 if epochs is None else epochs
    milestones = {round(share * epochs) for share in (0.6, 0.85)} - {0, epochs}
    return Preset(
        dataset=dataset,
        network=ResNetConfig.homogeneous(12, 16),
        training=TrainingConfig(
            epochs=epochs,
            batch_size=64,
            milestones=tuple(sorted(milestones)),
            stage_cost=0.05,
            validation=0.1,
        ),
        expected="unknown",
    )


def describe(rate: float) -> str:
    """Every preset with its command, expected accuracy and cost.

    Args:
      rate: multiply-adds a second that this machine trains with.
    """
    lines = []
    for name, preset in PRESETS.items():
        minutes = preset.cost / rate / 60
        about = f"about {minutes:,.0f} minutes" if minutes >= 1 else "less than a minute"
        lines += [
            name,
            f"    python -m experiments.train --preset={name}",
            f"    expected test accuracy: {preset.expected}",
            f"    cost: {preset.cost:.1e} multiply-adds, {about} on this machine; "
            f"{preset.training.epochs} epochs of {TRAINING_SAMPLES[preset.dataset]:,} images",
        ]
    return "\n".join(lines)
