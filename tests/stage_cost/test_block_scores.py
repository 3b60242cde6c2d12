"""Gates and scores against an independent network in float64, block by block."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.costs import make_cost
from ocresnet.stage_cost import block_scores
from ocresnet.stage_cost.block_scores import ScoringData, switch_off
from ocresnet.stage_cost.gates import gated_outputs
from ocresnet.systems.network import Network
from tests.conftest import SMALL, random_images
from tests.stage_cost.gated_oracle import WHERE, ones_without, oracle_losses, random_network

STAGE_COST = 0.1


@pytest.fixture(params=SMALL, scope="module")
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name) -> Network:
    return random_network(SMALL[name])


@pytest.fixture
def data(network) -> ScoringData:
    images = random_images(network.architecture, batch=7)
    return ScoringData(images, np.arange(7) % 3, stage_cost=STAGE_COST, batch_size=4)


def check(scores, expected, removed=()):
    expected = np.array(expected, np.float64)
    expected[list(removed)] = np.nan
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=2e-4, atol=2e-5)


def test_real_gates_scale_the_branches(network, data):
    gates = np.random.default_rng(0).normal(size=network.architecture.depth)
    _, logits = oracle_losses(network, data, gates)
    got = gated_outputs(
        network.architecture, network.variables, data.images, gates.astype(np.float32)
    )
    np.testing.assert_allclose(got, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("removed", [(), (1, 2)])
def test_scores_from_one_pass_for_each_block(network, data, removed):
    depth = network.architecture.depth
    before, _ = oracle_losses(network, data, ones_without(depth, *removed))
    after = np.array(
        [
            oracle_losses(network, data, ones_without(depth, *removed, k))[0].mean(-1)
            for k in range(depth)
        ]
    )
    change = after - before.mean(-1)
    check(block_scores.loss_increase(network, data, removed), change[:, -1], removed)
    sensitivity = change[:, -1] + STAGE_COST * change[:, :-1].sum(-1)
    check(block_scores.stage_cost_sensitivity(network, data, removed), sensitivity, removed)


@pytest.mark.parametrize("removed", [(), (1, 2)])
def test_the_taylor_score_is_a_derivative(network, data, removed):
    """Central differences in the gate of each block, sample by sample; of the l2 loss too."""
    depth, step = network.architecture.depth, 1e-5
    for loss in ("cross_entropy", "l2"):
        expected = []
        for k in range(depth):
            low, high = (
                oracle_losses(
                    network,
                    data,
                    ones_without(depth, *removed) + sign * step * np.eye(depth)[k],
                    of=loss,
                )[0][-1]
                for sign in (-1, 1)
            )
            expected.append(np.abs((high - low) / (2 * step)).mean())
        scoring = replace(data, loss=make_cost(loss).value)
        check(block_scores.taylor(network, scoring, removed), expected, removed)


def test_output_residuals_and_norms(network, data):
    _, logits = oracle_losses(network, data, ones_without(network.architecture.depth, 1))
    residuals = np.linalg.norm(np.diff(logits, axis=0), axis=-1).mean(-1)
    check(block_scores.output_residual(network, data, [1]), residuals, [1])
    norms = []
    for segment, place in WHERE[network.architecture.blocks]:
        leaves = jax.tree.leaves(network.params[segment]["residual"])
        norms.append(np.sqrt(sum(np.square(np.asarray(leaf)[place]).sum() for leaf in leaves)))
    check(block_scores.weight_norm(network, data, [1]), norms, [1])


def test_orders_without_any_measurement(network, data):
    depth = network.architecture.depth
    assert list(np.argsort(block_scores.tail(network, data))) == list(range(depth))[::-1]
    scores = block_scores.random(network, data)
    assert sorted(scores) == list(range(depth))
    assert list(scores) == list(block_scores.random(network, data))
    others = [block_scores.random(network, replace(data, seed=seed)) for seed in range(1, 4)]
    assert any(list(scores) != list(other) for other in others)


def test_what_does_not_fit_is_refused(network, data):
    plain = replace(network, architecture=replace(network.architecture, exits="none"))
    for criterion in (block_scores.output_residual, block_scores.stage_cost_sensitivity):
        with pytest.raises(ValueError, match="give it some with calibrate_exits first"):
            criterion(plain, data)
    depth = network.architecture.depth
    with pytest.raises(ValueError, match=f"there is no block {depth}: .* 0 to {depth - 1}"):
        switch_off(network, [0, depth])
    with pytest.raises(ValueError, match="there is no block -1"):
        switch_off(network, [-1])
    with pytest.raises(ValueError, match="name a block twice"):
        block_scores.taylor(network, data, [1, 1])
    with pytest.raises(ValueError, match=r"labels have shape \(7, 3\) .* one-hot labels"):
        block_scores.taylor(network, replace(data, labels=np.eye(3)[data.labels]))
