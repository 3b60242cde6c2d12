"""What a residual network costs: parameters and multiply-adds, counted from its architecture."""

import math
from typing import NamedTuple

import jax
import numpy as np

from ocresnet.systems import resnet
from ocresnet.systems.residual_branch import branch_convolutions
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
    imagenet = config.stem == "imagenet"
    stride = 2 if imagenet else config.stem_stride
    height, width = -(-height // stride), -(-width // stride)
    stem = (49 if imagenet else 9) * height * width * channels * config.filters[0]
    if imagenet:
        height, width = -(-height // 2), -(-width // 2)
    pixels = []
    for stage in range(len(config.filters)):
        height, width = -(-height // config.stride(stage)), -(-width // config.stride(stage))
        pixels.append(height * width)

    def projection(stage: int, pixels: int) -> int:
        return pixels * config.input_width(stage) * config.widths[stage]

    def head(stage: int) -> int:
        pending = range(stage + 1, len(config.filters))
        projections = sum(projection(later, pixels[-1]) for later in pending)
        return projections + config.widths[-1] * config.classes

    def block(segment: resnet.BlockSegment) -> int:
        total, at = 0, pixels[max(segment.input_stage, 0)]
        for size, stride, *channels in branch_convolutions(
            config, segment.stage, segment.transition
        ):
            at = pixels[segment.stage] if stride > 1 else at
            total += size**2 * at * math.prod(channels)
        if segment.transition:
            total += projection(segment.stage, pixels[segment.stage])
        return total

    blocks, skips, exits = [], [], []
    for segment in resnet.block_segments(config):
        blocks += [block(segment)] * segment.length
        bare = sum(projection(stage, pixels[stage]) for stage in segment.bare_stages)
        skips += [bare] + [0] * (segment.length - 1)
        exits += [head(segment.input_stage)] * segment.length
    return MultiplyAdds(
        stem=stem,
        blocks=np.array(blocks, np.int64),
        skips=np.array(skips, np.int64),
        exits=np.array(exits, np.int64),
        output_block=head(config.state_stage),
    )
