"""Which layer acts in which stage."""

from dataclasses import replace

import pytest

from ocresnet.control.alignment import stages_of
from ocresnet.control.curvature import identity
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.settings import Settings
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.pieces import STATE, Piece, add, composed
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Segment, System
from ocresnet.training.optimizers import OCNOpt

RESNET = ResNetConfig(blocks=(2, 2), filters=(2, 3), image_shape=(4, 4, 1), exits="none").system()


def named(system, alignment):
    return {
        name: [[piece.name for piece in stage] for stage in stages]
        for name, stages in stages_of(system, alignment).items()
    }


def test_a_projection_acts_with_the_first_or_the_last_layer():
    assert stages_of(RESNET, "blocks") == {}
    plain = [["convolution_1"], ["convolution_2", "sum"]]
    assert named(RESNET, "layers_first") == {
        "level_0": plain,
        "opening_1": [["convolution_1", "projection"], ["convolution_2", "sum"]],
        "level_1": plain,
    }
    last = named(RESNET, "layers_last")
    assert last["opening_1"] == [["convolution_1"], ["convolution_2", "projection", "sum"]]
    assert last["level_0"] == plain
    own = (("convolution_1",), ("convolution_2", "projection"))
    assert named(RESNET, own) == last


def test_stages_of_ones_own_may_put_several_layers_together_or_one_alone():
    bottleneck = ResNetConfig(
        blocks=(2, 1), filters=(1, 1), block="bottleneck", image_shape=(4, 4, 1), exits="none"
    ).system()
    own = (("convolution_1", "convolution_2"), ("projection",), ("convolution_3",))
    found = named(bottleneck, own)
    assert found["opening_0"] == [
        ["convolution_1", "convolution_2"],
        ["projection"],
        ["convolution_3", "sum"],
    ]
    # A block without a projection has no stage for it.
    assert found["level_0"] == [["convolution_1", "convolution_2"], ["convolution_3", "sum"]]
    everything = (("convolution_3", "projection", "convolution_1", "convolution_2"),)
    assert named(bottleneck, everything) == {}


def test_branches_of_any_length_have_an_earliest_and_a_latest_stage():
    """A long branch and a short one, of the same state, and what reads both."""

    def layer(name, *reads):
        return Piece(name, add, reads, (name,))

    pieces = (
        layer("long_1", STATE),
        layer("long_2", "long_1"),
        layer("short", STATE),
        Piece("sum", add, ("long_2", "short")),
        layer("after", "sum"),
    )
    system = System((Segment("block", composed(pieces), pieces=pieces),))
    assert named(system, "layers_first")["block"] == [
        ["long_1", "short"],
        ["long_2", "sum"],
        ["after"],
    ]
    assert named(system, "layers_last")["block"] == [
        ["long_1"],
        ["long_2", "short", "sum"],
        ["after"],
    ]


IMPOSSIBLE = [
    ("layers", "must be one of blocks, layers_first, layers_last, adaptive, or a tuple of stages"),
    (3, "must be one of blocks"),
    (("convolution_1", "convolution_2"), "a tuple of stages, each a tuple"),
    ((("convolution_1",), ("convolution_2", "dense")), "names a layer 'dense', but those of"),
    ((("convolution_1", "projection"),), "leaves out layer 'convolution_2' of segment 'level_0'"),
    ((("convolution_1",), ("convolution_2",)), "leaves out layer 'projection' of segment 'opening"),
    (
        (("convolution_1",), ("convolution_2", "projection", "convolution_1")),
        "'convolution_1' twice",
    ),
    (
        (("convolution_2",), ("convolution_1", "projection")),
        "'convolution_2' of segment 'level_0' act before 'convolution_1' is there",
    ),
]


@pytest.mark.parametrize(("alignment", "said"), IMPOSSIBLE)
def test_an_impossible_alignment_is_refused_before_anything_is_compiled(alignment, said):
    with pytest.raises(ValueError, match=said):
        ocnopt(RESNET, 0.1, curvature=identity(), alignment=alignment, rollout="nonlinear")


def test_a_family_without_pieces_is_refused():
    system = CNNConfig(filters=(2,), strides=(1,), hidden=(3,), image_shape=(4, 4, 1)).system()
    for alignment in ("layers_first", "adaptive"):
        with pytest.raises(ValueError, match="blocks that say which layers they are made of"):
            ocnopt(system, 0.1, alignment=alignment, rollout="nonlinear")
    ocnopt(system, 0.1, alignment="blocks")


def test_a_tied_block_is_one_stage():
    system = ResidualMLPConfig(blocks=2, width=3, image_shape=(2, 2, 1)).system()
    tied = replace(system.segments[1], tied=True)
    with pytest.raises(ValueError, match="this network has none"):
        stages_of(replace(system, segments=(system.segments[0], tied)), "layers_first")
    assert set(stages_of(system, "layers_first")) == {"blocks"}


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"alignment": "layers"}, "alignment is 'layers', but must be one of blocks"),
        (
            {"alignment": "adaptive", "alignment_hold": 3, "rollout": "nonlinear"},
            "hold is 3, but must be an even number",
        ),
        (
            {"alignment": "layers_last"},
            "alignment is 'layers_last', but along linear predictions all alignments take the same",
        ),
    ],
)
def test_the_configuration_refuses_an_impossible_alignment(choices, said):
    with pytest.raises(ValueError, match=said):
        OCNOpt(**choices)


def test_a_sample_that_reacts_to_what_all_decide_may_have_any_alignment():
    """As its reaction does not undo what the average decides."""
    assert Settings(alignment="layers_last", feedback="per_sample").alignment == "layers_last"


def test_the_configuration_says_which_stages_a_step_keeps():
    of_layers = OCNOpt(alignment="layers_last", rollout="nonlinear")
    assert of_layers.keep_on(1).alignment == "layers_last"
    nash = replace(of_layers, rollout="linear", equilibrium="nash")
    assert nash.keep_on(1).alignment == "blocks"
    assert not replace(of_layers, alignment="adaptive").keep_on(1).trajectory
