"""Fully connected networks as controlled systems.

    x_0 = the normalised images, flattened
    x_{k+1} = sigma(x_k W_k + b_k)        k = 0 ... K-2
    yhat = x_{K-1} W_{K-1} + b_{K-1}

Layers of equal width are one scanned segment.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, get_args

import jax

from ocresnet.systems import layers
from ocresnet.systems.architecture import (
    MOMENTUM,
    Architecture,
    require_one_of,
    whole_numbers,
)
from ocresnet.systems.layers import AxisName
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables

Array = jax.Array

Activation = Literal["relu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class MLPConfig(Architecture):
    """The architecture of a fully connected network.

    Attributes:
      hidden: width of every hidden layer; may be empty.
      activation: sigma, after every layer but the last.
      classes, image_shape, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    hidden: tuple[int, ...] = (32, 32, 32, 32)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", whole_numbers("hidden", self.hidden, 1))
        super().__post_init__()
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

        def hidden(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return activation(layers.dense(stage.params, x)), {}

        def last(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params, x), {}

        def initial_state(images: Array) -> Array:
            return self.normalise(images, execution).reshape(images.shape[0], -1)

        segments = [
            Segment(
                name,
                last if name == "output" else hidden,
                length=length,
                layers={"": layers.dense},
            )
            for name, _, length in self._runs()
        ]
        return System(tuple(segments), initial_state=initial_state, execution=execution)

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels [(length), in, out] and zero biases, float32; no statistics."""
        params = {}
        keys = jax.random.split(key, len(self._runs()))
        for (name, widths, length), own in zip(self._runs(), keys, strict=True):
            if length is None:
                params[name] = layers.init_dense(own, *widths)
            else:
                drawn = jax.random.split(own, length)
                params[name] = jax.vmap(lambda key, w=widths: layers.init_dense(key, *w))(drawn)
        return Variables(params, {})

    def _runs(self) -> list[tuple[str, tuple[int, int], int | None]]:
        """(name, (features in, features out), length) of every segment."""
        widths = list(pairwise((math.prod(self.image_shape), *self.hidden, self.classes)))
        runs: list[tuple[str, tuple[int, int], int | None]] = []
        for shape, group in groupby(widths[:-1]):
            count = len(list(group))
            runs.append((f"hidden_{len(runs)}", shape, count if count > 1 else None))
        return [*runs, ("output", widths[-1], None)]
