"""Small architectures of every family, of all the forms that their arrays can take."""

from dataclasses import replace

from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.families import FAMILIES
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.transformer import TransformerConfig

PIXELS = {"pixel_mean": (0.2,), "pixel_deviation": (1.5,)}
TRANSFORMER = TransformerConfig(
    blocks=2, width=4, heads=2, hidden=3, patch=2, classes=3, image_shape=(4, 2, 2), **PIXELS
)
LEVELS = ResNetConfig((2, 2), (3, 4), classes=3, image_shape=(8, 6, 2), **PIXELS)

RESIDUAL: dict[str, ResidualArchitecture] = {
    "levels": LEVELS,
    "levels, separate": replace(LEVELS, exits="separate"),
    "levels, none": replace(LEVELS, exits="none"),
    "bare skips, separate": ResNetConfig(
        (1, 0, 2, 0),
        (2, 3, 4, 3),
        classes=3,
        image_shape=(8, 8, 1),
        bare_levels=(1, 2),
        exits="separate",
    ),
    "bottlenecks": ResNetConfig(
        (2, 1), (2, 2), classes=2, image_shape=(9, 8, 2), block="bottleneck", stem="imagenet"
    ),
    "residual_mlp": ResidualMLPConfig(
        blocks=4, width=5, hidden=3, classes=3, image_shape=(2, 2, 2), **PIXELS
    ),
    "residual_mlp, separate": ResidualMLPConfig(
        blocks=3, width=4, classes=3, image_shape=(2, 2, 1), exits="separate"
    ),
    "residual_mlp, none": ResidualMLPConfig(
        blocks=3, width=4, classes=3, image_shape=(2, 2, 1), exits="none"
    ),
    "transformer": TRANSFORMER,
    "transformer, separate": replace(TRANSFORMER, exits="separate"),
    "transformer, none": replace(TRANSFORMER, exits="none"),
}

EVERY: dict[str, Architecture] = {
    **RESIDUAL,
    "no blocks": ResidualMLPConfig(blocks=0, width=4, classes=3, image_shape=(2, 2, 1)),
    "mlp": MLPConfig((4, 4, 4, 3), classes=3, image_shape=(2, 1, 2), **PIXELS),
    "linear": MLPConfig((), classes=2, image_shape=(1, 1, 3)),
    "cnn": CNNConfig((3, 3, 3, 4), (2, 1, 1, 2), (5,), classes=3, image_shape=(7, 6, 2), **PIXELS),
    "inception": InceptionConfig(
        (2, 3), (1, 2), (1, 2), 3, classes=3, image_shape=(7, 6, 2), **PIXELS
    ),
    "neural_ode": NeuralODEConfig(
        width=4, hidden=3, solver="rk4", steps=3, classes=3, image_shape=(2, 1, 2), **PIXELS
    ),
    "neural_ode, convolutional": NeuralODEConfig(
        vector_field="convolutional",
        strides=(1, 2),
        width=3,
        solver="euler",
        steps=2,
        exits="none",
        classes=2,
        image_shape=(5, 4, 1),
    ),
    "neural_ode, adaptive": NeuralODEConfig(width=3, classes=3, image_shape=(2, 2, 1)),
    "neural_ode, backsolve": NeuralODEConfig(
        width=3, solver="tsit5", adjoint="backsolve", classes=3, image_shape=(2, 2, 1)
    ),
    # As many classes as outputs, z and l, which is what tests of shapes look for.
    "flow": FlowConfig(
        (4,), solver="midpoint", steps=3, classes=5, image_shape=(2, 1, 2), **PIXELS
    ),
    "flow, rademacher": FlowConfig(
        (3, 2), solver="euler", steps=2, trace="rademacher", classes=4, image_shape=(1, 1, 3)
    ),
    "gru_ode": GRUODEConfig(
        width=4, field_layers=2, solver="midpoint", steps=2, classes=3, image_shape=(3, 2, 3)
    ),
    "gru_ode, prediction": GRUODEConfig(
        task="prediction", width=3, field_layers=1, hidden=2, classes=4, image_shape=(2, 2, 3)
    ),
}

assert {type(architecture) for architecture in EVERY.values()} == set(FAMILIES.values())
