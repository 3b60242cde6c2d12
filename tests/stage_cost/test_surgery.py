"""Removing any blocks: the smaller network against the gated one, and the orders of removal."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.block_scores import CRITERIA, ScoringData, switch_off
from ocresnet.stage_cost.objective import per_sample_loss
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.surgery import (
    RemovalCurve,
    config_without,
    greedy_removal_order,
    removal_curve,
    removal_order,
    removals_within_budget,
    removals_within_tolerance,
    remove_blocks,
)
from ocresnet.stage_cost.trajectory import logits_over_depth, trajectory
from ocresnet.systems import counts, resnet
from ocresnet.systems import network as networks
from ocresnet.systems.network import Network
from tests.conftest import SMALL, random_images, random_variables


def network_of(name: str, exits: str = "shared") -> Network:
    config = replace(SMALL[name], exits=exits)
    return Network(config, *random_variables(config))


def data_of(network: Network, samples: int = 8) -> ScoringData:
    images = random_images(network.config, batch=samples)
    return ScoringData(images, np.arange(samples) % 3)


def check_smaller_network(network: Network, removed: tuple[int, ...]) -> Network:
    """Every kept output of the gated network is that of the smaller one, saved and loaded."""
    small = remove_blocks(network, removed)
    images = random_images(network.config)
    whole = logits_over_depth(switch_off(network, removed), images)
    got = logits_over_depth(small, images)
    if network.config.exits != "none":
        kept = [block for block in range(network.config.depth) if block not in removed]
        whole = whole[[*kept, -1]]
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5)
    fresh = resnet.init(small.config, jax.random.key(0))
    assert shapes((small.params, small.batch_stats)) == shapes(tuple(fresh))
    return small


@pytest.mark.parametrize("exits", ["none", "shared", "separate"])
@pytest.mark.parametrize(
    ("name", "removed", "blocks", "bare"),
    [
        ("homogeneous", (), (4,), ()),
        ("homogeneous", (2, 0), (2,), ()),
        ("homogeneous", (0, 1, 2, 3), (0,), ()),
        ("standard", (), (2, 2, 2), ()),
        ("standard", (1, 3, 5), (1, 1, 1), ()),
        ("standard", (2,), (2, 1, 2), (1,)),  # an opening block
        ("standard", (4, 2), (2, 1, 1), (1, 2)),
        ("standard", (2, 3), (2, 0, 2), (1,)),  # a whole stage in the middle
        ("standard", (0, 1), (0, 2, 2), ()),  # the first stage
        ("standard", (0, 1, 2, 3), (0, 0, 2), (1,)),
        ("standard", (5, 4), (2, 2, 0), ()),  # a tail
        ("standard", (2, 4, 5), (2, 1, 0), (1,)),
        ("standard", (2, 3, 4, 5), (2, 0, 0), ()),
        ("standard", (0, 1, 2, 3, 4, 5), (0, 0, 0), ()),
    ],
)
def test_the_smaller_network_computes_what_the_gated_one_does(name, removed, blocks, bare, exits):
    small = check_smaller_network(network_of(name, exits), removed)
    assert (small.config.blocks, small.config.bare_stages) == (blocks, bare)


@pytest.mark.parametrize("name", SMALL)
def test_every_subset_has_the_architecture_it_should(name):
    """Depths add up, and removing in two steps is removing in one."""
    config = SMALL[name]
    for size in range(config.depth + 1):
        for removed in itertools.combinations(range(config.depth), size):
            left = config_without(config, removed)
            assert left.depth == config.depth - size
            if removed:
                first = config_without(config, removed[:1])
                rest = [block - 1 for block in removed[1:]]
                assert config_without(first, rest) == left


def test_surgery_can_be_repeated_and_saved(tmp_path):
    network = network_of("standard")
    once = remove_blocks(network, (2, 3, 5))
    small = check_smaller_network(remove_blocks(network, (2,)), (2, 4))
    jax.tree.map(np.testing.assert_array_equal, small.params, once.params)
    assert small.config == once.config
    networks.save(small, tmp_path)
    loaded = networks.load(tmp_path)
    assert loaded.config == small.config
    jax.tree.map(np.testing.assert_array_equal, loaded.batch_stats, small.batch_stats)


def test_a_tail_leaves_the_blocks_of_prune_with_the_outputs_own_statistics():
    network = network_of("standard")
    surgical, pruned = remove_blocks(network, (3, 4, 5)), prune(network, 3)
    assert surgical.config == pruned.config
    jax.tree.map(np.testing.assert_array_equal, surgical.params, pruned.params)
    own = network.batch_stats["output_block"]["norm"]["mean"]
    np.testing.assert_array_equal(surgical.batch_stats["output_block"]["norm"]["mean"], own)
    at_the_cut = network.batch_stats["stage_1"]["exit"]["mean"][0]
    np.testing.assert_array_equal(pruned.batch_stats["output_block"]["norm"]["mean"], at_the_cut)
    # Measured on the same images, the two are the same network.
    images = random_images(network.config, batch=6)
    jax.tree.map(
        np.testing.assert_array_equal,
        recalibrate(surgical, images).batch_stats,
        recalibrate(pruned, images).batch_stats,
    )


@pytest.mark.parametrize("remove", [remove_blocks, lambda n, b: config_without(n.config, b)])
def test_blocks_that_cannot_be_removed_are_refused(remove):
    network = network_of("standard")
    with pytest.raises(ValueError, match="there is no block 6: this network has blocks 0 to 5"):
        remove(network, [6])
    with pytest.raises(ValueError, match="there is no block -1"):
        remove(network, [-1])
    with pytest.raises(ValueError, match="name a block twice"):
        remove(network, [1, 1])


def brute_force_loss(network: Network, removed: list[int], data: ScoringData) -> float:
    """Of the really smaller network, in numpy."""
    logits = logits_over_depth(remove_blocks(network, removed), data.images)[-1].astype(float)
    right = logits[np.arange(len(data.labels)), data.labels]
    return float((np.log(np.exp(logits).sum(-1)) - right).mean())


@pytest.mark.parametrize("name", SMALL)
def test_greedy_removals_are_the_best_single_ones(name):
    network = network_of(name)
    data = data_of(network)
    order = greedy_removal_order(network, CRITERIA["loss_increase"], data, removals=3)
    removed: list[int] = []
    for chosen in order:
        left = [k for k in range(network.config.depth) if k not in removed]
        losses = {k: brute_force_loss(network, [*removed, k], data) for k in left}
        assert chosen == min(losses, key=losses.__getitem__)
        removed.append(chosen)


def test_greedy_with_new_statistics_scores_the_recalibrated_network():
    network = network_of("homogeneous")
    data = data_of(network)
    images = random_images(network.config, batch=6, seed=5)
    order = greedy_removal_order(
        network, CRITERIA["loss_increase"], data, removals=2, statistics_images=images
    )
    removed: list[int] = []
    for chosen in order:
        current = recalibrate(switch_off(network, removed), images)
        losses = {
            k: brute_force_loss(current, [*removed, k], data) for k in range(4) if k not in removed
        }
        assert chosen == min(losses, key=losses.__getitem__)
        removed.append(chosen)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_orders_name_every_block_once(criterion):
    network = network_of("homogeneous")
    data = data_of(network)
    order = removal_order(network, CRITERIA[criterion], data)
    scores = CRITERIA[criterion](network, data, ())
    assert sorted(order) == list(range(4))
    assert list(scores[order]) == sorted(scores)
    greedy = greedy_removal_order(network, CRITERIA[criterion], data)
    assert sorted(greedy) == list(range(4)) and greedy[0] == order[0]


def test_too_many_removals_are_refused():
    network = network_of("homogeneous")
    with pytest.raises(ValueError, match="cannot remove 5 blocks: this network has 4"):
        greedy_removal_order(network, CRITERIA["tail"], data_of(network), removals=5)


@pytest.mark.parametrize("statistics", [None, "measured"])
def test_the_curve_is_that_of_the_smaller_networks(statistics):
    network = network_of("standard")
    data = replace(data_of(network), loss=per_sample_loss("l2"), batch_size=5)
    images = random_images(network.config, batch=9, seed=3) if statistics else None
    order = [3, 2, 5]
    curve = removal_curve(network, order, data, statistics_images=images)
    assert list(curve.kept) == [6, 5, 4, 3]
    for index in range(4):
        small = remove_blocks(network, order[:index])
        if images is not None:
            small = recalibrate(small, images, batch_size=5)
        expected = trajectory(small, data.images, data.labels, loss=data.loss)
        for got, wanted in zip(curve[1:], expected[:3], strict=True):
            np.testing.assert_allclose(got[index], wanted[-1], rtol=1e-4)


def test_how_many_removals_a_tolerance_grants():
    curve = RemovalCurve(
        kept=np.array([4, 3, 2, 1, 0]),
        losses=np.zeros(5),
        accuracies=np.array([0.95, 0.93, 0.95, 0.94, 0.1]),
        probabilities=np.array([0.9, 0.9, 0.89, 0.8, 0.1]),
    )
    assert removals_within_tolerance(curve, 0) == 0
    assert removals_within_tolerance(curve, 1.0) == 2  # exactly a point
    assert removals_within_tolerance(curve, 10) == 3
    assert removals_within_tolerance(curve, 100) == 4
    with pytest.raises(ValueError, match="must not be negative"):
        removals_within_tolerance(curve, -1)


def test_how_many_removals_a_budget_needs():
    config = SMALL["standard"]
    order = [2, 4, 0, 1, 3, 5]
    shares = [
        counts.multiply_adds(config_without(config, order[:count])).total
        / counts.multiply_adds(config).total
        for count in range(7)
    ]
    assert removals_within_budget(config, order, 1.0) == 0
    for count in range(7):
        assert removals_within_budget(config, order, shares[count] + 1e-6) == count
    with pytest.raises(ValueError, match="the least share is"):
        removals_within_budget(config, order, shares[-1] / 2)
    with pytest.raises(ValueError, match="share of multiply-adds in"):
        removals_within_budget(config, order, 0)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
