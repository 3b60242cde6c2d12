"""What a residual network costs: parameters and multiply-adds, counted from its architecture."""

from typing import NamedTuple

import jax
import numpy as np

from ocresnet.systems import resnet
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.systems.system import PyTree


class MultiplyAdds(NamedTuple):
    """Multiply-adds for one image, of convolutions, projections and dense layers.

    Attributes:
      stem: of the stem.
      blocks: of each residual block, [blocks].
      skips: of the bare skips directly before each block, [blocks].
      exits: of each exit head, [blocks]; what reading yhat_k costs on top of the blocks.
      output_block: of the network's own output block, with the projections it keeps.
    """

    stem: int
    blocks: np.ndarray
    skips: np.ndarray
    exits: np.ndarray
    output_block: int

    @property
    def total(self) -> int:
        """Of computing the network's own output and no other."""
        return int(self.stem + self.blocks.sum() + self.skips.sum() + self.output_block)


def parameter_count(params: PyTree) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def multiply_adds(config: ResNetConfig) -> MultiplyAdds:
    """Count the multiply-adds of one forward pass for one image; norms and ReLUs are left out."""
    height, width, channels = config.image_shape
    height, width = -(-height // config.stem_stride), -(-width // config.stem_stride)
    filters = config.filters
    pixels = [height * width]
    for _ in filters[1:]:
        height, width = -(-height // 2), -(-width // 2)
        pixels.append(height * width)

    def projection(stage: int) -> int:
        return pixels[stage] * filters[stage - 1] * filters[stage]

    def head(stage: int) -> int:
        projections = sum(
            pixels[-1] * filters[later - 1] * filters[later]
            for later in range(stage + 1, len(filters))
        )
        return projections + filters[-1] * config.classes

    blocks, skips, exits = [], [], []
    for segment in resnet.block_segments(config):
        filters_in, filters_out = filters[segment.input_stage], filters[segment.stage]
        block = 9 * pixels[segment.stage] * (filters_in * filters_out + filters_out**2)
        if segment.transition:
            block += projection(segment.stage)
        blocks += [block] * segment.length
        skips += [sum(map(projection, segment.bare_stages))] + [0] * (segment.length - 1)
        exits += [head(segment.input_stage)] * segment.length
    return MultiplyAdds(
        stem=9 * pixels[0] * channels * filters[0],
        blocks=np.array(blocks, np.int64),
        skips=np.array(skips, np.int64),
        exits=np.array(exits, np.int64),
        output_block=head(config.state_stage),
    )
