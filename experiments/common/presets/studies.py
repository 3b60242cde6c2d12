"""The networks of the studies of OCNOpt, with OCNOpt, and that of SNOpt.

Those of DDPNOpt have five dense layers of width 10 to 32, or four convolutions of 32 filters and
two dense layers, where the strides and the last widths are ours.
"""

from dataclasses import replace

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import AdamW, OCNOpt

from ...optimizers.tasks import NETWORKS
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
    network = NETWORKS[f"{dataset}_ode_adaptive"].architecture
    assert isinstance(network, NeuralODEConfig)
    network = replace(network, rtol=1e-3, atol=1e-3, image_shape=IMAGE_SHAPES[dataset])
    training = TrainingConfig(
        epochs=epochs,
        optimizer=AdamW(schedule="constant", weight_decay=weight_decay),
        stage_cost=0.0,
    )
    return Preset(dataset, network, training, f"{accuracy} (SNOpt, Adam; not run by us yet)")


_INCEPTION = InceptionConfig((16, 32), (8, 16), (2, 2), stem_filters=16)

_UNKNOWN = "unknown (not run by us yet)"

_EXPECTED = {
    "wine_fcn": "100 % (ours; 36 samples)",
    "digits_fcn": "92 to 93 % (ours)",
    "digits_cnn": "93 to 94 % (ours)",
    "digits_resnet": "96 % (ours)",
    "digits_inception": "94 % (ours)",
    "mnist_fcn": _UNKNOWN,
    "mnist_cnn": _UNKNOWN,
    "cifar10_cnn": _UNKNOWN,
}

STUDIES: dict[str, Preset] = {
    "mnist_neural_ode": _ode_preset("mnist", 5, 0.0, "98.83 %"),
    "cifar10_neural_ode": _ode_preset("cifar10", 20, 1e-3, "77.41 %"),
    **{
        name: _study_preset(NETWORKS[name].data, NETWORKS[name].architecture, expected)
        for name, expected in _EXPECTED.items()
    },
    "mnist_inception": _study_preset("mnist", _INCEPTION, _UNKNOWN),
    "cifar10_inception": _study_preset("cifar10", _INCEPTION, _UNKNOWN),
}
