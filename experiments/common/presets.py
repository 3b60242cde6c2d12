"""Runs by name: of the stage-cost paper, of the studies of OCNOpt and of SNOpt, and for ImageNet.

Table 1 of Puettschneider et al. 2025 names the paper's accuracies. The paper has no runs on
ImageNet; those here have the usual 90 epochs and were never run by us. The networks of the studies
are those of DDPNOpt (five dense layers of width 10 to 32; four convolutions of 32 filters and two
dense layers), where the strides and the last widths are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ocresnet.data.points import TABLES
from ocresnet.systems import counts, families
from ocresnet.systems.architecture import Architecture, Exits, ResidualArchitecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.solver_settings import SolverChoice, foreign_fields
from ocresnet.systems.system import Execution
from ocresnet.systems.transformer import TransformerConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import OPTIMIZERS, SGD, AdamW, OCNOpt, Optimizer

from ..paper.numbers import TABLE_1
from .recipe import Recipe

PAPER_BLOCKS = 54
"""Residual blocks of the paper's full networks."""

TRAINING_SAMPLES = {
    "wine": 142,
    "digits": 1437,
    "mnist": 60000,
    "cifar10": 50000,
    "cifar100": 50000,
    "imagenet2012": 1281167,
}
IMAGE_SHAPES = {
    "wine": (1, 13, 1),
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}
CLASSES = {"wine": 3, "digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Preset:
    """A run by name.

    Attributes:
      dataset: which data.
      network: the architecture.
      training: everything else.
      expected: test accuracy to expect, and whose figure that is.
      recipe: how the network comes to its depth (`recipe.py`).
    """

    dataset: str
    network: Architecture
    training: TrainingConfig
    expected: str
    recipe: Recipe = "paper"

    @property
    def cost(self) -> float:
        """Multiply-adds of the whole training."""
        return training_cost(self.network, self.training, TRAINING_SAMPLES[self.dataset])


def training_cost(network: Architecture, training: TrainingConfig, samples: int) -> float:
    """Multiply-adds of a training on `samples` images: forward, twice that backward, and exits."""
    macs = counts.multiply_adds(network)
    exits = macs.exits.sum() if training.stage_cost > 0 else 0
    return 3.0 * samples * training.epochs * float(macs.total + exits)


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
        optimizer=SGD(milestones=(30, 42), weight_decay=2e-3),
        stage_cost=0.05,
        augmentation="crop",
        validation=0.15,
    ),
    expected="96 to 98.6 % (ours; the run of `make demo`)",
)

PRESETS["digits_residual_mlp12_shared"] = Preset(
    dataset="digits",
    network=ResidualMLPConfig(blocks=12, width=64, image_shape=IMAGE_SHAPES["digits"]),
    training=TrainingConfig(
        epochs=50,
        batch_size=32,
        optimizer=AdamW(),
        stage_cost=0.05,
        validation=0.15,
    ),
    expected="91 to 94 % (ours)",
)


def _transformer_preset(
    dataset: str,
    patch: int,
    stage_cost: float,
    expected: str = "unknown (not run by us yet)",
    **choices: Any,
) -> Preset:
    """A small transformer, with shared exits where a stage cost is paid on them."""
    network = TransformerConfig(
        blocks=6,
        width=64,
        heads=4,
        hidden=128,
        patch=patch,
        image_shape=IMAGE_SHAPES[dataset],
        exits="shared" if stage_cost > 0 else "none",
    )
    optimizer = AdamW(learning_rate=3e-3, warmup_epochs=2)
    training = TrainingConfig(optimizer=optimizer, stage_cost=stage_cost, **choices)
    return Preset(dataset, network, training, expected)


_ON_DIGITS = {"epochs": 40, "batch_size": 32, "validation": 0.15}

PRESETS |= {
    "digits_transformer": _transformer_preset(
        "digits", 4, 0.0, "92.5 % (ours; one seed)", **_ON_DIGITS
    ),
    "digits_transformer_shared": _transformer_preset(
        "digits", 4, 0.1, "91.7 to 93.6 %, cut to 2 or 3: 92.5 to 93.1 % (ours)", **_ON_DIGITS
    ),
    "mnist_transformer_shared": _transformer_preset(
        "mnist", 7, 0.1, epochs=20, augmentation="crop", validation=0.05
    ),
    "cifar10_transformer_shared": _transformer_preset(
        "cifar10", 4, 0.1, epochs=50, augmentation="crop_flip", validation=0.05
    ),
}

