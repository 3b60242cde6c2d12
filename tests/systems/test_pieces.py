"""Transitions that say what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.pieces import STATE, Piece, add, composed, merged
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution, Segment, Stage, System, Variables


def scale(name: str) -> Piece:
    def function(stage, x):
        return stage.params[name] * x, {"counts": {name: stage.batch_stats["counts"][name] + 1}}

    return Piece(name, function, entries=(name, f"counts/{name}"))


def test_the_value_of_the_last_piece_is_the_next_state():
    transition = composed([scale("a"), scale("b"), Piece("sum", add, ("a", "b"))])
    stage = Stage({"a": 2.0, "b": 3.0}, {"counts": {"a": 0, "b": 7}}, jnp.zeros(()))
    state, stats = transition(stage, 10.0)
    assert state == 50.0 and stats == {"counts": {"a": 1, "b": 8}}


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([Piece("sum", add, (STATE, "a")), scale("a")], "reads 'a', but what is there before it"),
        ([scale("a"), scale("a")], "two pieces have the name 'a'"),
        ([Piece(STATE, add)], "two pieces have the name 'state'"),
        ([scale("a"), Piece("c", add, entries=("a",))], "two pieces have the entry 'a'"),
    ],
)
def test_impossible_graphs_are_refused(pieces, said):
    with pytest.raises(ValueError, match=said):
        composed(pieces)


def test_nested_dictionaries_are_merged_at_every_level():
    left, right = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4, "z": 5}, "c": 6}
    assert merged(left, right) == {"a": {"x": 1, "y": 4, "z": 5}, "b": 3, "c": 6}


@pytest.mark.parametrize(
    "architecture",
    [
        ResNetConfig.standard(4, (3, 4), image_shape=(6, 6, 1)),
        ResNetConfig(blocks=(2, 2), filters=(1, 2), block="bottleneck", image_shape=(6, 6, 1)),
        ResidualMLPConfig(blocks=2, width=4, image_shape=(6, 6, 1)),
    ],
    ids=["basic", "bottleneck", "dense"],
)
def test_the_pieces_of_a_block_own_all_of_its_branch(architecture):
    """Each array once; only openings have a projection, a shared parameter."""
    variables = jax.eval_shape(architecture.init, jax.random.key(0))
    for segment in architecture.system().blocks:
        owned = sorted(entry for piece in segment.pieces for entry in piece.entries)
        assert owned == sorted(
            f"residual/{name}" for name in variables.params[segment.name]["residual"]
        )
        shared = [path for piece in segment.pieces for path in piece.shared]
        opening = segment.name.startswith("opening")
        assert shared == ([f"projections/level_{segment.name[-1]}"] if opening else [])


def test_interleaved_segments_take_turns():
    def tag(number):
        def transition(stage, x):
            return jnp.roll(x, 1).at[0].set(10 * number + stage.time), {}

        return transition

    for unroll in (False, True):
        system = System(
            (
                Segment("a", tag(1), length=3),
                Segment("b", tag(2), length=3),
                Segment("c", tag(3)),
            ),
            interleaved=(("a", "b"),),
            execution=Execution(remat="none", unroll=unroll),
        )
        assert [[s.name for s in run] for run in system.runs] == [["a", "b"], ["c"]]
        last = rollout(system, Variables({}, {}), jnp.zeros(7), train=True, keep_states=True)
        np.testing.assert_array_equal(last.state, [30, 22, 12, 21, 11, 20, 10])
        np.testing.assert_array_equal(last.states["b"][:, 0], [10, 11, 12])


@pytest.mark.parametrize(
    ("segments", "together"),
    [
        ((("a", 2), ("b", 3)), ("a", "b")),
        ((("a", 2), ("c", 2), ("b", 2)), ("a", "b")),
        ((("a", None), ("b", None)), ("a", "b")),
        ((("a", 2), ("b", 2)), ("b", "a")),
    ],
)
def test_segments_that_cannot_be_interleaved_are_refused(segments, together):
    def keep(stage, x):
        return x, {}

    made = tuple(Segment(name, keep, length=length) for name, length in segments)
    with pytest.raises(ValueError, match="interleaved, but must follow each other"):
        System(made, interleaved=(together,))
