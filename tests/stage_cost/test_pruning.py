"""Cutting, the depth rule, and the report."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.pruning import (
    best_depth_within,
    prune,
    recommend_depth,
    report,
    report_table,
)
from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.systems import counts
from ocresnet.systems.network import Network
from tests.conftest import random_images, random_network
from tests.stage_cost.families import FAMILIES, MLP, shapes


def network_of(name: str, exits: str) -> Network:
    return random_network(replace(FAMILIES[name], exits=exits))


@pytest.mark.parametrize("exits", ["shared", "separate"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_network_is_as_large_as_a_subresnet_trained_alone(name, exits):
    """All SubResNets of one depth have the same parameters (paper, A.1), of the same shapes."""
    network = network_of(name, exits)
    for blocks in range(network.architecture.depth):
        cut = prune(network, blocks)
        alone = replace(network.architecture.subresnet(blocks), exits="none")
        assert cut.architecture.exits == ("shared" if exits == "shared" else "none")
        fresh = fresh_arrays(replace(alone, exits=cut.architecture.exits))
        assert shapes(cut.params) == shapes(fresh.params)
        assert shapes(cut.batch_stats) == shapes(fresh.batch_stats)
        assert counts.parameter_count(cut.params) == counts.parameter_count(
            fresh_arrays(alone).params
        )


def test_cutting_nothing_changes_nothing():
    network = network_of("standard", "shared")
    cut = prune(network, network.architecture.depth)
    assert cut.architecture == network.architecture
    assert shapes(cut.params) == shapes(network.params)


def test_a_network_without_exits_cannot_be_cut():
    with pytest.raises(ValueError, match="calibrate_exits first"):
        prune(network_of("standard", "none"), 2)


def test_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match="cannot keep 7 blocks: this network has 6"):
        prune(network_of("standard", "shared"), 7)


def test_what_cannot_be_cut_is_refused():
    network = network_of("homogeneous", "shared")
    assert prune(network, np.int64(2)).architecture.depth == 2
    for wish in (2.0, "2", None):
        with pytest.raises(ValueError, match="cannot keep .* blocks: this network has 4"):
            prune(network, wish)
    with pytest.raises(ValueError, match="network is a int, but must be a Network"):
        prune(2, network)
    with pytest.raises(ValueError, match="pruning needs residual blocks, and a MLPConfig has none"):
        prune(random_network(MLP), 1)


def measured(accuracies, probabilities=None) -> Trajectory:
    accuracies = np.array(accuracies)
    probabilities = accuracies if probabilities is None else np.array(probabilities)
    return Trajectory(-np.log(accuracies), accuracies, probabilities, np.zeros(len(accuracies) - 1))


@pytest.mark.parametrize(
    ("accuracies", "probabilities", "tolerance", "blocks"),
    [
        ([0.1, 0.8, 0.9, 0.9], None, 0.5, 2),
        ([0.1, 0.895, 0.9, 0.9], None, 0.5, 1),  # exactly half a point
        ([0.1, 0.894, 0.9, 0.9], None, 0.5, 2),
        ([0.1, 0.95, 0.9, 0.9], None, 0.0, 1),  # an exit may be better than the end
        ([0.9, 0.9, 0.9], None, 0.0, 0),
        ([0.1, 0.2, 0.9], None, 0.5, 2),
        ([0.1, 0.9, 0.9, 0.9], [0.1, 0.7, 0.86, 0.86], 0.5, 2),  # equal mistakes, less sure
        ([0.1, 0.9, 0.9, 0.9], [0.1, 0.7, 0.86, 0.86], 20, 1),
    ],
)
def test_depth_rule(accuracies, probabilities, tolerance, blocks):
    assert recommend_depth(measured(accuracies, probabilities), tolerance) == blocks


def test_depth_rule_refuses_nonsense():
    with pytest.raises(ValueError, match="must not be negative"):
        recommend_depth(measured([0.5, 0.6]), -1)
    with pytest.raises(ValueError, match="one output leaves no depth to choose"):
        recommend_depth(measured([0.5]))
    with pytest.raises(ValueError, match=r"is a dict, but must be a Trajectory: .* one split"):
        recommend_depth({"validation": measured([0.5, 0.6])})
    with pytest.raises(ValueError, match="finite"):
        recommend_depth(measured([0.5, np.nan]))


def test_depth_for_a_budget_is_the_best_that_it_pays_for():
    architecture = network_of("homogeneous", "shared").architecture
    costs = [counts.multiply_adds(architecture.subresnet(blocks)).total for blocks in range(5)]
    found = measured([0.2, 0.8, 0.7, 0.8, 0.9])
    assert best_depth_within(found, architecture, costs[4]) == 4
    assert best_depth_within(found, architecture, costs[4] - 1) == 1  # as good as 3
    assert best_depth_within(found, architecture, costs[0]) == 0
    with pytest.raises(ValueError, match="no depth costs 1 multiply-adds or less"):
        best_depth_within(found, architecture, 1)
    with pytest.raises(ValueError, match="has 3 outputs, but a network of 4 blocks has 5"):
        best_depth_within(measured([0.2, 0.8, 0.7]), architecture, costs[4])
    with pytest.raises(ValueError, match="finite"):
        best_depth_within(measured([0.2, 0.8, 0.7, np.nan, 0.9]), architecture, costs[4])


def test_report_measures_the_networks_own_output():
    network = network_of("homogeneous", "shared")
    images = random_images(network.architecture, batch=12)
    labels = np.arange(12) % 3
    reports = [report(n, images, labels) for n in (network, prune(network, 1))]
    assert [r.blocks for r in reports] == [4, 1]
    assert reports[0].parameters == counts.parameter_count(network.params)
    assert reports[1].multiply_adds == counts.multiply_adds(network.architecture.subresnet(1)).total
    assert all(r.milliseconds > 0 and 0 <= r.accuracy <= 1 for r in reports)
    table = report_table(*reports)
    assert "| residual blocks | 4 | 1 | 0.25 |" in table
    assert len(table.splitlines()) == 7


def fresh_arrays(architecture):
    return jax.eval_shape(lambda: architecture.init(jax.random.key(0)))
