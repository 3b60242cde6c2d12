"""Removing any blocks: the smaller network against the gated one, and the orders of removal."""

import itertools
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from ocresnet.costs import make_cost
from ocresnet.stage_cost.block_scores import CRITERIA, ScoringData, switch_off
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.surgery import (
    RemovalCurve,
    greedy_removal_order,
    removal_curve,
    removal_order,
    removals_within_budget,
    removals_within_tolerance,
    remove_blocks,
)
from ocresnet.stage_cost.trajectory import logits_over_depth
from ocresnet.systems import counts
from ocresnet.systems import network as networks
from ocresnet.systems.network import Network
from tests.conftest import SMALL, random_images
from tests.stage_cost.families import BOTTLENECK, FAMILIES, MLP, shapes
from tests.stage_cost.gated_oracle import ones_without, oracle_losses, random_network


@cache
def network_of(name: str, exits: str = "shared") -> Network:
    return random_network(replace(FAMILIES[name], exits=exits))


def data_of(network: Network, samples: int = 8) -> ScoringData:
    images = random_images(network.architecture, batch=samples)
    return ScoringData(images, np.arange(samples) % 3)


def check_smaller_network(network: Network, removed: tuple[int, ...]) -> Network:
    """Every kept output of the gated network is that of the smaller one, saved and loaded."""
    small = remove_blocks(network, removed)
    images = random_images(network.architecture)
    whole = logits_over_depth(switch_off(network, removed), images)
    got = logits_over_depth(small, images)
    if network.architecture.exits != "none":
        kept = [block for block in range(network.architecture.depth) if block not in removed]
        whole = whole[[*kept, -1]]
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5)
    fresh = jax.eval_shape(lambda: small.architecture.init(jax.random.key(0)))
    assert shapes((small.params, small.batch_stats)) == shapes(tuple(fresh))
    return small


ARCHITECTURES = [
    ("homogeneous", (), (4,), ()),
    ("homogeneous", (2, 0), (2,), ()),
    ("homogeneous", (0, 1, 2, 3), (0,), ()),
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
    ("bottleneck", (0,), (1, 2), (0,)),  # the first level opens with a projection too
    ("bottleneck", (2, 0), (1, 1), (0, 1)),
    ("bottleneck", (0, 1), (0, 2), (0,)),
    ("bottleneck", (0, 2, 3), (1, 0), (0,)),
    ("bottleneck", (0, 1, 2, 3), (0, 0), ()),  # and then belongs to the head
]


@pytest.mark.parametrize(("name", "removed", "blocks", "bare"), ARCHITECTURES)
def test_the_architecture_that_is_left(name, removed, blocks, bare):
    left = FAMILIES[name].without(removed)
    assert (left.blocks, left.bare_levels) == (blocks, bare)


@pytest.mark.parametrize(
    ("name", "removed", "exits"),
    [
        ("homogeneous", (2, 0), "shared"),
        ("homogeneous", (0, 1, 2, 3), "shared"),
        ("standard", (4, 2, 0), "separate"),
        ("standard", (2, 3), "shared"),
        ("standard", (0, 1), "separate"),
        ("standard", (2, 4, 5), "separate"),
        ("standard", (0, 1, 2, 3), "none"),
        ("bottleneck", (0, 2), "separate"),
        ("bottleneck", (0, 1, 2, 3), "shared"),
        ("residual_mlp", (1, 3), "separate"),
        ("residual_mlp", (0, 1, 2, 3), "shared"),
        ("transformer", (2, 0), "separate"),
        ("transformer", (0, 1, 2, 3), "shared"),
    ],
)
def test_the_smaller_network_computes_what_the_gated_one_does(name, removed, exits):
    check_smaller_network(network_of(name, exits), removed)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_subset_has_the_architecture_it_should(name):
    """Depths add up, and removing in two steps is removing in one."""
    config = FAMILIES[name]
    for size in range(config.depth + 1):
        for removed in itertools.combinations(range(config.depth), size):
            left = config.without(removed)
            assert left.depth == config.depth - size
            if removed:
                first = config.without(removed[:1])
                rest = [block - 1 for block in removed[1:]]
                assert first.without(rest) == left


def test_surgery_can_be_repeated_and_saved(tmp_path):
    network = network_of("standard")
    once = remove_blocks(network, (2, 3, 5))
    small = check_smaller_network(remove_blocks(network, (2,)), (2, 4))
    jax.tree.map(np.testing.assert_array_equal, small.params, once.params)
    assert small.architecture == once.architecture
    networks.save(small, tmp_path)
    loaded = networks.load(tmp_path)
    assert loaded.architecture == small.architecture
    jax.tree.map(np.testing.assert_array_equal, loaded.batch_stats, small.batch_stats)