PRESETS["digits_neural_ode"] = Preset(
    dataset="digits",
    network=NeuralODEConfig(solver="rk4", steps=8, image_shape=IMAGE_SHAPES["digits"]),
    training=TrainingConfig(
        epochs=40,
        batch_size=32,
        optimizer=AdamW(),
        stage_cost=0.05,
        validation=0.15,
    ),
    expected="90 to 91 % (ours; cut from 8 steps to 6, the same)",
)

PRESETS["mnist_homogeneous12_small"] = Preset(
    dataset="mnist",
    network=ResNetConfig.homogeneous(12, 16, image_shape=IMAGE_SHAPES["mnist"], stem_stride=2),
    training=TrainingConfig(
        epochs=10,
        optimizer=SGD(milestones=(6, 9)),
        # gamma N is the paper's, 0.02 * 54: at its gamma few of so few blocks could be cut.
        stage_cost=0.09,
        augmentation="crop",
        validation=0.05,
    ),
    expected="99.4 % with --recipe=paper --stage_cost=0.02 (ours; ten minutes on two cores)",
    recipe="shrink",
)


def _study_preset(dataset: str, network: Architecture, expected: str) -> Preset:
    """A network of the studies of OCNOpt with OCNOpt: 20 epochs as there, and a cosine to end."""
    small = TRAINING_SAMPLES[dataset] < 10_000
    training = TrainingConfig(
        epochs=20,
        batch_size=32 if small else 128,
        optimizer=OCNOpt(learning_rate=0.03, rollout="nonlinear", region="smaller"),
        stage_cost=0.0,
    )
    network = replace(network, image_shape=IMAGE_SHAPES[dataset], classes=CLASSES[dataset])
    return Preset(dataset, network, training, expected)


def _ode_preset(dataset: str, epochs: int, weight_decay: float, accuracy: str) -> Preset:
    """The convolutional Neural ODE of SNOpt, with its baseline: Adam, at a constant rate."""
    network = NeuralODEConfig(
        vector_field="convolutional",
        width=64,
        strides=(1, 2, 2),
        activation="relu",
        solver="dopri5",
        rtol=1e-3,
        atol=1e-3,
        adjoint="backsolve",
        exits="none",
        image_shape=IMAGE_SHAPES[dataset],
    )
    training = TrainingConfig(
        epochs=epochs,
        optimizer=AdamW(schedule="constant", weight_decay=weight_decay),
        stage_cost=0.0,
    )
    return Preset(dataset, network, training, f"{accuracy} (SNOpt, Adam; not run by us yet)")


PRESETS |= {
    "mnist_neural_ode": _ode_preset("mnist", 5, 0.0, "98.83 %"),
    "cifar10_neural_ode": _ode_preset("cifar10", 20, 1e-3, "77.41 %"),
}

_DENSE = MLPConfig(hidden=(32, 32, 32, 32))
_CONVOLUTIONS = CNNConfig(filters=(32, 32, 32, 32), strides=(2, 2, 2, 1), hidden=(64,))
_SMALL_CONVOLUTIONS = CNNConfig(filters=(8, 16), strides=(1, 2), hidden=(32,))
_INCEPTION = InceptionConfig((16, 32), (8, 16), (2, 2), stem_filters=16)
_SMALL_INCEPTION = InceptionConfig((4, 8), (4, 4), (1, 2), stem_filters=8)
_TANH = replace(_DENSE, activation="tanh")

PRESETS |= {
    "wine_fcn": _study_preset("wine", _TANH, "100 % (ours; 36 samples)"),
    "digits_fcn": _study_preset("digits", _TANH, "92 to 93 % (ours)"),
    "digits_cnn": _study_preset("digits", _SMALL_CONVOLUTIONS, "93 to 94 % (ours)"),
    "digits_resnet": _study_preset(
        "digits", ResNetConfig.homogeneous(4, 8, exits="none"), "96 % (ours)"
    ),
    "digits_inception": _study_preset("digits", _SMALL_INCEPTION, "92 to 94 % (ours)"),
    "mnist_fcn": _study_preset("mnist", _DENSE, "97 % (ours)"),
    "mnist_cnn": _study_preset("mnist", _CONVOLUTIONS, "unknown (not run by us yet)"),
    "mnist_inception": _study_preset("mnist", _INCEPTION, "unknown (not run by us yet)"),
    "cifar10_cnn": _study_preset("cifar10", _CONVOLUTIONS, "unknown (not run by us yet)"),
    "cifar10_inception": _study_preset("cifar10", _INCEPTION, "unknown (not run by us yet)"),
}

