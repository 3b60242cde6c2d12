"""Theorems 1 and 2 against the objective at the feasible point, and the paper's own tables."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest

from experiments.paper.numbers import BOUNDS, BoundsRow
from ocresnet.stage_cost.bounds import (
    average_loss,
    theorem1,
    theorem2,
    tightness,
    training_objective,
)
from ocresnet.stage_cost.embedding import embed
from ocresnet.systems.network import Network
from tests.conftest import SMALL, random_images, random_network
from tests.systems import numpy_resnet

GAMMA, WEIGHT_DECAY = 0.3, 0.07


def measure(network: Network, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Losses of every output and squared norms of every residual branch, in float64."""
    images = random_images(network.architecture, batch=6).astype(np.float64)
    labels = np.arange(6) % network.architecture.classes
    params, stats = in_float64(network.params), in_float64(network.batch_stats)
    logits = numpy_resnet.forward(network.architecture, params, stats, images, train)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(chances[:, np.arange(6), labels]).mean(-1)
    squares = [
        sum(np.sum(leaf**2) for leaf in jax.tree.leaves(block["residual"]))
        for block, *_ in numpy_resnet.blocks_in_order(network.architecture, params, stats)
    ]
    return losses, np.array(squares)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("exits", ["shared", "separate"])
@pytest.mark.parametrize(("name", "blocks"), [("homogeneous", 4), ("standard", 0), ("standard", 3)])
def test_bounds_are_the_objective_at_the_feasible_point(name, blocks, exits, train):
    config = replace(SMALL[name], exits=exits)
    shallow = random_network(config.subresnet(blocks))
    losses, squares = measure(shallow, train)
    deep_losses, deep_squares = measure(embed(shallow, config), train)
    depth = config.depth
    assert len(deep_losses) == depth + 1 and np.all(deep_squares[blocks:] == 0)

    brute_force = deep_losses[-1]
    for k in range(depth):
        brute_force += GAMMA * deep_losses[k] + WEIGHT_DECAY / 2 * deep_squares[k]
    bound = theorem1(losses, squares, blocks=depth, stage_cost=GAMMA, weight_decay=WEIGHT_DECAY)
    np.testing.assert_allclose(bound, brute_force, rtol=0, atol=1e-10)
    at_point = training_objective(
        deep_losses, deep_squares, stage_cost=GAMMA, weight_decay=WEIGHT_DECAY
    )
    np.testing.assert_allclose(at_point, brute_force, rtol=0, atol=1e-10)

    # Theorem 2 is the objective without weight decay over gamma (N + 1), and at the feasible point
    # all that it gives away is (1 - gamma) / gamma of the last loss.
    second = theorem2(losses, blocks=depth, stage_cost=GAMMA)
    without_decay = deep_losses[-1] + GAMMA * deep_losses[:-1].sum()
    np.testing.assert_allclose(second.bound, without_decay / GAMMA / (depth + 1), atol=1e-10)
    given_away = (1 - GAMMA) / GAMMA * losses[-1] / (depth + 1)
    np.testing.assert_allclose(
        second.bound - average_loss(deep_losses), given_away, rtol=0, atol=1e-10
    )


def test_the_formulas_of_the_paper_by_hand():
    """M = 1, N = 3, L_0 = 1, Lbar = 0.5, ||w_0||^2 = 2."""
    bound = theorem1([1.0, 0.5], [2.0], blocks=3, stage_cost=0.1, weight_decay=0.2)
    np.testing.assert_allclose(bound, 0.1 + 0.2 + 1.2 * 0.5)
    second = theorem2([1.0, 0.5], blocks=3, stage_cost=0.1)
    np.testing.assert_allclose(second.constant, 1 + 0.8 / 0.1 * 0.5)
    np.testing.assert_allclose(second.bound, 0.5 + second.constant / 4)
    np.testing.assert_allclose(second.as_printed, 0.5 + 1 + 4 / 4)
    assert tightness(3.0, 1.0) == (3.0, 1.0, 2.0)


def test_the_constant_does_not_depend_on_the_depth():
    bounds = [theorem2([2.0, 0.5, 0.1], blocks=n, stage_cost=0.02) for n in (2, 54, 10**6)]
    assert len({bound.constant for bound in bounds}) == 1
    assert bounds[0].bound > bounds[1].bound > bounds[2].bound
    np.testing.assert_allclose(bounds[2].bound, 0.1, atol=1e-5)


N, PAPER_GAMMA = 54, 0.02
ROUNDING = 0.0005
"""Half of the last printed digit."""


@pytest.mark.parametrize("rows", BOUNDS.values(), ids=BOUNDS)
def test_the_papers_gaps_are_bound_minus_value(rows):
    for row in rows:
        assert abs(row.objective_bound - row.objective - row.objective_gap) < 3.01 * ROUNDING
        assert (
            abs(row.average_loss_bound - row.average_loss - row.average_loss_gap) < 3.01 * ROUNDING
        )


