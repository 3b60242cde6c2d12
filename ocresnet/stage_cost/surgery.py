"""Surgical pruning: removing any residual blocks, not only the last ones.

A block without its residual branch passes its state on through its skip connection alone
(Lemma 1 of the stage-cost paper holds for any block, not only for a tail). So any set of blocks can
go: homogeneous ones leave nothing behind, and of a block that opens a level the skip S_k stays.

Which blocks go is said by an order: that of one of the scores in `block_scores`, taken once or anew
after each removal (greedy). How many go is a number, a budget of multiply-adds, or a tolerance on
held-out data.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ocresnet.stage_cost.block_scores import Criterion, ScoringData, measure
from ocresnet.stage_cost.checks import check_share, residual_architecture
from ocresnet.systems import counts
from ocresnet.systems.architecture import ResidualArchitecture, check_blocks
from ocresnet.systems.blocks import blocks as blocks_of
from ocresnet.systems.blocks import with_blocks
from ocresnet.systems.network import Network


def remove_blocks(network: Network, blocks: Collection[int]) -> Network:
    """The network without the residual branches of `blocks`: really smaller, the same function.

    What is kept is kept as it was: exit k stays before block k if that block stays, and the
    network's own output has its own batch statistics (`recalibrate` measures all of them anew).
    Cutting a whole tail therefore gives the blocks of `prune`, which takes the statistics (and with
    separate exits the parameters) of the exit at the cut as its output block's instead.

    Args:
      network: the network.
      blocks: which to remove, 0 ... N - 1, in any order.

    Returns:
      A network of N - len(blocks) blocks. Its outputs are those of `switch_off(network, blocks)` at
      the kept blocks, and the last.

    Raises:
      ValueError: for a block that does not exist or is named twice, or a network without residual
        blocks.

    Example:
      >>> small = remove_blocks(network, removal_order(network, loss_increase, data)[:6])
    """
    kept = residual_architecture(network, "removing blocks").without(blocks)
    listed = [block for index, block in enumerate(blocks_of(network)) if index not in blocks]
    return with_blocks(network, kept, listed)


def removal_order(network: Network, criterion: Criterion, data: ScoringData) -> list[int]:
    """All blocks in the order of their scores in the whole network, the lowest first."""
    return [int(block) for block in np.argsort(criterion(network, data, ()), kind="stable")]


def greedy_removal_order(
    network: Network,
    criterion: Criterion,
    data: ScoringData,
    *,
    removals: int | None = None,
) -> list[int]:
    """Remove the block of the lowest score, score the others again, and so on.

    Args:
      network: the network.
      criterion: one of `block_scores.CRITERIA`, or a function like them.
      data: what to score with.
      removals: how many blocks to remove; None: all.

    Returns:
      The blocks in the order they are removed, [removals].

    Raises:
      ValueError: if there are not that many blocks.
    """
    depth = residual_architecture(network, "removing blocks").depth
    removals = depth if removals is None else removals
    if not 0 <= removals <= depth:
        raise ValueError(f"cannot remove {removals} blocks: this network has {depth}.")
    removed: list[int] = []
    for _ in range(removals):
        removed.append(int(np.nanargmin(criterion(network, data, removed))))
    return removed


class RemovalCurve(NamedTuple):
    """What is left of a network as its blocks go one after the other: [removals + 1] each.

    Attributes:
      kept: blocks left, from all downwards.
      losses: L(yhat).
      accuracies: share of samples classified correctly, in [0, 1].
      probabilities: mean softmax probability of the right class, in [0, 1].
    """

    kept: np.ndarray
    losses: np.ndarray
    accuracies: np.ndarray
    probabilities: np.ndarray


def removal_curve(network: Network, order: Sequence[int], data: ScoringData) -> RemovalCurve:
    """Measure the network's own output after every removal, in inference mode.

    Args:
      network: the network.
      order: blocks, in the order they go.
      data: what to measure on, with `statistics_images` to recalibrate each shortened network (and
        the whole one). To choose how many blocks to remove, not the test set.

    Raises:
      ValueError: for a block that does not exist or is named twice.
    """
    architecture = residual_architecture(network, "removing blocks")
    check_blocks(architecture, order)
    rows = []
    for count in range(len(order) + 1):
        measured = measure(network, data, order[:count], own_output=True)
        rows.append((architecture.depth - count, *(value[-1] for value in measured[:3])))
    return RemovalCurve(*(np.array(column) for column in zip(*rows, strict=True)))


def removals_within_tolerance(curve: RemovalCurve, tolerance: float) -> int:
    """How many removals lose at most `tolerance` percentage points: the most that do.

    As in `pruning.recommend_depth`, both the accuracy and the mean probability of the right class
    may fall by so much below those of the whole network.

    Raises:
      ValueError: for a negative tolerance.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance} points, but must not be negative.")
    within = np.ones(len(curve.kept), bool)
    for values in (curve.accuracies, curve.probabilities):
        within &= values >= values[0] - tolerance / 100 - 1e-9
    return int(np.flatnonzero(within)[-1])


def removals_within_budget(
    architecture: ResidualArchitecture, order: Sequence[int], budget: float
) -> int:
    """How many removals it takes, in this order, to spend a share of the multiply-adds: the fewest.

    Args:
      architecture: of the whole network.
      order: blocks, in the order they go.
      budget: share of the whole network's multiply-adds for its own output, in (0, 1].

    Raises:
      ValueError: if the budget is no such share, or all removals together do not meet it.
    """
    check_share("budget", budget)
    whole = counts.multiply_adds(architecture).total
    for count in range(len(order) + 1):
        share = counts.multiply_adds(architecture.without(order[:count])).total / whole
        if share <= budget:
            return count
    raise ValueError(f"no removal meets a budget of {budget}: the least share is {share:.4f}.")
