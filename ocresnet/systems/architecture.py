"""What every family of networks offers: an architecture is a frozen configuration.

It says how the network's parameters are made and what its system is; everything else (training,
trajectories, pruning, OCNOpt) asks it, or the system, and never a family by name. Families are
listed in `families.py`.

Residual families also keep these names in their arrays, which the depth tools rely on:
    params[segment]["residual"]       all parameters of a block's branch; zero in all of them, the
                                      branch is zero
    params[segment]["exit"]           a separate exit head, structured as `own_head` gives it
    batch_stats[segment]["exit"]      the statistics of an exit, structured as
    batch_stats["output_block"]       those of the network's own output
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.costs import Loss
from ocresnet.systems.layers import AxisName
from ocresnet.systems.system import Execution, PyTree, System, Variables

Array = jax.Array

Exits = Literal["none", "shared", "separate"]

MOMENTUM = 0.9
"""Share of the running batch statistics that one training step keeps."""

OUTPUT_BLOCK = "output_block"
"""Segment, in the residual families, that reads the network's own output."""


@dataclass(frozen=True, kw_only=True)
class Architecture(ABC):
    """A network for images, which as a rule tells classes apart; a family adds what it is made of.

    Attributes:
      classes: logits.
      image_shape: (height, width, channels) of an input image.
      pixel_mean, pixel_deviation: what each channel of an input is normalised with, first of all.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    classes: int = 10
    image_shape: tuple[int, int, int] = (32, 32, 3)
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", whole_numbers("image_shape", self.image_shape, 1))
        require_whole("classes", self.classes, 2 if self.classifies else 1)
        if len(self.image_shape) != 3:
            raise ValueError(
                f"image_shape is {self.image_shape}, but must be (height, width, channels)."
            )
        for name in ("pixel_mean", "pixel_deviation"):
            values = finite_numbers(name, getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) not in (1, self.image_shape[2]):
                raise ValueError(
                    f"{name} has {len(values)} values, but must have one, or one for each of the "
                    f"{self.image_shape[2]} channels."
                )
        if min(self.pixel_deviation) <= 0:
            raise ValueError(f"pixel_deviation {self.pixel_deviation} must be positive.")

    @abstractmethod
    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """The network as a controlled system: images in, logits as the last state.

        Args:
          momentum: share of the running batch statistics that one training step keeps.
          axis_name: the mapped axis, or axes, over which batch norm is synchronised, or None.
          execution: precision, recomputation, scan or unrolled.
        """

    @abstractmethod
    def init(self, key: Array) -> Variables:
        """Freshly drawn parameters and batch statistics, all float32."""

    @property
    def outputs(self) -> int:
        """How many outputs a forward pass gives: the intermediate ones and the last."""
        return 1

    @property
    def classifies(self) -> bool:
        """Whether its outputs are logits of classes."""
        return True

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The losses that it can be trained with."""
        return ("cross_entropy", "l2")

    @property
    def not_finite(self) -> str:
        """Why outputs of finite inputs may not be finite, and the remedy; empty where there is
        nothing to say but that they are not."""
        return ""

    def normalise(self, images: Array, execution: Execution) -> Array:
        """(images - pixel_mean) / pixel_deviation, in the precision of the activations."""
        if jax.dtypes.canonicalize_dtype(execution.precision) != execution.precision:
            raise ValueError("precision float64 needs jax_enable_x64, which is off.")
        precision = jnp.dtype(execution.precision)
        statistics_dtype = jnp.promote_types(precision, jnp.float32)
        mean = jnp.asarray(self.pixel_mean, statistics_dtype)
        deviation = jnp.asarray(self.pixel_deviation, statistics_dtype)
        return ((images.astype(statistics_dtype) - mean) / deviation).astype(precision)

    def check_images(self, images: Array | np.ndarray) -> None:
        """Refuse images that do not have the shape that the network takes."""
        shape = getattr(images, "shape", None)
        if shape is None or len(shape) != 4 or shape[1:] != self.image_shape:
            what = f"have shape {shape}" if shape is not None else f"are a {type(images).__name__}"
            raise ValueError(
                f"images {what}, but this network needs "
                f"[batch, {', '.join(map(str, self.image_shape))}]."
            )


