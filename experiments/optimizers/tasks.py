"""The networks and data of the optimizer experiments, by name.

  wine_fcn      13 - 32 - 32 - 32 - 32 - 3, tanh; scikit-learn's wine, 20 % of it to test
  digits_fcn    64 - 32 - 32 - 32 - 32 - 10, tanh; the bundled digits, other writers to test
  digits_cnn    two 3x3 convolutions (8, 16 filters, the second of stride 2), dense 32, ReLU
  digits_ode    Neural ODE of width 32, tanh, four steps of rk4 over the horizon 1
  digits_ode_adaptive  the same with dopri5 (tolerances of 1e-3, direct adjoint)
  digits_resnet, digits_resnet_stage_cost
                homogeneous, 4 blocks of 8 filters, batch norm; the second with gamma = 0.2 and
                shared exits
  digits_transformer  4 blocks of width 32 in 4 heads, patches of 4x4 pixels, gelu, layer norm
  mnist_transformer, cifar10_transformer
                6 blocks of width 64 in 4 heads, patches of 7x7 and 8x8 pixels
  digits_projections  six blocks in levels of 8, 16 and 32 filters, the last two of which are opened
                by a block with a projection shortcut; batch norm
  mnist_ode, cifar10_ode
                the Neural ODE of SNOpt: three 3x3 convolutions of 64 filters (strides 1, 2, 2), F
                of two more, ReLU; four steps of rk4 over the horizon 1
  mnist_ode_adaptive, cifar10_ode_adaptive
                the same with dopri5, tolerances of 1e-3, and the adjoint equation (backsolve)
  mnist_narrow_ode, cifar10_narrow_ode
                as mnist_ode, with 16 filters: what two cores can train
  mnist_fcn     784 - 32 - 32 - 32 - 32 - 10, ReLU
  mnist_cnn     four 3x3 convolutions of 32 filters (strides 2, 2, 2, 1), dense 64, ReLU
  cifar10_cnn   the same

  digits_inception
                3x3 convolution (8 filters), two inception blocks with branches of 4 and of 8
                filters (the second after max pooling of stride 2), global average, dense
  mnist_narrow_inception, cifar10_narrow_inception
                3x3 convolution (8 filters), two inception blocks with branches of 8 and of 16
                filters (each after max pooling of stride 2), global average, dense

  mnist_resnet_plain, mnist_resnet_stage_cost, cifar10_resnet_plain, cifar10_resnet_stage_cost
                homogeneous, 6 blocks of 16 filters behind a stem of stride 2, batch norm; with
                gamma = 0.02 and shared exits, or without

The dense and convolutional ones are those of DDPNOpt (five dense layers of width 10 to 32; four
convolutions of 32 filters and two dense layers), where the strides and the last widths are ours.
"""

from dataclasses import replace
from typing import NamedTuple

from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.transformer import TransformerConfig
from ocresnet.training.fit import for_dataset


class Task(NamedTuple):
    """A network to train, and its data.

    Attributes:
      architecture: made for the data.
      data: whole and in memory.
      stage_cost: gamma.
      together: whether many runs fit in one program; a network that keeps the device busy alone is
        trained one run after the other.
    """

    architecture: Architecture
    data: Dataset
    stage_cost: float
    together: bool


class Network(NamedTuple):
    """A network by name: the fields of its `Task`, and the name of its data."""

    data: str
    architecture: Architecture
    stage_cost: float = 0.0
    together: bool = False


def make_task(name: str, source: str | None = None, samples: int | None = None) -> Task:
    """The task called `name`.

    Args:
      name: a key of `NETWORKS`.
      source: name or `.npz` path of the data, where it is not bundled.
      samples: train on the first so many samples only; None: on all.

    Raises:
      ValueError: for an unknown name, or more samples than there are.
    """
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}, but must be one of {', '.join(NETWORKS)}.")
    network = NETWORKS[name]
    data = load_dataset(source or network.data)
    if samples is not None:
        data = data.first(samples)
    architecture = for_dataset(network.architecture, data)
    return Task(architecture, data, network.stage_cost, network.together)