@pytest.mark.parametrize("rows", BOUNDS.values(), ids=BOUNDS)
def test_the_papers_rows_without_blocks_are_both_theorems(rows):
    row = rows[0]
    bound_1 = theorem1([row.loss], [], blocks=N, stage_cost=PAPER_GAMMA, weight_decay=1e-4)
    bound_2 = theorem2([row.loss], blocks=N, stage_cost=PAPER_GAMMA)
    assert abs(bound_1 - row.objective_bound) < ROUNDING * (1 + 2.08)
    assert abs(bound_2.bound - row.average_loss_bound) < ROUNDING * (1 + 1.9)
    assert bound_2.as_printed == bound_2.bound
    # Not C, nor Lbar + C.
    assert bound_2.constant > 20 * row.average_loss_bound


def sum_of_losses(row: BoundsRow, divisor: float) -> float:
    """S, if the print is Lbar + S / divisor + (C - S) / (N + 1)."""
    coefficient = (1 - PAPER_GAMMA - PAPER_GAMMA * row.blocks) / PAPER_GAMMA
    return divisor * (row.average_loss_bound - row.loss - coefficient / (N + 1) * row.loss)


def weight_decay_left(row: BoundsRow, divisor: float) -> float:
    """lambda/2 sum ||w||^2: what S leaves of the printed Jbar_N."""
    own = (1 + PAPER_GAMMA * (N - row.blocks)) * row.loss
    return row.objective_bound - PAPER_GAMMA * sum_of_losses(row, divisor) - own


@pytest.mark.parametrize("rows", BOUNDS.values(), ids=BOUNDS)
def test_the_papers_second_bound_does_not_divide_the_sum_of_losses(rows):
    for row in rows[1:]:
        # Theorem 2's bound is Jbar_N without weight decay over gamma (N + 1).
        largest = row.objective_bound / PAPER_GAMMA / (N + 1)
        assert 19 < row.average_loss_bound / largest < 48
        # If S was divided by N + 1 as proved, it would not fit into Jbar_N ...
        assert weight_decay_left(row, N + 1) < -14
        # ... nor divided by anything much larger than one.
        assert weight_decay_left(row, 1.6) < 0
    left = [weight_decay_left(row, 1) for row in rows]
    assert abs(left[0]) < ROUNDING * 4
    # Undivided, what is left is a weight decay that grows with the depth and then roughly stays.
    assert 0.1 < left[1] < left[2] < left[3] and max(left) < 0.35
    assert all(later > 0.85 * earlier for earlier, later in pairwise(left))


@pytest.mark.parametrize(
    ("name", "blocks", "bound", "gap"),
    [
        ("standard", 6, 0.958, 0.618),
        ("standard", 12, 0.924, 0.584),
        ("homogeneous", 6, 0.247, 0.160),
    ],
)
def test_the_papers_second_bound_as_proved(name, blocks, bound, gap):
    """The printed row gives back S, and with it the theorem's own value, which is far tighter."""
    row = BOUNDS[name][blocks // 6]
    losses = [sum_of_losses(row, 1) / blocks] * blocks + [row.loss]
    second = theorem2(losses, blocks=N, stage_cost=PAPER_GAMMA)
    np.testing.assert_allclose(second.as_printed, row.average_loss_bound, rtol=1e-12)
    assert abs(second.bound - bound) < 0.001
    assert abs(tightness(second.bound, row.average_loss).gap - gap) < 0.001


def test_what_the_theorems_do_not_speak_of_is_refused():
    with pytest.raises(ValueError, match="has 4 values, but a SubResNet of a network of 2 blocks"):
        theorem2([1.0] * 4, blocks=2, stage_cost=0.02)
    with pytest.raises(ValueError, match="has 0 values"):
        theorem2([], blocks=2, stage_cost=0.02)
    for stage_cost in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"Theorem 2 needs one in \(0, 1\]"):
            theorem2([1.0], blocks=2, stage_cost=stage_cost)
    with pytest.raises(ValueError, match="Theorem 1 needs a positive one"):
        theorem1([1.0], [], blocks=2, stage_cost=0.0, weight_decay=0.0)
    with pytest.raises(ValueError, match="weight_decay is -1"):
        theorem1([1.0], [], blocks=2, stage_cost=0.1, weight_decay=-1)
    for losses in ([-0.1, 1.0], [np.inf, 1.0], [[1.0, 1.0]]):
        with pytest.raises(ValueError, match="finite number >= 0"):
            average_loss(losses)
    with pytest.raises(ValueError, match="3 losses and 1 squared norms"):
        training_objective([1.0] * 3, [1.0], stage_cost=0.1, weight_decay=0.1)
