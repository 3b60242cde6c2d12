"""The networks of the studies of OCNOpt, with OCNOpt, and that of SNOpt.

Those of DDPNOpt have five dense layers of width 10 to 32, or four convolutions of 32 filters and
two dense layers, where the strides and the last widths are ours.
"""

from dataclasses import replace

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import AdamW, OCNOpt

from .preset import CLASSES, IMAGE_SHAPES, TRAINING_SAMPLES, Preset


def _study_preset(dataset: str, network: Architecture, expected: str) -> Preset:
    """A network of the studies of OCNOpt, with OCNOpt as it comes."""
    small = TRAINING_SAMPLES[dataset] < 10_000
    training = TrainingConfig(
        epochs=20,
        batch_size=32 if small else 128,
        optimizer=OCNOpt(),
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


_DENSE = MLPConfig(hidden=(32, 32, 32, 32))
_CONVOLUTIONS = CNNConfig(filters=(32, 32, 32, 32), strides=(2, 2, 2, 1), hidden=(64,))
_SMALL_CONVOLUTIONS = CNNConfig(filters=(8, 16), strides=(1, 2), hidden=(32,))
_INCEPTION = InceptionConfig((16, 32), (8, 16), (2, 2), stem_filters=16)
_SMALL_INCEPTION = InceptionConfig((4, 8), (4, 4), (1, 2), stem_filters=8)
_TANH = replace(_DENSE, activation="tanh")

STUDIES: dict[str, Preset] = {
    "mnist_neural_ode": _ode_preset("mnist", 5, 0.0, "98.83 %"),
    "cifar10_neural_ode": _ode_preset("cifar10", 20, 1e-3, "77.41 %"),
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