_TANH = MLPConfig(hidden=(32, 32, 32, 32), activation="tanh")
_RELU = MLPConfig(hidden=(32, 32, 32, 32), activation="relu")
_SMALL_CNN = CNNConfig(filters=(8, 16), strides=(1, 2), hidden=(32,))
_CNN = CNNConfig(filters=(32, 32, 32, 32), strides=(2, 2, 2, 1), hidden=(64,))
_SMALL_INCEPTION = InceptionConfig((4, 8), (4, 4), (1, 2), stem_filters=8)
_NARROW_INCEPTION = InceptionConfig((8, 16), (4, 8), (2, 2), stem_filters=8)
_TRANSFORMER = TransformerConfig(blocks=4, width=32, heads=4, hidden=64, patch=4, exits="none")
_LARGER_TRANSFORMER = TransformerConfig(
    blocks=6, width=64, heads=4, hidden=128, patch=8, exits="none"
)
_ODE = NeuralODEConfig(width=32, solver="rk4", steps=4, exits="none")
_CONVOLUTIONAL_ODE = NeuralODEConfig(
    vector_field="convolutional",
    width=64,
    strides=(1, 2, 2),
    activation="relu",
    solver="rk4",
    steps=4,
    exits="none",
)
_NARROW_ODE = replace(_CONVOLUTIONAL_ODE, width=16)
_ADAPTIVE_ODE = replace(_CONVOLUTIONAL_ODE, solver="dopri5", steps=None, adjoint="backsolve")
_SMALL_RESNET = ResNetConfig.homogeneous(4, 8, exits="none")
_RESNET = ResNetConfig.homogeneous(6, 16, stem_stride=2, exits="none")
_RESNET_WITH_EXITS = ResNetConfig.homogeneous(6, 16, stem_stride=2, exits="shared")

NETWORKS = {
    "wine_fcn": Network("wine", _TANH, together=True),
    "digits_fcn": Network("digits", _TANH, together=True),
    "digits_cnn": Network("digits", _SMALL_CNN),
    "digits_ode": Network("digits", _ODE, together=True),
    "digits_ode_adaptive": Network("digits", replace(_ODE, solver="dopri5", steps=None)),
    "mnist_ode": Network("mnist", _CONVOLUTIONAL_ODE),
    "mnist_ode_adaptive": Network("mnist", _ADAPTIVE_ODE),
    "cifar10_ode": Network("cifar10", _CONVOLUTIONAL_ODE),
    "cifar10_ode_adaptive": Network("cifar10", _ADAPTIVE_ODE),
    "mnist_narrow_ode": Network("mnist", _NARROW_ODE),
    "cifar10_narrow_ode": Network("cifar10", _NARROW_ODE),
    "digits_resnet": Network("digits", _SMALL_RESNET),
    "digits_resnet_stage_cost": Network(
        "digits", replace(_SMALL_RESNET, exits="shared"), stage_cost=0.2
    ),
    "digits_transformer": Network("digits", _TRANSFORMER),
    "mnist_transformer": Network("mnist", replace(_LARGER_TRANSFORMER, patch=7)),
    "cifar10_transformer": Network("cifar10", _LARGER_TRANSFORMER),
    "digits_projections": Network("digits", ResNetConfig.standard(6, (8, 16, 32), exits="none")),
    "mnist_fcn": Network("mnist", _RELU, together=True),
    "mnist_cnn": Network("mnist", _CNN),
    "cifar10_cnn": Network("cifar10", _CNN),
    "digits_inception": Network("digits", _SMALL_INCEPTION),
    "mnist_narrow_inception": Network("mnist", _NARROW_INCEPTION),
    "cifar10_narrow_inception": Network("cifar10", _NARROW_INCEPTION),
    "mnist_resnet_plain": Network("mnist", _RESNET),
    "mnist_resnet_stage_cost": Network("mnist", _RESNET_WITH_EXITS, stage_cost=0.02),
    "cifar10_resnet_plain": Network("cifar10", _RESNET),
    "cifar10_resnet_stage_cost": Network("cifar10", _RESNET_WITH_EXITS, stage_cost=0.02),
}
