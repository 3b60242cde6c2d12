"""The networks and data of the optimizer experiments, by name.

  wine_fcn      13 - 32 - 32 - 32 - 32 - 3, tanh; scikit-learn's wine, 20 % of it to test
  digits_fcn    64 - 32 - 32 - 32 - 32 - 10, tanh; the bundled digits, other writers to test
  digits_cnn    two 3x3 convolutions (8, 16 filters, the second of stride 2), dense 32, ReLU
  digits_resnet homogeneous, 4 blocks of 8 filters, batch norm
  mnist_fcn     784 - 32 - 32 - 32 - 32 - 10, ReLU
  mnist_cnn     four 3x3 convolutions of 32 filters (strides 2, 2, 2, 1), dense 64, ReLU
  cifar10_cnn   the same

The dense and convolutional ones are those of DDPNOpt (five dense layers of width 10 to 32; four
convolutions of 32 filters and two dense layers), where the strides and the last widths are ours.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.control.costs import cross_entropy
from ocresnet.control.problem import ControlProblem
from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.systems import cnn, mlp, resnet
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.training.fit import for_dataset

from .runs import Task

Array = jax.Array


class Network(NamedTuple):
    """A network by name: how its task is made, and whether many runs fit in one program."""

    data: str
    build: Callable[[Dataset], Task]
    together: bool


def make_task(name: str, source: str | None = None, samples: int | None = None) -> Task:
    """The task called `name`.

    Args:
      name: a key of `NETWORKS`.
      source: name or `.npz` path of the data, where it is not bundled.
      samples: train on the first so many samples only; None: on all.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}, but must be one of {', '.join(NETWORKS)}.")
    network = NETWORKS[name]
    data = wine() if network.data == "wine" else load_dataset(source or network.data)
    task = network.build(data)
    return task._replace(
        train_images=task.train_images[:samples], train_labels=task.train_labels[:samples]
    )


def wine() -> Dataset:
    """scikit-learn's wine, standardised and quantised to bytes; every fifth sample is for tests."""
    from sklearn.datasets import load_wine

    features, labels = load_wine(return_X_y=True)
    scaled = (features - features.mean(0)) / features.std(0)
    images = np.clip(128 + 32 * scaled, 0, 255).astype(np.uint8)[:, None, :, None]
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.int32)
    test = np.arange(len(labels)) % 5 == 0
    return Dataset("wine", images[~test], labels[~test], images[test], labels[test])


def _task(problem: ControlProblem, init: Callable, data: Dataset, per_channel: bool) -> Task:
    """Images less their mean, in units of their deviation (of the whole set, or per channel)."""
    images = data.train_images.astype(np.float32)
    axes = (0, 1, 2) if per_channel else None
    mean = images.mean(axes) if per_channel else images.mean(0)
    deviation = images.std(axes)

    def prepared(images: np.ndarray) -> Array:
        return jnp.asarray((images.astype(np.float32) - mean) / deviation)

    return Task(
        problem,
        init,
        prepared(data.train_images),
        jnp.asarray(data.train_labels),
        prepared(data.test_images),
        jnp.asarray(data.test_labels),
    )


def _fcn(data: Dataset, activation: mlp.Activation) -> Task:
    inputs = int(np.prod(data.image_shape))
    config = mlp.MLPConfig((inputs, 32, 32, 32, 32, data.classes), activation)
    problem = ControlProblem(mlp.mlp_system(config))
    return _task(problem, partial(mlp.init, config), data, per_channel=False)


def _cnn(
    data: Dataset, filters: tuple[int, ...], strides: tuple[int, ...], hidden: tuple[int, ...]
) -> Task:
    config = cnn.CNNConfig(data.image_shape, filters, strides, hidden, data.classes)
    problem = ControlProblem(cnn.cnn_system(config))
    return _task(problem, partial(cnn.init, config), data, per_channel=True)


def _resnet(data: Dataset, blocks: int, filters: int, stage_cost: float, stem_stride: int) -> Task:
    config = for_dataset(ResNetConfig.homogeneous(blocks, filters), data)
    config = replace(config, stem_stride=stem_stride, exits="shared" if stage_cost else "none")
    problem = ControlProblem(resnet.resnet_system(config), cross_entropy, stage_cost)
    arrays = (
        jnp.asarray(array, dtype)
        for array, dtype in (
            (data.train_images, jnp.uint8),
            (data.train_labels, jnp.int32),
            (data.test_images, jnp.uint8),
            (data.test_labels, jnp.int32),
        )
    )
    return Task(problem, partial(resnet.init, config), *arrays)


_SMALL_CNN = partial(_cnn, filters=(8, 16), strides=(1, 2), hidden=(32,))
_CNN = partial(_cnn, filters=(32, 32, 32, 32), strides=(2, 2, 2, 1), hidden=(64,))
_TANH, _RELU = partial(_fcn, activation="tanh"), partial(_fcn, activation="relu")

NETWORKS = {
    "wine_fcn": Network("wine", _TANH, True),
    "digits_fcn": Network("digits", _TANH, True),
    "digits_cnn": Network("digits", _SMALL_CNN, False),
    "digits_resnet": Network(
        "digits", partial(_resnet, blocks=4, filters=8, stage_cost=0.0, stem_stride=1), False
    ),
    "mnist_fcn": Network("mnist", _RELU, True),
    "mnist_cnn": Network("mnist", _CNN, False),
    "cifar10_cnn": Network("cifar10", _CNN, False),
}
for _gamma, _suffix in ((0.0, "plain"), (0.02, "stage_cost")):
    NETWORKS[f"mnist_resnet_{_suffix}"] = Network(
        "mnist", partial(_resnet, blocks=6, filters=16, stage_cost=_gamma, stem_stride=2), False
    )
    NETWORKS[f"cifar10_resnet_{_suffix}"] = Network(
        "cifar10", partial(_resnet, blocks=6, filters=16, stage_cost=_gamma, stem_stride=2), False
    )
