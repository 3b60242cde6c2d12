"""Convolutional networks as controlled systems.

    x_0 = the normalised images
    x_{k+1} = sigma(w_k * x_k + b_k)        3x3 convolutions, some with stride
    flatten, then sigma(x W + b) for every hidden layer
    yhat = x W + b

Convolutions of equal shape and unit stride are one scanned segment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from typing import get_args

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.architecture import (
    MOMENTUM,
    Architecture,
    require_one_of,
    whole_numbers,
)
from ocresnet.systems.layers import AxisName, Convolution
from ocresnet.systems.mlp import Activation
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Transition, Variables

Array = jax.Array


@dataclass(frozen=True)
class CNNConfig(Architecture):
    """The architecture of a convolutional network.

    Attributes:
      filters: channels of every convolution.
      strides: stride of every convolution.
      hidden: widths of the dense layers after the convolutions; may be empty.
      activation: sigma, after every layer but the last.
      classes, image_shape, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    filters: tuple[int, ...] = (32, 32, 32, 32)
    strides: tuple[int, ...] = (2, 1, 2, 1)
    hidden: tuple[int, ...] = (64,)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        for name in ("filters", "strides", "hidden"):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name), 1))
        super().__post_init__()
        if not self.filters or len(self.filters) != len(self.strides):
            raise ValueError(
                f"filters is {self.filters} and strides is {self.strides}, but each convolution "
                "needs one of both, and there must be at least one."
            )
        require_one_of("activation", self.activation, get_args(Activation))

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """The layers, as a controlled system of images [batch, height, width, channels]."""
        activation: Callable[[Array], Array] = getattr(jax.nn, self.activation)

        def convolution(layer: Convolution) -> Transition:
            def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
                return activation(layer(stage.params, x)), {}

            return transition

        def dense(last: bool) -> Transition:
            def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
                y = layers.dense(stage.params, x.reshape(x.shape[0], -1))
                return y if last else activation(y), {}

            return transition

        segments = []
        for name, _, stride, length in self._convolutions():
            layer = Convolution(stride=stride)
            segments.append(Segment(name, convolution(layer), length=length, layers={"": layer}))
        for name, _ in self._dense():
            transition = dense(last=name == "output")
            segments.append(Segment(name, transition, layers={"": layers.dense}))
        return System(
            tuple(segments),
            initial_state=partial(self.normalise, execution=execution),
            execution=execution,
        )

    def init(self, key: Array) -> Variables:
        """He-normal convolutions, LeCun-normal dense layers, zero biases; no statistics."""
        convolutions, dense = self._convolutions(), self._dense()
        keys = iter(jax.random.split(key, len(convolutions) + len(dense)))
        params = {}
        for name, channels, _, length in convolutions:

            def init_layer(key: Array, channels: tuple[int, int] = channels) -> layers.Params:
                return {
                    **layers.init_convolution(key, 3, *channels),
                    "bias": jnp.zeros(channels[1], jnp.float32),
                }

            own = next(keys)
            params[name] = (
                init_layer(own)
                if length is None
                else jax.vmap(init_layer)(jax.random.split(own, length))
            )
        for name, widths in dense:
            params[name] = layers.init_dense(next(keys), *widths)
        return Variables(params, {})

    def _convolutions(self) -> list[tuple[str, tuple[int, int], int, int | None]]:
        """(name, (channels in, channels out), stride, length) of every convolutional segment."""
        channels = pairwise((self.image_shape[2], *self.filters))
        runs: list[tuple[str, tuple[int, int], int, int | None]] = []
        for (widths, stride), group in groupby(zip(channels, self.strides, strict=True)):
            count = len(list(group))
            if stride == 1:
                length = count if count > 1 else None
                runs.append((f"convolution_{len(runs)}", widths, stride, length))
            else:
                runs += [
                    (f"convolution_{len(runs) + i}", widths, stride, None) for i in range(count)
                ]
        return runs

    def _dense(self) -> list[tuple[str, tuple[int, int]]]:
        """(name, (features in, features out)) of every dense layer."""
        height, width, _ = self.image_shape
        for stride in self.strides:
            height, width = -(-height // stride), -(-width // stride)
        widths = list(pairwise((height * width * self.filters[-1], *self.hidden, self.classes)))
        names = [f"hidden_{index}" for index in range(len(widths) - 1)] + ["output"]
        return list(zip(names, widths, strict=True))
