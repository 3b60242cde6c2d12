"""Residual branches F_k: basic and bottleneck (He et al. 2016b, pre-activation).

    basic        (batch norm, ReLU, 3x3 convolution) twice, from the state's width to the level's
    bottleneck   (batch norm, ReLU, convolution) with kernels of 1x1, 3x3 and 1x1 pixels: down to
                 the level's filters, there, and up to four times as many

Where a branch opens a level, its first 3x3 convolution takes the stride.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import jax

from ocresnet.systems import layers
from ocresnet.systems.layers import Array, Convolution, Params
from ocresnet.systems.pieces import STATE, Piece
from ocresnet.systems.system import PyTree, Stage

if TYPE_CHECKING:
    from ocresnet.systems.resnet import ResNetConfig

Norm = Callable[[PyTree, PyTree, Array, bool | None], tuple[Array, PyTree]]
"""(params, batch_stats, x, train) -> (normalised x, new batch_stats)."""


class BranchConvolution(NamedTuple):
    """One convolution of a branch; its batch norm and ReLU come before it."""

    layer: Convolution
    channels_in: int
    channels_out: int


def branch_convolutions(
    config: "ResNetConfig", level: int, opening: bool
) -> list[BranchConvolution]:
    """The convolutions of a block of `level`, in order; `opening`: of the one that opens it."""
    filters, width = config.filters[level], config.widths[level]
    sizes = (3, 3) if config.block == "basic" else (1, 3, 1)
    strided = sizes.index(3)
    channels = [config.input_width(level) if opening else width, *[filters] * len(sizes)]
    channels[-1] = width
    return [
        BranchConvolution(
            Convolution((size, size), config.stride(level) if opening and index == strided else 1),
            before,
            after,
        )
        for index, (size, (before, after)) in enumerate(zip(sizes, pairwise(channels), strict=True))
    ]


def branch_pieces(convolutions: list[BranchConvolution], norm: Norm) -> list[Piece]:
    """F_k, each convolution with the batch norm and ReLU before it: `convolution_1` and so on; the
    last one is F_k(x)."""

    def piece(number: int, layer: Convolution) -> Piece:
        norm_name, name = f"norm_{number}", f"convolution_{number}"

        def function(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            params, stats = stage.params["residual"], stage.batch_stats["residual"]
            x, new_stats = norm(params[norm_name], stats[norm_name], x, stage.train)
            return layer(params[name], jax.nn.relu(x)), {"residual": {norm_name: new_stats}}

        reads = STATE if number == 1 else f"convolution_{number - 1}"
        entries = f"residual/{norm_name}", f"residual/{name}"
        return Piece(name, function, (reads,), entries)

    return [
        piece(number, convolution.layer) for number, convolution in enumerate(convolutions, start=1)
    ]


def init_residual_branch(
    convolutions: list[BranchConvolution], key: Array
) -> tuple[Params, Params]:
    """Parameters (He-normal kernels) and batch statistics of a branch."""
    params: Params = {}
    stats: Params = {}
    keys = jax.random.split(key, len(convolutions))
    for number, (convolution, key) in enumerate(zip(convolutions, keys, strict=True), start=1):
        layer, channels_in, channels_out = convolution
        name = f"norm_{number}"
        params[name], stats[name] = layers.init_batch_norm(channels_in)
        params[f"convolution_{number}"] = layers.init_convolution(
            key, layer.sides[0], channels_in, channels_out
        )
    return params, stats
