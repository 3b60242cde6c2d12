"""Chains of residual blocks of one shape and width, with an exit before every block.

    x_0 = stem(images)
    x_{k+1} = x_k + F_k(x_k)                        k = 0 ... N-1
    yhat_k = norm(features of x_k) W + b,   yhat = the same of x_N

A family says what the stem and a block are; the head, its exits and how all is put together are
here. The norm of a head is a layer norm: it has no batch statistics.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Self

import jax

from ocresnet.systems import layers
from ocresnet.systems.architecture import (
    OUTPUT_BLOCK,
    ResidualArchitecture,
    check_blocks,
    require_whole,
)
from ocresnet.systems.layers import Params
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables

Array = jax.Array

BLOCKS = "blocks"
"""The segment of residual blocks."""


@dataclass(frozen=True)
class ResidualChain(ResidualArchitecture):
    """What such a network has beside its stem and its kind of block.

    Attributes:
      blocks: how many residual blocks, N.
      width: features of the states.
      classes, image_shape, exits, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    blocks: int = 12
    width: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, smallest in (("blocks", 0), ("width", 1)):
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

    def features(self, x: Array) -> Array:
        """What a head reads of a state: [batch, width]."""
        return x

    def chain(
        self,
        stem: Segment,
        block: Segment,
        initial_state: Callable[[Array], Array],
        execution: Execution,
    ) -> System:
        """Stem, blocks with exits as outputs, output block.

        Args:
          stem: from what `initial_state` gives to x_0.
          block: one block, of the name `BLOCKS`; its parameters are below "residual".
          initial_state: of images.
          execution: as in every system.
        """

        def read_out(head: PyTree, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(
                head["dense"], layers.layer_norm(head["norm"], self.features(x))
            ), {}

        def exit_output(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            separate = self.exits == "separate"
            return read_out(stage.params["exit"] if separate else stage.shared["head"], x)

        def output_block(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return read_out(stage.shared["head"], x)

        def skip(stage: Stage, x: Array) -> Array:
            return x

        own_heads = {"exit/dense": layers.dense} if self.exits == "separate" else {}
        several = replace(
            block,
            output=None if self.exits == "none" else exit_output,
            skip=skip,
            length=self.blocks or None,
            layers={**block.layers, **own_heads},
        )
        output = Segment(OUTPUT_BLOCK, output_block)
        return System(
            (stem, several, output) if self.blocks else (stem, output),
            shared=("head",),
            shared_layers={"head/dense": layers.dense},
            initial_state=initial_state,
            execution=execution,
        )

    def init_chain(
        self,
        stem: Params,
        init_block: Callable[[Array], tuple[Params, Array]],
        blocks_key: Array,
        head_key: Array,
    ) -> Variables:
        """Parameters of the chain; no statistics.

        Args:
          stem: its parameters.
          init_block: key -> parameters of a block's branch, and a key for its exit's head.
          blocks_key, head_key: of all blocks, and of the head.

        Returns:
          `params` with stem, blocks (`residual` and, with separate heads, `exit`, each with the
          blocks as leading axis) and head.
        """

        def init_head(key: Array) -> Params:
            return {
                "norm": layers.init_layer_norm(self.width),
                "dense": layers.init_dense(key, self.width, self.classes),
            }

        def init_one(key: Array) -> Params:
            residual, exit_key = init_block(key)
            separate = self.exits == "separate"
            return {"residual": residual} | ({"exit": init_head(exit_key)} if separate else {})

        params = {"stem": stem, "head": init_head(head_key)}
        if self.blocks:
            params[BLOCKS] = jax.vmap(init_one)(jax.random.split(blocks_key, self.blocks))
        return Variables(params, {})
