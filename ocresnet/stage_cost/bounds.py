"""Theorems 1 and 2 of the stage-cost paper, as functions of measured losses.

Both bound a ResNet-N trained with stage cost by what its SubResNet-M, trained alone, measures. They
are the objective of the ResNet-N at a feasible point, the SubResNet followed by blocks that do
nothing (`embedding.embed`), so they hold for a network that is at least as good as that point: for
a global minimum, and not for every trained network. They speak of training losses: measure them
on the training set, with `trajectory(..., mode="training")` as the objective has them in a step.

Notation
    N, M       blocks of the ResNet and of its SubResNet, 0 <= M <= N
    L_k^M      L(yhat_k^M), loss of the SubResNet's output k;  Lbar = L_M^M, of its own output
    S          sum_{k<M} L_k^M
    gamma      stage cost
    lambda     weight decay, on the residual branches w_F,k

    Theorem 1:  J_N <= Jbar_N = gamma S + lambda/2 sum_{k<M} ||w_F,k^M||^2
                                + (1 + gamma (N - M)) Lbar
    Theorem 2:  L_avg <= Lbar + C / (N + 1),   C = S + (1 - gamma - gamma M) / gamma Lbar

What the paper prints. Its Tables 2 and 3 give for Theorem 2

    Lbar + S + (C - S) / (N + 1)

in which the sum S of the intermediate losses is not divided by N + 1, as the proof divides it. Of
the readings tried (the theorem, this one, C, Lbar + C) it alone fits the rows with M = 0, where
S = 0 and all is given by Lbar, and leaves the printed Jbar_N of every other row a weight decay of
at least zero. S / (gamma (N + 1)) in place of S, gamma forgotten in the division, fits as well: the
printed numbers do not tell the two apart. In any reading the theorem's bound is
(Jbar_N - weight decay) / (gamma (N + 1)) and cannot exceed Jbar_N / (gamma (N + 1)); every printed
row with M > 0 is 19 to 48 times that.
Divided, the bound for the homogeneous network and M = 6 is 0.247 instead of 13.275, and its gap
0.160 instead of 13.188: as tight as that of Theorem 1 (0.176), unlike what the text says of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ocresnet.problem import weighted_sum

Measured = np.ndarray | Sequence[float]


class AverageLossBound(NamedTuple):
    """Theorem 2.

    Attributes:
      bound: Lbar_avg = Lbar + C / (N + 1), of the average loss L_avg.
      constant: C, the same for every N.
      as_printed: Lbar + S + (C - S) / (N + 1), what Tables 2 and 3 of the paper print for it.
    """

    bound: float
    constant: float
    as_printed: float


class Tightness(NamedTuple):
    """A bound beside what it bounds.

    Attributes:
      bound: Jbar_N, or Lbar_avg.
      value: J_N, or L_avg.
      gap: bound - value; negative for a network that is worse than the feasible point.
    """

    bound: float
    value: float
    gap: float


def theorem1(
    losses_of_subresnet: Measured,
    squared_norms_of_subresnet: Measured,
    *,
    blocks: int,
    stage_cost: float,
    weight_decay: float,
) -> float:
    """Jbar_N, the bound of Theorem 1 on the training objective with weight decay.

    Args:
      losses_of_subresnet: L(yhat_k^M) on the training set, [M + 1]; `Trajectory.losses`.
      squared_norms_of_subresnet: ||w_F,k^M||^2, [M]; `parameter_norms(...) ** 2`.
      blocks: N >= M.
      stage_cost: gamma > 0.
      weight_decay: lambda >= 0.

    Returns:
      Jbar_N, in the units of the loss, computed in float64.

    Raises:
      ValueError: for numbers that the theorem does not speak of.

    Example:
      >>> theorem1([1.0, 0.5], [2.0], blocks=3, stage_cost=0.1, weight_decay=0.2)
      0.9
    """
    losses = _checked("losses_of_subresnet", losses_of_subresnet)
    squared_norms = _checked("squared_norms_of_subresnet", squared_norms_of_subresnet)
    kept = _kept_blocks(losses, blocks)
    _check_weights(stage_cost, weight_decay)
    if stage_cost == 0:
        raise ValueError("stage_cost is 0, but Theorem 1 needs a positive one.")
    passed_on = np.full(blocks - kept, losses[-1])
    norms = np.concatenate([squared_norms, np.zeros(blocks - kept)])
    return training_objective(
        np.concatenate([losses, passed_on]),
        norms,
        stage_cost=stage_cost,
        weight_decay=weight_decay,
    )


def training_objective(
    losses: Measured, squared_norms: Measured, *, stage_cost: float, weight_decay: float
) -> float:
    """J_N(w), the left side of Theorem 1: equation (3) with weight decay on residual branches.

    Args:
      losses: L(yhat_k^N) on the training set, [N + 1].
      squared_norms: ||w_F,k^N||^2, [N].
      stage_cost: gamma >= 0.
      weight_decay: lambda >= 0.

    Returns:
      sum_{k<N} [gamma L(yhat_k) + lambda/2 ||w_F,k||^2] + L(yhat), computed in float64.

    Raises:
      ValueError: for arrays that do not fit together, or values that are negative or not finite.
    """
    losses = _checked("losses", losses)
    squared_norms = _checked("squared_norms", squared_norms)
    _check_weights(stage_cost, weight_decay)
    if len(losses) != len(squared_norms) + 1:
        raise ValueError(
            f"there are {len(losses)} losses and {len(squared_norms)} squared norms, but a network "
            "has one output more than residual blocks: measure one with exits."
        )
    return float(weighted_sum(losses, stage_cost) + weight_decay / 2 * squared_norms.sum())


def theorem2(losses_of_subresnet: Measured, *, blocks: int, stage_cost: float) -> AverageLossBound:
    """Lbar_avg, the bound of Theorem 2 on the average loss without weight decay.

    Args:
      losses_of_subresnet: L(yhat_k^M) on the training set, [M + 1].
      blocks: N >= M.
      stage_cost: gamma, 0 < gamma <= 1.

    Returns:
      The bound as it is proved, its constant C, and what the paper's tables print, in float64.

    Raises:
      ValueError: for numbers that the theorem does not speak of.

    Example:
      >>> theorem2([1.0, 0.5], blocks=3, stage_cost=0.5).constant
      1.0
    """
    losses = _checked("losses_of_subresnet", losses_of_subresnet)
    kept = _kept_blocks(losses, blocks)
    if not 0 < stage_cost <= 1:
        raise ValueError(f"stage_cost is {stage_cost}, but Theorem 2 needs one in (0, 1].")
    own, before = losses[-1], losses[:-1].sum()
    constant = before + (1 - stage_cost - stage_cost * kept) / stage_cost * own
    return AverageLossBound(
        bound=float(own + constant / (blocks + 1)),
        constant=float(constant),
        as_printed=float(own + before + (constant - before) / (blocks + 1)),
    )


def average_loss(losses: Measured) -> float:
    """L_avg = 1/(N + 1) sum_k L(yhat_k^N), the left side of Theorem 2, from losses [N + 1]."""
    return float(_checked("losses", losses).mean())


def tightness(bound: float, value: float) -> Tightness:
    """A bound, what it bounds, and the gap between them, as in Tables 2 and 3."""
    return Tightness(bound, value, bound - value)


def _checked(name: str, values: Measured) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.all((array >= 0) & (array < np.inf)):
        raise ValueError(f"{name} must be one finite number >= 0 an output or block: {values}.")
    return array


def _kept_blocks(losses: np.ndarray, blocks: int) -> int:
    """M, from the number of the SubResNet's losses."""
    if not 1 <= len(losses) <= blocks + 1:
        raise ValueError(
            f"losses_of_subresnet has {len(losses)} values, but a SubResNet of a network of "
            f"{blocks} blocks has 1 to {blocks + 1} outputs."
        )
    return len(losses) - 1


def _check_weights(stage_cost: float, weight_decay: float) -> None:
    for name, value in (("stage_cost", stage_cost), ("weight_decay", weight_decay)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} is {value}, but must be at least 0.")
