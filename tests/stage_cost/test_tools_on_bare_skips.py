"""The depth tools on levels that open with their skip connection alone, and on bottlenecks."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.calibration import exit_costs
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.trajectory import logits_over_depth, parameter_norms
from ocresnet.systems import counts
from ocresnet.systems.blocks import blocks, with_blocks
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, apply, random_images, random_network, random_variables

WHOLE = SMALL["standard"]  # two blocks in each of three levels
BOTTLENECKS = ResNetConfig(
    (2, 2), (4, 8), classes=3, image_shape=(16, 16, 3), block="bottleneck", stem="imagenet"
)
CASES = [((0, 1, 2, 3), "shared"), ((2, 3, 4), "separate")]
"""Blocks 0 ... 5 that are removed, and the exits."""


@pytest.fixture(params=CASES, ids=str)
def case(request) -> tuple[Network, Network, tuple[int, ...]]:
    """The whole network, the one without some blocks, and which."""
    removed, exits = request.param
    whole = random_network(replace(WHOLE, exits=exits))
    kept = [block for index, block in enumerate(blocks(whole)) if index not in removed]
    smaller = with_blocks(whole, whole.architecture.without(removed), kept)
    return whole, smaller, removed


def test_pruning_afterwards_keeps_every_exit(case):
    _, smaller, _ = case
    images = random_images(WHOLE)
    outputs, _ = apply(smaller.architecture, smaller.variables, images)
    for count in range(smaller.architecture.depth + 1):
        cut = prune(smaller, count)
        assert cut.architecture.depth == count
        fresh = jax.eval_shape(cut.architecture.init, jax.random.key(0))
        assert structure(fresh.params) == structure(cut.params)
        logits, _ = apply(cut.architecture, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[count], rtol=1e-5, atol=2e-6)


def test_early_exit_walks_over_bare_skips(case):
    _, smaller, _ = case
    images = random_images(WHOLE, batch=12)
    logits = logits_over_depth(smaller, images)
    chances = np.asarray(jax.nn.softmax(logits)).max(-1)
    confidence = float(np.median(chances)) + 1e-4
    sure = chances >= confidence
    sure[-1] = True
    exits = sure.argmax(0)
    result = predict(smaller, images, confidence=confidence)
    np.testing.assert_array_equal(result.blocks, exits)
    np.testing.assert_array_equal(result.labels, logits[exits, np.arange(12)].argmax(-1))
    whole = predict(smaller, images, confidence=1.0)
    np.testing.assert_array_equal(whole.labels, logits[-1].argmax(-1))


def test_calibrated_exits_and_norms_have_one_entry_a_block(case):
    whole, smaller, removed = case
    calibrated = calibrate_exits(smaller, random_images(WHOLE, batch=8), batch_size=4)
    assert structure(calibrated.batch_stats) == structure(smaller.batch_stats)
    norms = parameter_norms(smaller.architecture, smaller.params)
    wanted = np.delete(parameter_norms(whole.architecture, whole.params), removed)
    np.testing.assert_allclose(norms, wanted, rtol=1e-6)


def test_exit_costs_with_bare_skips_by_hand():
    """Levels of 8x6, 4x3 and 2x2 pixels; the skips alone open levels 1 and 2."""
    config = ResNetConfig(
        (2, 0, 1), (4, 6, 8), classes=3, image_shape=(8, 6, 1), bare_levels=(1, 2)
    )
    total = counts.multiply_adds(config).total
    skips = 12 * 4 * 6 + 4 * 6 * 8
    from_first = 4 * (4 * 6 + 6 * 8) + 8 * 3
    stem = 48 * 9 * 4
    np.testing.assert_allclose(
        exit_costs(config) * total,
        [
            stem + from_first,
            stem + 48 * 9 * 32 + 2 * from_first,
            stem + 2 * 48 * 9 * 32 + skips + 2 * from_first + 24,
            total + 2 * from_first + 24,
        ],
    )


@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_lemma_2_holds_for_bottlenecks(exits):
    config = replace(BOTTLENECKS, exits=exits)
    network = Network(config, *random_variables(config))
    images = random_images(config)
    outputs, _ = apply(config, network.variables, images)
    for count in range(config.depth + 1):
        cut = prune(network, count)
        logits, _ = apply(cut.architecture, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[count], rtol=1e-5, atol=1e-6)


def test_norms_of_bottlenecks_have_one_entry_a_block():
    network = Network(BOTTLENECKS, *random_variables(BOTTLENECKS))
    norms = parameter_norms(BOTTLENECKS, network.params)
    first = jax.tree.leaves(network.params["opening_0"]["residual"])
    np.testing.assert_allclose(norms[0], np.sqrt(sum(np.sum(leaf**2) for leaf in first)), rtol=1e-6)
    assert norms.shape == (4,)


def structure(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
