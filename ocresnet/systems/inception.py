"""Inception networks as controlled systems: branches of a block are players of one stage.

Notation (sigma is ReLU; * a convolution; 1x1 convolutions are products at every pixel)
    c_k, r_k   filters and reduced filters of block k, which gives 4 c_k channels

    x_0 = sigma(w * images + b)                                  the stem: 3x3
    block k, first stage:  a = sigma(x W_a + b_a)                1x1, to c_k channels
                           b = sigma(x W_b + b_b)                1x1, to r_k
                           c = sigma(x W_c + b_c)                1x1, to r_k
                           d = sigma(max_3x3(x) W_d + b_d)       1x1, to c_k
    block k, second stage: b' = sigma(w_b * b + b_b')            3x3, to c_k
                           c' = sigma(w_c * c + b_c')            5x5, to c_k
                           x_{k+1} = (a, b', c', d) along the channels
    yhat = mean of x_K over the pixels, W + b

Before block k, x_k is subsampled by the maximum over 3x3 pixels around every s_k-th.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.architecture import (
    MOMENTUM,
    Architecture,
    require_whole,
    whole_numbers,
)
from ocresnet.systems.layers import AxisName, Convolution, Parallel
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Transition, Variables

Array = jax.Array

REDUCTIONS = Parallel(
    tuple((name, layers.dense) for name in ("branch_1", "reduce_3", "reduce_5", "pool")),
    reads=("x", "x", "x", "pooled"),
)
"""The 1x1 layers of a block's first stage; three of them read the same."""

EXPANSIONS = Parallel(
    (("branch_3", Convolution((3, 3))), ("branch_5", Convolution((5, 5)))),
    reads=("reduce_3", "reduce_5"),
)
"""The convolutions of its second stage."""

BRANCHES = ("branch_1", "branch_3", "branch_5", "pool")
"""In the order of the block's channels."""


@dataclass(frozen=True)
class InceptionConfig(Architecture):
    """The architecture of an inception network.

    Attributes:
      filters: channels of each of the four branches of every block, which gives four times as many.
      reduced_filters: channels that the 3x3 and the 5x5 convolution of every block read, after the
        1x1 convolution before them.
      strides: of the 3x3 max pooling before every block; 1: none.
      stem_filters: channels of the 3x3 convolution before the first block.
      classes, image_shape, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    filters: tuple[int, ...] = (16, 32)
    reduced_filters: tuple[int, ...] = (8, 16)
    strides: tuple[int, ...] = (2, 2)
    stem_filters: int = 16

    def __post_init__(self) -> None:
        for name in ("filters", "reduced_filters", "strides"):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name), 1))
        super().__post_init__()
        require_whole("stem_filters", self.stem_filters, 1)
        if not len(self.filters) == len(self.reduced_filters) == len(self.strides) > 0:
            raise ValueError(
                f"filters is {self.filters}, reduced_filters is {self.reduced_filters} and strides "
                f"is {self.strides}, but each block needs one of all three, and there must be at "
                "least one."
            )

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Two stages a block, as a controlled system of images [batch, height, width, channels].

        The state inside a block is a dictionary of the four branches.
        """
        segments = [Segment("stem", _stem(self.strides[0]), layers={"": Convolution()})]
        for block, stride in enumerate((*self.strides[1:], 1)):
            segments += [
                Segment(
                    f"block_{block}_reduce",
                    _reduce,
                    layers={"": REDUCTIONS},
                    players=REDUCTIONS.names[1:],
                ),
                Segment(
                    f"block_{block}_expand",
                    _expand(stride),
                    layers={"": EXPANSIONS},
                    players=EXPANSIONS.names[1:],
                ),
            ]
        segments.append(Segment("output", _output, layers={"": layers.dense}))
        return System(
            tuple(segments),
            initial_state=partial(self.normalise, execution=execution),
            execution=execution,
        )

    def init(self, key: Array) -> Variables:
        """He-normal convolutions, a LeCun-normal dense layer, zero biases; no statistics."""
        blocks = range(len(self.filters))
        stem, output, *of_blocks = jax.random.split(key, 2 + len(blocks))
        params = {"stem": _init_convolution(stem, 3, self.image_shape[2], self.stem_filters)}
        channels = pairwise((self.stem_filters, *(4 * filters for filters in self.filters)))
        for block, (channels_in, _), own in zip(blocks, channels, of_blocks, strict=True):
            filters, reduced = self.filters[block], self.reduced_filters[block]
            keys = iter(jax.random.split(own, len(REDUCTIONS.names) + len(EXPANSIONS.names)))
            params[f"block_{block}_reduce"] = {
                name: _init_projection(
                    next(keys), channels_in, filters if name in BRANCHES else reduced
                )
                for name in REDUCTIONS.names
            }
            params[f"block_{block}_expand"] = {
                "branch_3": _init_convolution(next(keys), 3, reduced, filters),
                "branch_5": _init_convolution(next(keys), 5, reduced, filters),
            }
        params["output"] = layers.init_dense(output, 4 * self.filters[-1], self.classes)
        return Variables(params, {})


def _stem(stride: int) -> Transition:
    """The stem, and the pooling before the first block."""

    def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        return _pooled(jax.nn.relu(Convolution()(stage.params, x)), stride), {}

    return transition


def _reduce(stage: Stage, x: Array) -> tuple[dict[str, Array], PyTree]:
    """The first stage of a block."""
    return _activated(REDUCTIONS, stage.params, {"x": x, "pooled": layers.max_pool(x, 3, 1)}), {}


def _expand(stride: int) -> Transition:
    """The second stage of a block, and the pooling after it."""

    def transition(stage: Stage, state: dict[str, Array]) -> tuple[Array, PyTree]:
        branches = state | _activated(EXPANSIONS, stage.params, state)
        # Pooled one by one: the backward pass is faster than that of the whole, on CPU by a third.
        pooled = [_pooled(branches[name], stride) for name in BRANCHES]
        return jnp.concatenate(pooled, axis=-1), {}

    return transition


def _output(stage: Stage, x: Array) -> tuple[Array, PyTree]:
    return layers.dense(stage.params, jnp.mean(x, axis=(1, 2))), {}


def _activated(
    parallel: Parallel, params: layers.Params, inputs: dict[str, Array]
) -> dict[str, Array]:
    return {name: jax.nn.relu(y) for name, y in parallel(params, inputs).items()}


def _pooled(x: Array, stride: int) -> Array:
    return x if stride == 1 else layers.max_pool(x, 3, stride)


def _init_convolution(key: Array, size: int, channels_in: int, channels_out: int) -> layers.Params:
    kernel = layers.init_convolution(key, size, channels_in, channels_out)
    return {**kernel, "bias": jnp.zeros(channels_out, jnp.float32)}


def _init_projection(key: Array, channels_in: int, channels_out: int) -> layers.Params:
    kernel = layers.init_projection(key, channels_in, channels_out)
    return {**kernel, "bias": jnp.zeros(channels_out, jnp.float32)}