@dataclass(frozen=True, kw_only=True)
class ResidualArchitecture(Architecture):
    """A network with residual blocks x_{k+1} = S_k(x_k) + F_k(x_k), and an exit before each.

    The depth tools work on all of these. The segments of blocks are those of the system that have
    a `skip`.

    Attributes:
      exits: "none"; "shared": exits read through the network's own output block; "separate": every
        exit has a head of its own. In both, every exit has its own batch statistics.
    """

    exits: Exits = "shared"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("exits", self.exits, get_args(Exits))

    @property
    @abstractmethod
    def depth(self) -> int:
        """N, the number of residual blocks."""

    @abstractmethod
    def without(self, blocks: Collection[int]) -> Self:
        """The architecture that is left when the branches of these blocks (0 ... N - 1) are removed
        and their skip connections stay.

        Raises:
          ValueError: for a block that does not exist or is named twice.
        """

    def subresnet(self, blocks: int) -> Self:
        """The SubResNet of the first `blocks` blocks (Definition 1 of the stage-cost paper).

        Raises:
          ValueError: if the network has fewer blocks than that.
        """
        if not is_whole(blocks) or not 0 <= blocks <= self.depth:
            raise ValueError(
                f"cannot keep {blocks!r} blocks: this network has {self.depth}, so keep 0 to "
                f"{self.depth}."
            )
        return self.without(range(blocks, self.depth))

    @property
    def outputs(self) -> int:
        """N + 1 with exits, else only the last."""
        return self.depth + 1 if self.exits != "none" else 1

    def own_head(self, params: PyTree, block: int) -> PyTree:
        """The network's own output block as a separate head before `block`."""
        return params["head"]

    def with_own_head(self, params: PyTree, head: PyTree) -> PyTree:
        """The parameters with a separate head as the network's own output block."""
        return {**params, "head": head}


def residual(architecture: Architecture, what: str = "this") -> ResidualArchitecture:
    """The architecture, if it has residual blocks.

    Raises:
      ValueError: saying that it has none, which `what` needs.
    """
    if not isinstance(architecture, ResidualArchitecture):
        raise ValueError(
            f"{what} needs residual blocks, and a {type(architecture).__name__} has none: choose a "
            "residual architecture."
        )
    return architecture


def check_blocks(architecture: ResidualArchitecture, blocks: Collection[int]) -> None:
    """Refuse blocks that do not exist or are named twice."""
    for block in blocks:
        if not is_whole(block) or not 0 <= block < architecture.depth:
            last = architecture.depth - 1
            has = f"blocks 0 to {last}" if last >= 0 else "no blocks"
            raise ValueError(f"there is no block {block!r}: this network has {has}.")
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"blocks {sorted(blocks)} name a block twice.")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or of numpy; True is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def require_whole(name: str, value: Any, smallest: int) -> None:
    """Refuse what is not a whole number of at least `smallest`."""
    if type(value) is not int or value < smallest:
        raise ValueError(f"{name} is {value!r}, but must be a whole number of at least {smallest}.")


def whole_numbers(name: str, values: Any, smallest: int) -> tuple[int, ...]:
    """A list or tuple of whole numbers, each at least `smallest`, as a tuple.

    Raises:
      ValueError: for anything else.
    """
    values = _as_tuple(name, values)
    if not all(type(value) is int and value >= smallest for value in values):
        raise ValueError(f"{name} is {values!r}, but must be whole numbers of at least {smallest}.")
    return values


def finite_numbers(name: str, values: Any) -> tuple[float, ...]:
    """A list or tuple of finite numbers as a tuple of floats.

    Raises:
      ValueError: for anything else.
    """
    values = _as_tuple(name, values)
    for value in values:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"{name} is {values!r}, but must be finite numbers.")
    return tuple(float(value) for value in values)


def require_one_of(name: str, value: Any, allowed: tuple) -> None:
    """Refuse a choice that there is not."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}.")


def _as_tuple(name: str, values: Any) -> tuple:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {values!r}, but must be a tuple.")
    return tuple(values)
