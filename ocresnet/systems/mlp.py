"""Fully connected networks as controlled systems.

    x_0 = the inputs, flattened
    x_{k+1} = sigma(x_k W_k + b_k)        k = 0 ... K-2
    yhat = x_{K-1} W_{K-1} + b_{K-1}

Layers of equal width are one scanned segment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import jax

from ocresnet.systems import layers
from ocresnet.systems.system import PyTree, Segment, System, Variables

Array = jax.Array

Activation = Literal["relu", "tanh", "sigmoid"]


@dataclass(frozen=True)
class MLPConfig:
    """The architecture of a fully connected network.

    Attributes:
      features: inputs of a sample, width of every hidden layer, classes.
      activation: sigma, after every layer but the last.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    features: tuple[int, ...]
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if len(self.features) < 2 or not all(
            isinstance(width, int) and width > 0 for width in self.features
        ):
            raise ValueError(
                f"features is {self.features!r}, but must be at least two positive whole numbers: "
                "inputs, hidden widths, classes."
            )
        if self.activation not in get_args(Activation):
            raise ValueError(
                f"activation is {self.activation!r}, but must be one of "
                f"{', '.join(get_args(Activation))}."
            )


def mlp_system(config: MLPConfig) -> System:
    """The network as a controlled system without outputs or shared parameters."""
    activation: Callable[[Array], Array] = getattr(jax.nn, config.activation)

    def hidden(
        shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
    ) -> tuple[Array, PyTree]:
        return activation(layers.dense(params, x)), {}

    def last(
        shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
    ) -> tuple[Array, PyTree]:
        return layers.dense(params, x), {}

    segments = [
        Segment(name, last if name == "output" else hidden, length=length)
        for name, _, length in _runs(config)
    ]
    return System(tuple(segments), initial_state=lambda inputs: inputs.reshape(len(inputs), -1))


def init(config: MLPConfig, key: Array) -> Variables:
    """LeCun-normal kernels [(length), in, out] and zero biases, float32; no batch statistics."""
    params = {}
    for (name, widths, length), own in zip(
        _runs(config), jax.random.split(key, len(_runs(config))), strict=True
    ):
        if length is None:
            params[name] = layers.init_dense(own, *widths)
        else:
            keys = jax.random.split(own, length)
            params[name] = jax.vmap(lambda key, w=widths: layers.init_dense(key, *w))(keys)
    return Variables(params, {})


def _runs(config: MLPConfig) -> list[tuple[str, tuple[int, int], int | None]]:
    """(name, (features in, features out), length) of every segment."""
    widths = list(zip(config.features[:-1], config.features[1:], strict=True))
    runs: list[tuple[str, tuple[int, int], int | None]] = []
    for shape, group in groupby(widths[:-1]):
        count = len(list(group))
        runs.append((f"hidden_{len(runs)}", shape, count if count > 1 else None))
    runs.append(("output", widths[-1], None))
    return runs
