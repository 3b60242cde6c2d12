"""Fully connected residual networks, pre-norm and homogeneous, with an exit before every block.

    x_0 = images W + b
    x_{k+1} = x_k + relu(norm(x_k) W_k1 + b_k1) W_k2 + b_k2        k = 0 ... N-1
    yhat_k = norm(x_k) W + b,   yhat = the same of x_N

Every norm is a layer norm, so that there are no batch statistics.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import jax

from ocresnet.systems import layers
from ocresnet.systems.architecture import (
    MOMENTUM,
    OUTPUT_BLOCK,
    ResidualArchitecture,
    check_blocks,
    require_whole,
)
from ocresnet.systems.layers import AxisName, Params
from ocresnet.systems.pieces import STATE, Piece, add, composed
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables
from ocresnet.systems.taps import AffineLayer

Array = jax.Array

BLOCKS = "blocks"
"""The segment of residual blocks."""


@dataclass(frozen=True)
class ResidualMLPConfig(ResidualArchitecture):
    """The architecture of a fully connected residual network.

    Attributes:
      blocks: how many residual blocks, N.
      width: features of the states.
      hidden: features inside a block; 0 means as many as `width`.
      classes, image_shape, exits, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    blocks: int = 12
    width: int = 64
    hidden: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, smallest in (("blocks", 0), ("width", 1), ("hidden", 0)):
            require_whole(name, getattr(self, name), smallest)

    @property
    def depth(self) -> int:
        """N, the number of residual blocks."""
        return self.blocks

    def without(self, blocks: Collection[int]) -> Self:
        """The architecture that is left when the branches of these blocks are removed.

        Raises:
          ValueError: for a block that does not exist or is named twice.
        """
        check_blocks(self, blocks)
        return replace(self, blocks=self.blocks - len(blocks))

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Stem, blocks with exits as outputs, output block."""

        def stem(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params, x), {}

        def skip(stage: Stage, x: Array) -> Array:
            return x

        def dense_1(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            branch = stage.params["residual"]
            return layers.dense(branch["dense_1"], layers.layer_norm(branch["norm"], x)), {}

        def dense_2(stage: Stage, inner: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params["residual"]["dense_2"], jax.nn.relu(inner)), {}

        block = (
            Piece("dense_1", dense_1, entries=("residual/norm", "residual/dense_1")),
            Piece("dense_2", dense_2, ("dense_1",), ("residual/dense_2",)),
            Piece("sum", add, (STATE, "dense_2")),
        )

        def read_out(head: PyTree, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(head["dense"], layers.layer_norm(head["norm"], x)), {}

        def exit_output(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            separate = self.exits == "separate"
            return read_out(stage.params["exit"] if separate else stage.shared["head"], x)

        def output_block(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return read_out(stage.shared["head"], x)

        def initial_state(images: Array) -> Array:
            return self.normalise(images, execution).reshape(images.shape[0], -1)

        of_block: dict[str, AffineLayer] = {
            "residual/dense_1": layers.dense,
            "residual/dense_2": layers.dense,
        }
        if self.exits == "separate":
            of_block["exit/dense"] = layers.dense
        segments = [Segment("stem", stem, layers={"": layers.dense})]
        if self.blocks:
            output = None if self.exits == "none" else exit_output
            segments.append(
                Segment(
                    BLOCKS,
                    composed(block),
                    output,
                    skip,
                    self.blocks,
                    layers=of_block,
                    pieces=block,
                )
            )
        segments.append(Segment(OUTPUT_BLOCK, output_block))
        return System(
            tuple(segments),
            shared=("head",),
            shared_layers={"head/dense": layers.dense},
            initial_state=initial_state,
            execution=execution,
        )

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels, zero biases, float32; no statistics.

        `params` has stem, blocks (`residual` and, with separate heads, `exit`, each with the blocks
        as leading axis) and head.
        """
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        hidden = self.hidden or self.width

        def init_head(key: Array) -> Params:
            return {
                "norm": layers.init_layer_norm(self.width),
                "dense": layers.init_dense(key, self.width, self.classes),
            }

        def init_block(key: Array) -> Params:
            first_key, second_key, exit_key = jax.random.split(key, 3)
            residual = {
                "norm": layers.init_layer_norm(self.width),
                "dense_1": layers.init_dense(first_key, self.width, hidden),
                "dense_2": layers.init_dense(second_key, hidden, self.width),
            }
            separate = self.exits == "separate"
            return {"residual": residual} | ({"exit": init_head(exit_key)} if separate else {})

        params = {
            "stem": layers.init_dense(stem_key, math.prod(self.image_shape), self.width),
            "head": init_head(head_key),
        }
        if self.blocks:
            params[BLOCKS] = jax.vmap(init_block)(jax.random.split(blocks_key, self.blocks))
        return Variables(params, {})
