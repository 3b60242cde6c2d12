"""A network as a controlled system: what it is made of. `fold.py` and `rollout.py` run it.

Notation
    x_k       state that enters transition k: any pytree of activations
    theta_k   control: the parameters of transition k
    f_k       transition;  S_k its skip connection, where it is residual: f_k = S_k + branch
    h_k       output function: reads an intermediate output y_k from the state
    t_k       time: the transition's index in its segment, or what the segment gives
    segment   a run of transitions that are one function with different controls, or tied ones

    x_{k+1} = f_k(x_k, theta_k),   y_k = h_k(x_k, theta_k),   k = 0 ... K-1

The controls of a segment are stacked along a leading axis. A **stage** is a step of the control
problem: one transition, or all of a tied segment, whose transitions have one control in common.
Batch statistics are never hidden: transitions and outputs take them and return the new ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax

if TYPE_CHECKING:
    from ocresnet.systems.dynamics import Dynamics
    from ocresnet.systems.pieces import Piece

PyTree = Any
Array = jax.Array
State = PyTree

Precision = Literal["float32", "bfloat16", "float64"]

Remat = Literal["none", "convolutions", "everything"]
"""What the backward pass recomputes: nothing, all but convolutions, or everything in a block."""

CONVOLUTION_OUTPUT = "convolution_output"
"""The `checkpoint_name` that layers give a convolution's result, kept by `remat="convolutions"`."""


