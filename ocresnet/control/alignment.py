"""Alignment: which layers of a block act in the same stage.

Notation
    layer     a piece of a transition that has parameters (`systems/pieces.py`)
    stages    an ordered partition of a block's layers: those of one stage decide at once, and react
              to what all stages before have changed

    blocks         one stage, the whole block
    layers_first   one layer after the other, each as early as what it reads allows; what a shortcut
                   needs (a projection) acts with the first layer
    layers_last    the same, each as late as what reads it allows; a projection acts with the last

Or stages of one's own: (("convolution_1",), ("convolution_2", "projection")). They are for all
blocks: a block that lacks one of the layers leaves its name out. What has no parameters is run as
soon as its values are there.

The alignment changes the policy alone. Parameters, curvature, momentum and the network's function
are what they are without it (`view.py`).
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from ocresnet.systems.pieces import STATE, Piece
from ocresnet.systems.system import Segment, System

AlignmentName = Literal["blocks", "layers_first", "layers_last"]
Stages = tuple[tuple[str, ...], ...]
Alignment = AlignmentName | Stages


def check_alignment(alignment: Any, others: tuple[str, ...] = ()) -> None:
    """Refuse what is no alignment of any network.

    Args:
      alignment: to check.
      others: names that are allowed too.

    Raises:
      ValueError: saying what is allowed.
    """
    names = (*get_args(AlignmentName), *others)
    if isinstance(alignment, str):
        if alignment not in names:
            raise ValueError(
                f"alignment is {alignment!r}, but must be one of {', '.join(names)}, or a tuple of "
                "stages."
            )
        return
    stages = isinstance(alignment, tuple) and all(isinstance(stage, tuple) for stage in alignment)
    if not stages or not all(isinstance(name, str) for stage in alignment for name in stage):
        raise ValueError(
            f"alignment is {alignment!r}, but must be one of {', '.join(names)}, or a tuple of "
            "stages, each a tuple of the names of layers."
        )
    listed = [name for stage in alignment for name in stage]
    for name in listed:
        if listed.count(name) > 1:
            raise ValueError(f"the alignment names layer {name!r} twice: a layer acts once.")


def stages_of(system: System, alignment: Alignment) -> dict[str, list[list[Piece]]]:
    """The stages of every segment that an alignment divides: {segment: pieces of each stage}.

    Segments without pieces, tied ones (whose layers act at several depths) and those that are one
    stage are left out.

    Raises:
      ValueError: for a system without pieces; for stages that name an unknown layer, leave one out,
        or read a value before the stage that makes it.
    """
    check_alignment(alignment)
    if alignment == "blocks":
        return {}
    of_pieces = [segment for segment in system.segments if segment.pieces and not segment.tied]
    if not of_pieces:
        raise ValueError(
            f"alignment {alignment!r} needs blocks that say which layers they are made of, and "
            "this network has none: choose alignment 'blocks'."
        )
    if not isinstance(alignment, str):
        known = [piece.name for s in of_pieces for piece in s.pieces if piece.decides]
        for name in (name for stage in alignment for name in stage):
            if name not in known:
                raise ValueError(
                    f"the alignment names a layer {name!r}, but those of this network's blocks are "
                    f"{', '.join(dict.fromkeys(known))}."
                )
    divided = {segment.name: _divided(segment, alignment) for segment in of_pieces}
    return {name: stages for name, stages in divided.items() if len(stages) > 1}


def _divided(segment: Segment, alignment: Alignment) -> list[list[Piece]]:
    """The pieces of every stage of a block, in the order in which they are run."""
    acts = _stages_of_layers(segment, alignment)
    stage_of = {STATE: 0}
    for piece in segment.pieces:
        ready = max(stage_of[name] for name in piece.reads)
        stage_of[piece.name] = acts.get(piece.name, ready)
        if ready > stage_of[piece.name]:
            late = max(piece.reads, key=lambda name: stage_of[name])
            raise ValueError(
                f"the alignment lets layer {piece.name!r} of segment {segment.name!r} act before "
                f"{late!r} is there, which it reads."
            )
    return [
        [piece for piece in segment.pieces if stage_of[piece.name] == stage]
        for stage in range(max(stage_of.values()) + 1)
    ]


def _stages_of_layers(segment: Segment, alignment: Alignment) -> dict[str, int]:
    """The stage of every layer of a block."""
    layers = [piece.name for piece in segment.pieces if piece.decides]
    if alignment == "layers_first":
        return _earliest(segment.pieces)
    if alignment == "layers_last":
        return _latest(segment.pieces)
    stages = [[name for name in stage if name in layers] for stage in alignment]
    acts = {name: stage for stage, own in enumerate(filter(None, stages)) for name in own}
    for name in layers:
        if name not in acts:
            raise ValueError(
                f"the alignment leaves out layer {name!r} of segment {segment.name!r}: each layer "
                "acts in one of the stages."
            )
    return acts


def _earliest(pieces: Sequence[Piece]) -> dict[str, int]:
    """How many layers there are, at most, on a way from the state to each layer."""
    done, acts = {STATE: 0}, {}
    for piece in pieces:
        before = max(done[name] for name in piece.reads)
        if piece.decides:
            acts[piece.name] = before
        done[piece.name] = before + piece.decides
    return acts


def _latest(pieces: Sequence[Piece]) -> dict[str, int]:
    """The last stage, less the layers that there are, at most, on a way from each layer on."""
    left: dict[str, int] = {}
    for piece in reversed(pieces):
        own = left.setdefault(piece.name, 0)
        for name in piece.reads:
            left[name] = max(left.get(name, 0), own + piece.decides)
    return {piece.name: left[STATE] - 1 - left[piece.name] for piece in pieces if piece.decides}
