"""The architecture of a residual network, and how its forward pass is computed.

Both are frozen records that refuse impossible values when they are made.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ocresnet.systems.system import Remat

Exits = Literal["none", "shared", "separate"]
Precision = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True)
class ResNetConfig:
    """The architecture of a residual network.

    Attributes:
      blocks: residual blocks in each stage. The last stages may have none (Definition 1), and so
        may the first stage and those in `bare_stages`.
      filters: channels of each stage.
      classes: logits.
      image_shape: (height, width, channels) of an input image.
      exits: "none"; "shared": exits read through the backbone's own projections and output block;
        "separate": every exit has projections, norm and dense layer of its own. In both, every
        exit has its own batch statistics.
      stem_stride: stride of the stem's convolution.
      bare_stages: stages that open with their skip connection S_k alone, before their `blocks`: the
        residual branch of the block that opened them was removed, which by Lemma 1 is the same as
        setting it to zero.
      pixel_mean, pixel_deviation: what each channel of an input is normalised with, first of all.

    Raises:
      ValueError: for an impossible architecture, saying which value is wrong.
    """

    blocks: tuple[int, ...]
    filters: tuple[int, ...]
    classes: int = 10
    image_shape: tuple[int, int, int] = (32, 32, 3)
    exits: Exits = "shared"
    stem_stride: int = 1
    bare_stages: tuple[int, ...] = ()
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in (
            "blocks",
            "filters",
            "image_shape",
            "bare_stages",
            "pixel_mean",
            "pixel_deviation",
        ):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, smallest in (
            ("blocks", 0),
            ("filters", 1),
            ("image_shape", 1),
            ("classes", 2),
            ("stem_stride", 1),
        ):
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            whole = all(isinstance(number, int) for number in values)
            if not whole or min(values, default=0) < smallest:
                what = "whole numbers" if isinstance(value, tuple) else "a whole number"
                raise ValueError(f"{name} is {value}, but must be {what} of at least {smallest}.")
        if len(self.blocks) != len(self.filters):
            raise ValueError(
                f"blocks {self.blocks} and filters {self.filters} must name the same number of "
                "stages, at least one."
            )
        self._check_stages()
        if len(self.image_shape) != 3:
            raise ValueError(
                f"image_shape is {self.image_shape}, but must be (height, width, channels)."
            )
        if self.exits not in get_args(Exits):
            raise ValueError(
                f"exits is {self.exits!r}, but must be one of {', '.join(get_args(Exits))}."
            )
        for name in ("pixel_mean", "pixel_deviation"):
            if len(getattr(self, name)) not in (1, self.image_shape[2]):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, but must have one, or one for "
                    f"each of the {self.image_shape[2]} channels."
                )
        if not all(0 < deviation < math.inf for deviation in self.pixel_deviation):
            raise ValueError(f"pixel_deviation {self.pixel_deviation} must be positive.")

    def _check_stages(self) -> None:
        """Refuse a stage that would neither begin with a block nor with a bare skip."""
        allowed = range(1, self.state_stage + 1)
        listed = list(self.bare_stages)
        if listed != sorted(set(listed)) or not set(listed) <= set(allowed):
            raise ValueError(
                f"bare_stages is {self.bare_stages}, but must name stages of {list(allowed)} in "
                "order: those after the first, up to the last one with blocks."
            )
        for stage in allowed:
            if self.blocks[stage] == 0 and stage not in self.bare_stages:
                raise ValueError(
                    f"blocks {self.blocks}: only the last stages can be without blocks, and stages "
                    f"in bare_stages, which is {self.bare_stages}."
                )

    @property
    def depth(self) -> int:
        """N, the number of residual blocks."""
        return sum(self.blocks)

    @property
    def outputs(self) -> int:
        """How many outputs a forward pass gives: N + 1 with exits, else only the last."""
        return self.depth + 1 if self.exits != "none" else 1

    @property
    def state_stage(self) -> int:
        """The stage of the last state x_N; stages after it exist in the heads alone."""
        return max((stage for stage, count in enumerate(self.blocks) if count), default=0)

    @classmethod
    def homogeneous(cls, blocks: int = 54, filters: int = 64, **fields: Any) -> "ResNetConfig":
        """One stage of `blocks` blocks with `filters` channels at full resolution (paper, A.1)."""
        return cls(blocks=(blocks,), filters=(filters,), **fields)

    @classmethod
    def standard(
        cls, blocks: int = 54, filters: tuple[int, ...] = (16, 32, 64), **fields: Any
    ) -> "ResNetConfig":
        """`blocks` blocks in as many equal stages as `filters` names (paper, A.1)."""
        if not filters or blocks % len(filters):
            raise ValueError(
                f"blocks is {blocks}, but must be divisible by the {len(filters)} stages of "
                f"filters {tuple(filters)}."
            )
        return cls(blocks=(blocks // len(filters),) * len(filters), filters=filters, **fields)

    def subresnet(self, blocks: int) -> "ResNetConfig":
        """The SubResNet of the first `blocks` blocks (Definition 1).

        Raises:
          ValueError: if the network has fewer blocks than that.
        """
        if not 0 <= blocks <= self.depth:
            raise ValueError(
                f"cannot keep {blocks} blocks: this network has {self.depth}, so keep 0 to "
                f"{self.depth}."
            )
        kept, left = [], blocks
        for count in self.blocks:
            kept.append(min(count, left))
            left -= kept[-1]
        last = max((stage for stage, count in enumerate(kept) if count), default=0)
        # The head keeps the projections of the stages after the last block, bare or not.
        bare = tuple(stage for stage in self.bare_stages if stage <= last)
        return replace(self, blocks=tuple(kept), bare_stages=bare)


@dataclass(frozen=True)
class Execution:
    """How a forward pass is computed; its result is the same but for rounding.

    Attributes:
      precision: dtype of the activations. Parameters, batch statistics and logits stay float32.
      remat: what the backward pass recomputes.
      unroll: run blocks one by one instead of by `lax.scan`: slow to compile.

    Raises:
      ValueError: for an unknown precision or remat.
    """

    precision: Precision = "float32"
    remat: Remat = "convolutions"
    unroll: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("precision", get_args(Precision)), ("remat", get_args(Remat))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}."
                )
