"""What a transition is made of: a small dataflow graph of layers.

Notation
    piece    a layer with what belongs to it (its normalisation and activation), or a sum, or a
             projection: one function of values that are there already
    value    what a piece makes; the state that enters the transition is one, named `STATE`

    x_{k+1} = the value of the last piece

A residual block of two layers is `layer_1` of the state, `layer_2` of `layer_1`, and the sum of the
state and `layer_2`: the shortcut is a value like all others. A segment that says what it is made of
(`Segment.pieces`) can be seen as several stages (`control/alignment.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ocresnet.systems.system import PyTree, Stage, State, Transition

STATE = "state"
"""The name of the value that enters a transition."""

Values = dict[str, PyTree]
"""What pieces have made so far, by name."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One function of values, with the arrays that it alone reads.

    Attributes:
      name: of the piece, and of the value that it makes.
      function: (stage, *values) -> (value, changed batch statistics, structured as the segment's).
      reads: the names of those values, each of an earlier piece or `STATE`.
      entries: what it owns of the segment's parameters and batch statistics, by path, as in
        "residual/convolution_1".
      shared: paths of shared parameters that of all transitions this piece alone reads, as in
        "projections/level_1"; intermediate outputs may read them too.
    """

    name: str
    function: Callable[..., tuple[PyTree, PyTree]]
    reads: tuple[str, ...] = (STATE,)
    entries: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def decides(self) -> bool:
        """Whether it has parameters."""
        return bool(self.entries or self.shared)


def composed(pieces: Sequence[Piece]) -> Transition:
    """The transition that runs all pieces in order.

    Raises:
      ValueError: for pieces of one name, an entry that two of them own, and a value that is read
        before it is there.
    """
    known = [STATE]
    owned: list[str] = []
    for piece in pieces:
        for name in piece.reads:
            if name not in known:
                raise ValueError(
                    f"piece {piece.name!r} reads {name!r}, but what is there before it is "
                    f"{', '.join(known)}."
                )
        known.append(piece.name)
        owned += [*piece.entries, *piece.shared]
    for what, names in (("name", known), ("entry", owned)):
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two pieces have the {what} {name!r}: each needs its own.")

    def transition(stage: Stage, state: State) -> tuple[State, PyTree]:
        values: Values = {STATE: state}
        stats: PyTree = {}
        for piece in pieces:
            values[piece.name], changed = run_piece(piece, stage, values)
            stats = merged(stats, changed)
        return values[pieces[-1].name], stats

    return transition


def run_piece(piece: Piece, stage: Stage, values: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
    """The value of a piece, and the batch statistics that it changes."""
    return piece.function(stage, *(values[name] for name in piece.reads))


def add(stage: Stage, left: Any, right: Any) -> tuple[Any, PyTree]:
    """The function of a piece that sums two values."""
    return left + right, {}


def merged(left: PyTree, right: PyTree) -> PyTree:
    """Two nested dictionaries as one; where both have an array, the right one's."""
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        return right
    both = {name: merged(left[name], right[name]) for name in left if name in right}
    return {**left, **right, **both}
