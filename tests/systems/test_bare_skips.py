"""Levels that open with their skip connection alone: Lemma 1, and the list of blocks."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.systems import counts
from ocresnet.systems import network as networks
from ocresnet.systems.blocks import blocks, with_blocks
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, apply, random_images, random_network
from tests.systems.lemmas import subresnet, zero_branches

WHOLE = SMALL["standard"]  # two blocks in each of three levels

REMOVED = {
    "opening": ((2,), (2, 1, 2), (1,)),
    "both_openings": ((2, 4), (2, 1, 1), (1, 2)),
    "middle_level": ((2, 3), (2, 0, 2), (1,)),
    "middle_level_and_last_opening": ((2, 3, 4), (2, 0, 1), (1, 2)),
    "first_level": ((0, 1), (0, 2, 2), ()),
    "first_two_levels": ((0, 1, 2, 3), (0, 0, 2), (1,)),
}
"""Which of the blocks 0 ... 5 are removed, and `blocks` and `bare_levels` of what is left."""


EVERY = [*((name, "shared") for name in REMOVED), ("middle_level_and_last_opening", "separate")]
TWO = [("first_two_levels", "shared"), ("middle_level_and_last_opening", "separate")]

every_case = pytest.mark.parametrize("case", EVERY, indirect=True, ids=str)
two_cases = pytest.mark.parametrize("case", TWO, indirect=True, ids=str)


@pytest.fixture
def case(request):
    """The network with zero branches, the one without them, and which blocks were removed."""
    name, exits = request.param
    removed, counts_left, bare = REMOVED[name]
    whole = random_network(replace(WHOLE, exits=exits))
    config = replace(WHOLE, exits=exits, blocks=counts_left, bare_levels=bare)
    assert whole.architecture.without(removed) == config
    kept = [block for index, block in enumerate(blocks(whole)) if index not in removed]
    smaller = with_blocks(whole, config, kept)
    zeroed = whole.replace(params=zero_branches(whole.architecture, whole.params, removed))
    return zeroed, smaller, removed


@every_case
def test_lemma_1_the_smaller_network_computes_what_zero_branches_compute(case):
    zeroed, smaller, removed = case
    images = random_images(WHOLE)
    kept = [output for output in range(7) if output not in removed]
    for train in (False, True) if removed == REMOVED["middle_level"][0] else (False,):
        wanted, _ = apply(zeroed.architecture, zeroed.variables, images, train=train)
        logits, stats = apply(smaller.architecture, smaller.variables, images, train=train)
        np.testing.assert_allclose(logits, wanted[np.array(kept)], rtol=1e-6, atol=2e-6)
        assert structure(stats) == structure(smaller.batch_stats)


@every_case
def test_fresh_arrays_have_the_structure_of_the_pruned_ones(case):
    _, smaller, _ = case
    fresh = jax.eval_shape(smaller.architecture.init, jax.random.key(0))
    assert structure(fresh.params) == structure(smaller.params)
    assert structure(fresh.batch_stats) == structure(smaller.batch_stats)


@two_cases
def test_the_subresnets_of_what_is_left_compute_its_exits(case):
    _, smaller, _ = case
    images = random_images(WHOLE)
    outputs, _ = apply(smaller.architecture, smaller.variables, images)
    for count in range(smaller.architecture.depth + 1):
        cut = subresnet(smaller, count)
        assert cut.architecture.depth == count
        fresh = jax.eval_shape(cut.architecture.init, jax.random.key(0))
        assert structure(fresh.params) == structure(cut.params)
        logits, _ = apply(cut.architecture, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[count], rtol=1e-5, atol=2e-6)


@two_cases
def test_saved_networks_come_back(case, tmp_path):
    _, smaller, _ = case
    networks.save(smaller, tmp_path)
    loaded = networks.load(tmp_path)
    assert loaded.architecture == smaller.architecture
    jax.tree.map(np.testing.assert_array_equal, loaded.params, smaller.params)


def test_multiply_adds_of_bare_skips_by_hand():
    """Levels of 8x6, 4x3 and 2x2 pixels; the skips alone open levels 1 and 2."""
    config = ResNetConfig(
        (2, 0, 1), (4, 6, 8), classes=3, image_shape=(8, 6, 1), bare_levels=(1, 2)
    )
    cost = counts.multiply_adds(config)
    skips = 12 * 4 * 6 + 4 * 6 * 8
    np.testing.assert_array_equal(cost.skips, [0, 0, skips])
    np.testing.assert_array_equal(cost.blocks, [48 * 9 * 2 * 16] * 2 + [4 * 9 * 2 * 64])
    from_first = 4 * (4 * 6 + 6 * 8) + 8 * 3
    np.testing.assert_array_equal(cost.exits, [from_first, from_first, 8 * 3])
    stem = 48 * 9 * 4
    assert cost.total == stem + cost.blocks.sum() + skips + 8 * 3


def test_a_skip_after_the_last_block_belongs_to_the_head():
    config = replace(WHOLE, blocks=(2, 0, 2), bare_levels=(1,))
    assert config.subresnet(2).bare_levels == () and config.subresnet(2).blocks == (2, 0, 0)
    assert config.subresnet(3).bare_levels == (1,) and config.subresnet(3).blocks == (2, 0, 1)


@pytest.mark.parametrize(
    ("blocks", "bare", "message"),
    [
        ((2, 0, 1), (), "only the last levels can be without blocks"),
        ((2, 0, 1), (2,), "only the last levels can be without blocks"),
        ((2, 2, 0), (2,), r"bare_levels is \(2,\), but must name levels of \[1\]"),
        ((2, 1, 1), (0,), r"must name levels of \[1, 2\]"),
        ((2, 1, 1), (3,), r"must name levels of \[1, 2\]"),
        ((2, 1, 1), (2, 1), "in order"),
        ((2, 1, 1), (1, 1), "in order"),
        ((2, 1, 1), (1.5,), "bare_levels is"),
    ],
)
def test_impossible_bare_levels_are_refused(blocks, bare, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(blocks, (4, 6, 8), bare_levels=bare)


def structure(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
