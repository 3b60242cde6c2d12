"""Convolutional networks as controlled systems.

    x_0 = the images
    x_{k+1} = sigma(w_k * x_k + b_k)        3x3 convolutions, some with stride
    flatten, then sigma(x W + b) for every hidden layer
    yhat = x W + b

Convolutions of equal shape and unit stride are one scanned segment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import get_args

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.mlp import Activation
from ocresnet.systems.system import PyTree, Segment, System, Variables

Array = jax.Array


@dataclass(frozen=True)
class CNNConfig:
    """The architecture of a convolutional network.

    Attributes:
      image_shape: (height, width, channels) of an input image.
      filters: channels of every convolution.
      strides: of every convolution.
      hidden: widths of the dense layers after the convolutions; may be empty.
      classes: logits.
      activation: sigma, after every layer but the last.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    image_shape: tuple[int, int, int]
    filters: tuple[int, ...] = (32, 32, 32, 32)
    strides: tuple[int, ...] = (2, 1, 2, 1)
    hidden: tuple[int, ...] = (64,)
    classes: int = 10
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        for name in ("image_shape", "filters", "strides", "hidden"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            if not all(isinstance(number, int) and number > 0 for number in value):
                raise ValueError(f"{name} is {value!r}, but must be positive whole numbers.")
        if len(self.image_shape) != 3:
            raise ValueError(
                f"image_shape is {self.image_shape}, but must be (height, width, channels)."
            )
        if not self.filters or len(self.filters) != len(self.strides):
            raise ValueError(
                f"filters is {self.filters} and strides is {self.strides}, but each convolution "
                "needs one of both, and there must be at least one."
            )
        if not isinstance(self.classes, int) or self.classes < 1:
            raise ValueError(f"classes is {self.classes!r}, but must be a positive whole number.")
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"activation is {self.activation!r}, but must be one of "
                f"{', '.join(get_args(Activation))}."
            )


def cnn_system(config: CNNConfig) -> System:
    """The network as a controlled system of images [batch, height, width, channels]."""
    activation: Callable[[Array], Array] = getattr(jax.nn, config.activation)

    def convolution(stride: int) -> Callable:
        def transition(
            shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
        ) -> tuple[Array, PyTree]:
            return activation(layers.convolution(params, x, stride)), {}

        return transition

    def dense(last: bool) -> Callable:
        def transition(
            shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
        ) -> tuple[Array, PyTree]:
            y = layers.dense(params, x.reshape(len(x), -1))
            return y if last else activation(y), {}

        return transition

    segments = [
        Segment(name, convolution(stride), length=length)
        for name, _, stride, length in _convolutions(config)
    ]
    for name, _ in _dense(config):
        segments.append(Segment(name, dense(last=name == "output")))
    return System(tuple(segments))


def init(config: CNNConfig, key: Array) -> Variables:
    """He-normal convolutions, LeCun-normal dense layers, zero biases, float32; no statistics."""
    convolutions, dense = _convolutions(config), _dense(config)
    keys = iter(jax.random.split(key, len(convolutions) + len(dense)))
    params = {}
    for name, channels, _, length in convolutions:

        def init_layer(key: Array, channels: tuple[int, int] = channels) -> layers.Params:
            return {**layers.init_convolution(key, 3, *channels), "bias": jnp.zeros(channels[1])}

        own = next(keys)
        params[name] = (
            init_layer(own)
            if length is None
            else jax.vmap(init_layer)(jax.random.split(own, length))
        )
    for name, widths in dense:
        params[name] = layers.init_dense(next(keys), *widths)
    return Variables(params, {})


def _convolutions(config: CNNConfig) -> list[tuple[str, tuple[int, int], int, int | None]]:
    """(name, (channels in, channels out), stride, length) of every convolutional segment."""
    channels = pairwise((config.image_shape[2], *config.filters))
    runs: list[tuple[str, tuple[int, int], int, int | None]] = []
    for (widths, stride), group in groupby(zip(channels, config.strides, strict=True)):
        count = len(list(group))
        if stride == 1:
            length = count if count > 1 else None
            runs.append((f"convolution_{len(runs)}", widths, stride, length))
        else:
            runs += [(f"convolution_{len(runs) + i}", widths, stride, None) for i in range(count)]
    return runs


def _dense(config: CNNConfig) -> list[tuple[str, tuple[int, int]]]:
    """(name, (features in, features out)) of every dense layer."""
    height, width, _ = config.image_shape
    for stride in config.strides:
        height, width = -(-height // stride), -(-width // stride)
    widths = list(pairwise((height * width * config.filters[-1], *config.hidden, config.classes)))
    names = [f"hidden_{index}" for index in range(len(widths) - 1)] + ["output"]
    return list(zip(names, widths, strict=True))
