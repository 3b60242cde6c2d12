"""A problem seen in the stages of an alignment.

Notation
    network   the system as it is: a block is one transition, one stage
    view      the same system with several stages in a block, each a segment of its own
    cut       between two stages of a block;  its state: all values that later stages read

Segment "level_0" of a network becomes "level_0.1", "level_0.2" and so on, interleaved where it is
stacked, so that they are still scanned over the blocks. The state inside a block is augmented: of a
residual block it is the branch's value and the shortcut's, {"convolution_1": ..., "state": ...}.
What feeds back is then the predicted change over every edge of the cut, because deviations are
inner products over all of the state (`rollout.py`).

A tree like the network's parameters is turned into one like the view's by giving its parts other
names, before anything is compiled: "level_0/residual/norm_1" is
"level_0.1/convolution_1/residual/norm_1". So every piece with parameters is an entry of its stage,
and a player. What no piece owns, such as an exit, which is read before the block, is the first
stage's. Shared parameters that one piece alone reads are that piece's own: a shortcut's projection,
if exits, which cost something, do not read it too.
"""

from dataclasses import dataclass, replace

from ocresnet.control.alignment import Alignment, stages_of
from ocresnet.control.curvature.protocol import Entries, flatten, unflatten
from ocresnet.problem import Problem
from ocresnet.systems.pieces import STATE, Piece, merged, run_piece
from ocresnet.systems.system import PyTree, Segment, Stage, State, Transition
from ocresnet.systems.taps import AffineLayer


@dataclass(frozen=True, eq=False)
class View:
    """A problem in other stages, and the names that its parts have there.

    Attributes:
      problem: system and costs, in the stages of the alignment.
      names: {path in the network's trees: path in the view's}, of whole subtrees; what lies below
        none of them keeps its name.
    """

    problem: Problem
    names: dict[str, str]

    def path(self, path: str) -> str:
        """The view's path of what is at a path of the network."""
        above = path
        while above not in self.names:
            if "/" not in above:
                return path
            above = above.rpartition("/")[0]
        return self.names[above] + path.removeprefix(above)

    def split(self, tree: PyTree) -> PyTree:
        """A tree like the network's parameters (or batch statistics) as one like the view's."""
        renamed = {name.partition("/")[0] for name in self.names}
        result = {name: part for name, part in tree.items() if name not in renamed}
        for path, leaf in flatten({name: tree[name] for name in renamed & {*tree}}).items():
            *above, last = self.path(path).split("/")
            node = result
            for key in above:
                node = node.setdefault(key, {})
            node[last] = leaf
        for name in self.problem.system.shared:
            if name in tree:
                result.setdefault(name, {})
        return result

    def join(self, tree: PyTree, like: PyTree) -> PyTree:
        """Undo `split`, into the structure of the tree `like`."""
        flat = flatten(tree)
        return unflatten({path: flat[self.path(path)] for path in flatten(like)}, like)

    def entries(self, entries: Entries) -> Entries:
        """The network's curvature, by the paths of the view."""
        return {self.path(path): entry for path, entry in entries.items()}


def aligned(problem: Problem, alignment: Alignment) -> View:
    """A problem in the stages of an alignment.

    Args:
      problem: system and costs.
      alignment: which layers act together; "blocks": the problem as it is.

    Raises:
      ValueError: for an alignment that does not fit the system.
    """
    divided = stages_of(problem.system, alignment)
    if not divided:
        return View(problem, {})
    system = problem.system
    # A parameter that a costly exit reads as well is decided before all stages, as it is without.
    unread = all(segment.output is None for segment in system.segments)
    names = {
        path: new
        for name, stages in divided.items()
        for path, new in _names_of(name, stages, with_shared=unread).items()
    }
    view = View(problem, names)
    segments: list[Segment] = []
    for segment in system.segments:
        stages = divided.get(segment.name)
        segments += [segment] if stages is None else _segments(view, segment, stages)
    interleaved = tuple(
        tuple(_stage_name(segment.name, index) for index in range(len(divided[segment.name])))
        for segment in system.segments
        if segment.name in divided and segment.stacked
    )
    shared_layers = {
        path: layer for path, layer in system.shared_layers.items() if view.path(path) == path
    }
    system = replace(
        system, segments=tuple(segments), shared_layers=shared_layers, interleaved=interleaved
    )
    stage_cost = tuple(problem.stage_costs.tolist()) or 0.0
    return replace(view, problem=replace(problem, system=system, stage_cost=stage_cost))


def _stage_name(segment: str, index: int) -> str:
    return f"{segment}.{index + 1}"


def _names_of(segment: str, stages: list[list[Piece]], with_shared: bool) -> dict[str, str]:
    """{path in the network: path in the view} of all that belongs to a block."""
    names = {segment: _stage_name(segment, 0)}
    for index, pieces in enumerate(stages):
        for piece in pieces:
            own = f"{_stage_name(segment, index)}/{piece.name}"
            names |= {f"{segment}/{entry}": f"{own}/{entry}" for entry in piece.entries}
            if with_shared:
                names |= {path: f"{own}/{path}" for path in piece.shared}
    return names


def _segments(view: View, segment: Segment, stages: list[list[Piece]]) -> list[Segment]:
    """The segments that a segment is divided into."""
    system = view.problem.system
    declared = {
        "/".join(filter(None, (segment.name, path))): layer
        for path, layer in segment.layers.items()
    }
    layers: dict[str, AffineLayer] = {
        view.path(path): layer for path, layer in (declared | dict(system.shared_layers)).items()
    }
    result = []
    for index, pieces in enumerate(stages):
        name = _stage_name(segment.name, index)
        owners = [piece.name for piece in pieces if _owns(view, segment, piece)]
        result.append(
            replace(
                segment,
                name=name,
                transition=_stage_transition(stages, index, segment.pieces[-1].name),
                output=segment.output if index == 0 else None,
                skip=None,
                layers={
                    path.removeprefix(f"{name}/"): layer
                    for path, layer in layers.items()
                    if path.startswith(f"{name}/")
                },
                players=tuple(owners[1:]),
                pieces=(),
            )
        )
    return result


def _owns(view: View, segment: Segment, piece: Piece) -> bool:
    """Whether a piece has parameters of its own in the view."""
    return bool(piece.entries) or any(path in view.names for path in piece.shared)


def _stage_transition(stages: list[list[Piece]], index: int, result: str) -> Transition:
    """The pieces of one stage: from the state of the cut before it to that of the cut after it.

    `result` names what leaves the last one.
    """
    pieces = stages[index]
    read_later = {name for later in stages[index + 1 :] for piece in later for name in piece.reads}
    read_later.add(result)
    first, last = index == 0, index == len(stages) - 1

    def transition(stage: Stage, state: State) -> tuple[State, PyTree]:
        values = {STATE: state} if first else dict(state)
        stats = {}
        for piece in pieces:
            values[piece.name], changed = run_piece(piece, _of_piece(stage, piece), values)
            if changed:
                stats[piece.name] = changed
        if last:
            return values[result], stats
        return {name: value for name, value in values.items() if name in read_later}, stats

    return transition


def _of_piece(stage: Stage, piece: Piece) -> Stage:
    """What a piece reads, under the names that it has in the network."""
    own = stage.params.get(piece.name, {})
    return stage._replace(
        params=own,
        batch_stats=stage.batch_stats.get(piece.name, {}),
        shared=merged(stage.shared or {}, own),
    )