_SMALL: dict[type[Architecture], Architecture] = {
    ResNetConfig: ResNetConfig.homogeneous(12, 16),
    NeuralODEConfig: NeuralODEConfig(solver="rk4", steps=8),
    FlowConfig: FlowConfig(solver="rk4", steps=8),
    GRUODEConfig: GRUODEConfig(solver="rk4", steps=1),
}
DEFAULT_NETWORKS: dict[str, Architecture] = {
    name: _SMALL[family] if family in _SMALL else family()
    for name, family in families.FAMILIES.items()
}
"""A network of each family that suits small images."""

DEFAULT_OPTIMIZERS: dict[str, Optimizer] = {
    name: optimizer() for name, optimizer in OPTIMIZERS.items()
}


def preset_for(dataset: str, family: str = "resnet") -> Preset:
    """Where a run on any small images starts that has no preset of its own.

    Args:
      dataset: name of the data, or path of a `.npz` file.
      family: of the network. Without batch norm, the rate of SGD would have to be found for every
        data set: other families than "resnet" have AdamW.
    """
    network = DEFAULT_NETWORKS[family]
    if not network.classifies:
        return Preset(dataset, network, _flow_training(dataset), "unknown")
    return Preset(
        dataset=dataset,
        network=network,
        training=TrainingConfig(
            epochs=30,
            batch_size=64,
            optimizer=SGD(milestones=(0.6, 0.85)) if family == "resnet" else AdamW(),
            stage_cost=0.05 if isinstance(network, ResidualArchitecture) else 0.0,
            validation=0.1,
        ),
        expected="unknown",
        recipe="shrink" if family == "resnet" else "paper",
    )


def _flow_training(dataset: str) -> TrainingConfig:
    """Of a flow; a table of a few hundred samples is soon learned by heart."""
    small = dataset in TABLES
    return TrainingConfig(
        epochs=150 if small else 40,
        batch_size=64 if small else 256,
        optimizer=AdamW(learning_rate=5e-3),
        stage_cost=0.0,
        loss="negative_log_likelihood",
        validation=0.15 if small else 0.1,
        execution=Execution(remat="none"),
    )


def of_family(preset: Preset, family: str) -> Preset:
    """A preset with the default network of another family, without stage cost where it has no
    exits to pay it on, and with the likelihood as its loss where it tells no classes apart."""
    network = DEFAULT_NETWORKS[family]
    if network.outputs == 1:
        preset = replace(preset, training=replace(preset.training, stage_cost=0.0))
    if not network.classifies:
        likelihood = replace(preset.training, loss="negative_log_likelihood", label_smoothing=0.0)
        preset = replace(preset, training=likelihood)
    return replace(preset, network=network, recipe="paper")


def with_fields(network: Architecture, given: Mapping[str, Any]) -> Architecture:
    """A network with these fields; of a residual network one number of blocks is split evenly over
    its levels, and a SubResNet has the first ones of the paper's 54. Another solver of an ODE
    leaves behind what it does not have.

    Raises:
      ValueError: for an impossible network.
    """
    if isinstance(network, SolverChoice) and "solver" in given:
        given = {**dict.fromkeys(foreign_fields(given["solver"])), **given}
    if not isinstance(network, ResNetConfig):
        return replace(network, **given)
    filters, blocks = (given.get(name, getattr(network, name)) for name in ("filters", "blocks"))
    if "blocks" not in given and len(filters) != len(blocks):
        blocks = (network.depth,)
    if len(blocks) == 1 and len(filters) > 1:
        of_subresnet = 0 in network.blocks
        whole = ResNetConfig.standard(PAPER_BLOCKS if of_subresnet else blocks[0], filters)
        blocks = whole.subresnet(blocks[0]).blocks
    return replace(network, **{**given, "blocks": blocks})


def with_optimizer(training: TrainingConfig, name: str) -> TrainingConfig:
    """A training with another optimizer, at that one's own learning rate; it keeps schedule,
    weight decay and clipping, but for OCNOpt, whose region bounds the step."""
    kept = {
        field.name: getattr(training.optimizer, field.name)
        for field in fields(Optimizer)
        if field.name != "learning_rate"
    }
    if name == "ocnopt":
        del kept["gradient_clip"]
    return replace(training, optimizer=OPTIMIZERS[name](**kept))


def with_epochs(training: TrainingConfig, epochs: int) -> TrainingConfig:
    """A training of another length, whose milestones stay at the same shares of it."""
    milestones = training.optimizer.milestones
    if epochs != training.epochs and epochs > 0:
        milestones = tuple(
            milestone / training.epochs if isinstance(milestone, int) else milestone
            for milestone in milestones
        )
    optimizer = replace(training.optimizer, milestones=milestones)
    return replace(training, epochs=epochs, optimizer=optimizer)


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
