"""The runs of the stage-cost paper, and runs on ImageNet.

Table 1 of Puettschneider et al. 2025 names the paper's accuracies. The paper has no runs on
ImageNet; those here have the usual 90 epochs and were never run by us.
"""

from collections.abc import Mapping
from typing import Any

from ocresnet.systems.architecture import Exits
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import SGD

from ...paper.numbers import TABLE_1
from .preset import CLASSES, IMAGE_SHAPES, Preset

PAPER_BLOCKS = 54
"""Residual blocks of the paper's full networks."""


def paper_network(dataset: str, architecture: str, blocks: int, exits: Exits) -> ResNetConfig:
    """A network of the paper (A.1); SubResNets of the standard one keep its levels."""
    fields: dict[str, Any] = {
        "image_shape": IMAGE_SHAPES[dataset],
        "classes": CLASSES[dataset],
        "exits": exits,
    }
    if architecture == "standard":
        return ResNetConfig.standard(PAPER_BLOCKS, **fields).subresnet(blocks)
    filters = 64 if dataset.startswith("cifar") else 32
    return ResNetConfig.homogeneous(blocks, filters, **fields)


def paper_preset(
    dataset: str, architecture: str, blocks: int, exits: Exits, expected: str = ""
) -> Preset:
    """A run in the paper's setting (A.1)."""
    network = paper_network(dataset, architecture, blocks, exits)
    training = TrainingConfig(
        optimizer=SGD(milestones=(82, 123)),
        stage_cost=0.0 if exits == "none" else 0.02,
        augmentation="crop_flip" if dataset.startswith("cifar") else "none",
    )
    return Preset(dataset, network, training, expected)


def _imagenet_preset(depth: int, exits: Exits, accuracy: str) -> Preset:
    training = TrainingConfig(
        epochs=90,
        batch_size=256,
        optimizer=SGD(milestones=(30, 60, 80)),
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


PAPER: dict[str, Preset] = {
    f"{dataset}_{architecture}{suffix}": paper_preset(
        dataset, architecture, blocks, exits, _expected(accuracies, blocks, exits)
    )
    for (dataset, architecture), accuracies in TABLE_1.items()
    for suffix, blocks, exits in _RUNS
}

IMAGENET: dict[str, Preset] = {
    "imagenet_resnet18_plain": _imagenet_preset(18, "none", "69.8 %"),
    "imagenet_resnet18_shared": _imagenet_preset(18, "shared", "69.8 %"),
    "imagenet_resnet50_plain": _imagenet_preset(50, "none", "76.1 %"),
    "imagenet_resnet50_shared": _imagenet_preset(50, "shared", "76.1 %"),
}