@dataclass(frozen=True)
class Execution:
    """How a system is computed; its result is the same but for rounding.

    Attributes:
      precision: dtype of the activations. Parameters, batch statistics and logits stay float32.
      remat: what the backward pass recomputes.
      unroll: run transitions one by one instead of by `lax.scan`: slow to compile.

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


class Variables(NamedTuple):
    """All arrays of a network: what is trained, and what normalisation has gathered.

    Both are dictionaries with one entry a segment (and, in `params`, one a shared part).
    """

    params: PyTree
    batch_stats: PyTree


class Stage(NamedTuple):
    """What a transition, or an output, reads besides the state.

    Attributes:
      params: theta_k.
      batch_stats: its batch statistics.
      time: t_k, [].
      shared: the system's shared parameters, by name.
      train: whether it normalises with (and updates) batch statistics.

    What is the same for all stages, `shared` and `train`, is None where stages are only listed.
    """

    params: PyTree
    batch_stats: PyTree
    time: Array
    shared: PyTree = None
    train: bool | None = None


Transition = Callable[[Stage, State], tuple[State, PyTree]]
"""(stage, x_k) -> (x_{k+1}, changed batch statistics)."""

Output = Callable[[Stage, State], tuple[Array, PyTree]]
"""(stage, x_k) -> (y_k, changed batch statistics)."""

Skip = Callable[[Stage, State], State]
"""(stage, x_k) -> S_k(x_k)."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of transitions that are one function with different controls.

    Attributes:
      name: the segment's key in `params` and `batch_stats`.
      transition: x_{k+1} = f(x_k, theta_k).
      output: y_k = h(x_k, theta_k), or None where the segment has no intermediate outputs.
      skip: S_k of residual blocks; None where the transitions are none.
      length: how many transitions; the segment's arrays have this leading axis. None: one
        transition, whose arrays have no leading axis.
      tied: all transitions have the same parameters, whose arrays then have no leading axis (those
        of their batch statistics have): the run is one stage.
      times: t_k of every transition; None: their indices.
      layers: the affine layers among the segment's own parameters, each read once by a transition
        or its output, by their path in the parameters of one transition (as in
        "residual/convolution_1"; "" where these are the layer's), or `layers.Parallel` of several,
        by the path of what holds them. What no layer is declared for is known as arrays alone.
      players: entries of the segment's own parameters that decide for themselves, where control is
        a game; what is not named is one player, the first.
      pieces: what the transition is made of (`systems/pieces.py`), where the segment says so.
      dynamics: the differential equation that the transitions solve (`systems/dynamics.py`).
    """

    name: str
    transition: Transition
    output: Output | None = None
    skip: Skip | None = None
    length: int | None = None
    tied: bool = False
    times: tuple[float, ...] | None = None
    layers: Mapping[str, Any] = field(default_factory=dict)
    players: tuple[str, ...] = ()
    pieces: "tuple[Piece, ...]" = ()
    dynamics: "Dynamics | None" = None

    def __post_init__(self) -> None:
        if self.tied and self.length is None:
            raise ValueError(f"segment {self.name!r} is tied, but has no length.")
        if self.transitions < 1:
            raise ValueError(f"segment {self.name!r} has length {self.length}: leave it out.")
        if self.times is not None and len(self.times) != self.transitions:
            raise ValueError(
                f"segment {self.name!r} has {len(self.times)} times, but {self.transitions} "
                "transitions: each needs one."
            )
        if len(set(self.players)) < len(self.players):
            raise ValueError(f"segment {self.name!r} names a player twice: {self.players}.")

    @property
    def transitions(self) -> int:
        """How many there are."""
        return 1 if self.length is None else self.length

    @property
    def stacked(self) -> bool:
        """Whether the segment's parameters have a leading axis: one stage for each transition."""
        return self.length is not None and not self.tied

    @property
    def stages(self) -> int:
        """How many stages of the control problem it is."""
        return self.transitions if self.stacked else 1

    @property
    def outputs(self) -> int:
        """How many intermediate outputs it has."""
        return 0 if self.output is None else self.transitions


def _unchanged(inputs: Array) -> State:
    return inputs


@dataclass(frozen=True, eq=False)
class System:
    """A sequence of segments.

    Attributes:
      segments: in the order they are run.
      shared: names of the parameters that several segments read.
      shared_layers: the affine layers among those, by their path in the network's parameters.
      initial_state: x_0 from the network's inputs (normalised images, for example).
      interleaved: stacked segments of one length that follow each other and are run in turn: the
        first transition of each, then the second of each, and so on.
      execution: how it is computed; unless it is given, the backward pass recomputes nothing, as
        transitions of one's own may name no results to keep.

    Raises:
      ValueError: for segments of one name, and for none; for interleaved ones that do not follow
        each other, are not stacked to one length, or of which several have outputs.
    """

    segments: tuple[Segment, ...]
    shared: tuple[str, ...] = ()
    shared_layers: Mapping[str, Any] = field(default_factory=dict)
    initial_state: Callable[[Array], State] = _unchanged
    execution: Execution = Execution(remat="none")
    interleaved: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a system needs segments of different names, but got {names}.")
        runs = [tuple(segment.name for segment in run) for run in self.runs]
        for together in self.interleaved:
            own = [segment for segment in self.segments if segment.name in together]
            same_length = len({segment.length for segment in own}) == 1
            stacked = all(segment.stacked for segment in own)
            read = sum(segment.output is not None for segment in own)
            if together not in runs or not (same_length and stacked) or read > 1:
                raise ValueError(
                    f"segments {', '.join(together)} are interleaved, but must follow each other, "
                    "stacked to the same length, one of them at most with an output."
                )

    @property
    def runs(self) -> tuple[tuple[Segment, ...], ...]:
        """The segments in the order in which they are run: each alone, or with those that it is
        interleaved with."""
        runs: list[tuple[Segment, ...]] = []
        of = {name: together for together in self.interleaved for name in together}
        for segment in self.segments:
            together = of.get(segment.name, ())
            if runs and runs[-1][-1].name in together:
                runs[-1] += (segment,)
            else:
                runs.append((segment,))
        return tuple(runs)

    @property
    def outputs(self) -> int:
        """How many intermediate outputs there are."""
        return sum(segment.outputs for segment in self.segments)

    @property
    def blocks(self) -> tuple[Segment, ...]:
        """The segments of residual blocks."""
        return tuple(segment for segment in self.segments if segment.skip is not None)

    def with_own_output_only(self) -> "System":
        """The same system without its intermediate outputs."""
        return replace(
            self, segments=tuple(replace(segment, output=None) for segment in self.segments)
        )
