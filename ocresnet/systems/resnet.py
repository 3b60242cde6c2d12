"""Convolutional residual networks: the architecture; `resnet_system.py` says what it computes.

A **level** is a run of blocks of equal resolution; levels after the first halve it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, get_args

import jax

from ocresnet.systems import resnet_system
from ocresnet.systems.architecture import (
    MOMENTUM,
    ResidualArchitecture,
    check_blocks,
    require_one_of,
    require_whole,
    whole_numbers,
)
from ocresnet.systems.layers import AxisName
from ocresnet.systems.system import Execution, PyTree, System, Variables

Array = jax.Array

Block = Literal["basic", "bottleneck"]
Stem = Literal["convolution", "imagenet"]

EXPANSION = 4
"""Channels of a bottleneck's state for each of its filters."""

IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual blocks in each level of the networks that He et al. 2016 name by their layers."""

BOTTLENECK_LAYERS = 50
"""From this many layers on they are built from bottlenecks."""


@dataclass(frozen=True)
class ResNetConfig(ResidualArchitecture):
    """The architecture of a residual network.

    Attributes:
      blocks: residual blocks in each level. The last levels may have none (Definition 1), and so
        may those in `bare_levels`, and the first level where it opens with no projection.
      filters: channels of each level; with bottlenecks the states have four times as many.
      block: "basic": two 3x3 convolutions; "bottleneck": 1x1, 3x3 and 1x1. With bottlenecks the
        first level opens with a projection too, from the stem's filters[0] channels.
      stem: "convolution": 3x3 with `stem_stride`; "imagenet": 7x7 with stride 2, then the maximum
        over 3x3 pixels with stride 2. Both have batch norm and ReLU after the convolution.
      stem_stride: stride of the stem's 3x3 convolution.
      bare_levels: levels that open with their skip connection S_k alone, before their `blocks`: the
        residual branch of the block that opened them was removed, which by Lemma 1 is the same as
        setting it to zero.
      classes, image_shape, exits, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible architecture, saying which value is wrong.
    """

    blocks: tuple[int, ...]
    filters: tuple[int, ...]
    block: Block = "basic"
    stem: Stem = "convolution"
    stem_stride: int = 1
    bare_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, smallest in (("blocks", 0), ("filters", 1), ("bare_levels", 0)):
            numbers = whole_numbers(name, getattr(self, name), smallest)
            object.__setattr__(self, name, numbers)
        super().__post_init__()
        require_whole("stem_stride", self.stem_stride, 1)
        if len(self.blocks) != len(self.filters) or not self.blocks:
            raise ValueError(
                f"blocks {self.blocks} and filters {self.filters} must name the same number of "
                "levels, at least one."
            )
        require_one_of("block", self.block, get_args(Block))
        require_one_of("stem", self.stem, get_args(Stem))
        self._check_levels()
        if self.stem == "imagenet" and self.stem_stride != 1:
            raise ValueError(
                f"stem_stride is {self.stem_stride}, but only the stem of one 3x3 convolution has "
                "it: leave it at 1 with the imagenet stem."
            )

    def _check_levels(self) -> None:
        """Refuse a level that would neither begin with a block nor with a bare skip."""
        allowed = range(self.stem_level + 1, self.state_level + 1)
        listed = list(self.bare_levels)
        if listed != sorted(set(listed)) or not set(listed) <= set(allowed):
            raise ValueError(
                f"bare_levels is {self.bare_levels}, but must name levels of {list(allowed)} in "
                "order: those that open with a projection, up to the last one with blocks."
            )
        for level in allowed:
            if self.blocks[level] == 0 and level not in self.bare_levels:
                raise ValueError(
                    f"blocks {self.blocks}: only the last levels can be without blocks, and levels "
                    f"in bare_levels, which is {self.bare_levels}."
                )

    @property
    def depth(self) -> int:
        """N, the number of residual blocks."""
        return sum(self.blocks)

    @property
    def state_level(self) -> int:
        """The level of the last state x_N; levels after it exist in the heads alone."""
        return self._last_level(self.blocks)

    @property
    def stem_level(self) -> int:
        """The level of the first state x_0; every level after it opens with a projection.

        It is the first one, 0; with bottlenecks, whose first level opens with a projection too, it
        is -1.
        """
        return 0 if self.block == "basic" else -1

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the states in each level."""
        expansion = 1 if self.block == "basic" else EXPANSION
        return tuple(expansion * filters for filters in self.filters)

    def input_width(self, level: int) -> int:
        """Channels of the states that enter the transition, or bare skip, that opens `level`."""
        return self.filters[0] if level == 0 else self.widths[level - 1]

    def stride(self, level: int) -> int:
        """Stride of the transition, or bare skip, that opens `level`."""
        return 1 if level == 0 else 2

    def _last_level(self, blocks: Sequence[int]) -> int:
        with_blocks = (level for level, count in enumerate(blocks) if count)
        return max(with_blocks, default=self.stem_level)

    @classmethod
    def homogeneous(cls, blocks: int = 54, filters: int = 64, **fields: Any) -> Self:
        """One level of `blocks` blocks with `filters` channels at full resolution (paper, A.1)."""
        return cls(blocks=(blocks,), filters=(filters,), **fields)

    @classmethod
    def standard(
        cls, blocks: int = 54, filters: tuple[int, ...] = (16, 32, 64), **fields: Any
    ) -> Self:
        """`blocks` blocks in as many equal levels as `filters` names (paper, A.1)."""
        require_whole("blocks", blocks, 0)
        filters = whole_numbers("filters", filters, 1)
        if not filters or blocks % len(filters):
            raise ValueError(
                f"blocks is {blocks}, but must be divisible by the {len(filters)} levels of "
                f"filters {filters}."
            )
        return cls(blocks=(blocks // len(filters),) * len(filters), filters=filters, **fields)

    @classmethod
    def imagenet(cls, depth: int = 50, **fields: Any) -> Self:
        """The ResNet of `depth` layers for ImageNet (He et al. 2016), pre-activated.

        18 and 34 layers are basic blocks, 50, 101 and 152 bottlenecks; 224x224 images, 1000
        classes.

        Raises:
          ValueError: for another depth.
        """
        if depth not in IMAGENET_BLOCKS:
            known = ", ".join(map(str, IMAGENET_BLOCKS))
            raise ValueError(f"depth is {depth}, but must be one of {known}.")
        named: dict[str, Any] = {
            "blocks": IMAGENET_BLOCKS[depth],
            "filters": (64, 128, 256, 512),
            "classes": 1000,
            "image_shape": (224, 224, 3),
            "block": "bottleneck" if depth >= BOTTLENECK_LAYERS else "basic",
            "stem": "imagenet",
        }
        return cls(**(named | fields))

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Stem, blocks with exits as outputs, output block: `resnet_system.py`."""
        return resnet_system.resnet_system(
            self, momentum=momentum, axis_name=axis_name, execution=execution
        )

    def init(self, key: Array) -> Variables:
        """Parameters (He-normal kernels) and fresh batch statistics, all float32."""
        return resnet_system.init(self, key)

    def runs(self) -> Iterator["BlockRun"]:
        """The runs of residual blocks, in order; each is a segment of the system. Bare skips are no
        blocks: the run after them names them."""
        bare: tuple[int, ...] = ()
        for level, count in enumerate(self.blocks):
            if level in self.bare_levels:
                bare += (level,)
            elif level > self.stem_level and count > 0:
                yield BlockRun(f"opening_{level}", level, True, 1, bare)
                bare, count = (), count - 1
            if count > 0:
                yield BlockRun(f"level_{level}", level, False, count, bare)
                bare = ()

    def without(self, blocks: Collection[int]) -> Self:
        """The architecture that is left when the branches of these blocks are removed.

        Raises:
          ValueError: for a block that does not exist or is named twice.
        """
        check_blocks(self, blocks)
        left, bare, start = [0] * len(self.blocks), set(self.bare_levels), 0
        for run in self.runs():
            own = range(start, start + run.length)
            start += run.length
            left[run.level] += sum(block not in blocks for block in own)
            if run.opening and own[0] in blocks:
                bare.add(run.level)
        # The skips after the last block belong to the head (Definition 1).
        last = self._last_level(left)
        bare = {level for level in bare if level <= last}
        return replace(self, blocks=tuple(left), bare_levels=tuple(sorted(bare)))

    def own_head(self, params: PyTree, block: int) -> PyTree:
        """The network's own output block, with the projections that come after `block`."""
        check_blocks(self, [block])
        runs = [run for run in self.runs() for _ in range(run.length)]
        pending = range(runs[block].input_level + 1, len(self.filters))
        names = [resnet_system.projection_name(level) for level in pending]
        return {
            **params["head"],
            "projections": {name: params["projections"][name] for name in names},
        }

    def with_own_head(self, params: PyTree, head: PyTree) -> PyTree:
        """The parameters with a separate head, and its projections, as the network's own."""
        head = dict(head)
        projections = {**params["projections"], **head.pop("projections")}
        return {**params, "projections": projections, "head": head}


class BlockRun(NamedTuple):
    """A run of blocks: of `level`; the one that opens the level is a run of its own.

    `bare_levels` are the levels whose bare skips come directly before it.
    """

    name: str
    level: int
    opening: bool
    length: int
    bare_levels: tuple[int, ...]

    @property
    def input_level(self) -> int:
        """The level whose shape the run's input state has."""
        return self.level - 1 if self.opening else self.level