def test_a_tail_leaves_the_blocks_of_prune_with_the_outputs_own_statistics():
    network = network_of("standard")
    surgical, pruned = remove_blocks(network, (3, 4, 5)), prune(network, 3)
    assert surgical.architecture == pruned.architecture
    jax.tree.map(np.testing.assert_array_equal, surgical.params, pruned.params)
    own = network.batch_stats["output_block"]["norm"]["mean"]
    np.testing.assert_array_equal(surgical.batch_stats["output_block"]["norm"]["mean"], own)
    at_the_cut = network.batch_stats["level_1"]["exit"]["norm"]["mean"][0]
    np.testing.assert_array_equal(pruned.batch_stats["output_block"]["norm"]["mean"], at_the_cut)
    # Measured on the same images, the two are the same network.
    images = random_images(network.architecture, batch=6)
    jax.tree.map(
        np.testing.assert_array_equal,
        recalibrate(surgical, images).batch_stats,
        recalibrate(pruned, images).batch_stats,
    )


@pytest.mark.parametrize("remove", [remove_blocks, lambda n, b: n.architecture.without(b)])
def test_blocks_that_cannot_be_removed_are_refused(remove):
    network = network_of("standard")
    with pytest.raises(ValueError, match="there is no block 6: this network has blocks 0 to 5"):
        remove(network, [6])
    with pytest.raises(ValueError, match="there is no block -1"):
        remove(network, [-1])
    with pytest.raises(ValueError, match="name a block twice"):
        remove(network, [1, 1])


@pytest.mark.parametrize("name", SMALL)
def test_greedy_removals_are_the_best_single_ones(name):
    network = network_of(name)
    data, depth = data_of(network), network.architecture.depth
    order = greedy_removal_order(network, CRITERIA["loss_increase"], data, removals=3)
    assert len(order) == 3
    removed: list[int] = []
    for chosen in order:
        losses = {
            k: oracle_losses(network, data, ones_without(depth, *removed, k))[0][-1].mean()
            for k in range(depth)
            if k not in removed
        }
        assert chosen == min(losses, key=losses.__getitem__)
        removed.append(chosen)


def test_scores_can_be_those_of_recalibrated_networks():
    network = network_of("homogeneous")
    images = random_images(network.architecture, batch=6, seed=5)
    data = replace(data_of(network), statistics_images=images)
    removed: list[int] = []
    for chosen in greedy_removal_order(network, CRITERIA["loss_increase"], data, removals=2):
        losses = {
            k: recalibrated_loss(network, [*removed, k], data) for k in range(4) if k not in removed
        }
        assert chosen == min(losses, key=losses.__getitem__)
        removed.append(chosen)
    scores = CRITERIA["loss_increase"](network, data, ())
    expected = [
        recalibrated_loss(network, [k], data) - recalibrated_loss(network, [], data)
        for k in range(4)
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


def recalibrated_loss(network: Network, removed: list[int], data: ScoringData) -> float:
    repaired = recalibrate(switch_off(network, removed), data.statistics_images)
    return oracle_losses(repaired, data, np.ones(network.architecture.depth))[0][-1].mean()


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


@pytest.mark.parametrize("anew", [False, True])
def test_the_curve_is_that_of_the_networks_on_the_way(anew):
    network = network_of("standard")
    data = replace(data_of(network), loss=make_cost("l2").value, batch_size=5)
    if anew:
        images = random_images(network.architecture, batch=9, seed=3)
        data = replace(data, statistics_images=images)
    order = [3, 2, 5]
    curve = removal_curve(network, order, data)
    assert list(curve.kept) == [6, 5, 4, 3]
    for index in range(4):
        gated = switch_off(network, order[:index])
        if anew:
            gated = recalibrate(gated, images, batch_size=5)
        losses, logits = oracle_losses(gated, data, np.ones(6), of="l2")
        chances = np.exp(-oracle_losses(gated, data, np.ones(6))[0][-1])
        expected = (
            losses[-1].mean(),
            (logits[-1].argmax(-1) == data.labels).mean(),
            chances.mean(),
        )
        np.testing.assert_allclose([value[index] for value in curve[1:]], expected, rtol=1e-3)


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
        counts.multiply_adds(config.without(order[:count])).total
        / counts.multiply_adds(config).total
        for count in range(7)
    ]
    for count, share in enumerate(shares):
        assert removals_within_budget(config, order, share) == count
        assert removals_within_budget(config, order, min(share + 1e-3, 1)) == count
    with pytest.raises(ValueError, match="the least share is"):
        removals_within_budget(config, order, shares[-1] / 2)
    with pytest.raises(ValueError, match="budget is 0, but must be a share in"):
        removals_within_budget(config, order, 0)


def test_a_branch_that_opens_the_first_level_goes_like_any_other():
    """Of a bottleneck network with one block, whose removal leaves the stem and its head."""
    config = replace(BOTTLENECK, blocks=(1, 0))
    small = check_smaller_network(random_network(config), (0,))
    assert small.architecture == replace(config, blocks=(0, 0))
    assert config.subresnet(0) == small.architecture


def test_a_network_without_residual_blocks_is_refused():
    network = random_network(MLP)
    data = data_of(network)
    for use in (
        lambda: remove_blocks(network, [0]),
        lambda: greedy_removal_order(network, CRITERIA["tail"], data),
        lambda: removal_curve(network, [0], data),
        *(lambda name=name: CRITERIA[name](network, data, ()) for name in CRITERIA),
    ):
        with pytest.raises(ValueError, match="needs residual blocks, and a MLPConfig has none"):
            use()
