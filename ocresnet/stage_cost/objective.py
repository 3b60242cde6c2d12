"""The stage-cost objective, equation (3) of Puettschneider et al. 2025.

Notation
    L        per-sample loss, averaged over the batch
    yhat_k   intermediate output (logits) of exit k;  yhat is the network's output
    gamma    stage cost: weight of the intermediate losses
    lambda   weight decay
    w_F,k    parameters of the residual branch of block k

    J_N(w) = sum_{k=0}^{N-1} gamma L(yhat_k) + L(yhat)  (+ lambda/2 ||w||^2, in the optimizer)
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ocresnet.systems.system import PyTree

Array = jax.Array
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)

Loss = Literal["cross_entropy", "l2"]
PerSampleLoss = Callable[[Array, Array], Array]
"""(logits [..., classes], labels [...]) -> loss of each sample [...]."""

StageCostSchedule = Literal["constant", "linear", "terminal"]
"""How the stage cost is spread over depth."""

WeightDecayOn = Literal["all", "residual_branches"]


@cache
def per_sample_loss(name: Loss = "cross_entropy", label_smoothing: float = 0.0) -> PerSampleLoss:
    """The loss called `name`, as a function of logits and integer labels.

    Args:
      name: "cross_entropy" (nats), or "l2": half the squared distance to the one-hot target.
      label_smoothing: share s of the target spread evenly over the classes,
        target = (1 - s) onehot + s / classes.

    Returns:
      A function (logits [..., classes], labels [...]) -> [...]; the same one for the same
      arguments, so that compiled programs that depend on it are found again.

    Raises:
      ValueError: for an unknown name or a label_smoothing outside [0, 1).
    """
    if name not in get_args(Loss):
        raise ValueError(f"loss is {name!r}, but must be one of {', '.join(get_args(Loss))}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be in [0, 1).")

    def loss(logits: Array, labels: Array) -> Array:
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        targets = optax.smooth_labels(targets, label_smoothing)
        if name == "l2":
            return jnp.sum(optax.l2_loss(logits - targets), axis=-1)
        return optax.softmax_cross_entropy(logits, targets)

    return loss


def output_losses(loss: PerSampleLoss, logits: Array, labels: Array) -> Array:
    """L(yhat_k) for every output: [outputs, batch, classes], [batch] -> [outputs]."""
    return jnp.mean(loss(logits, labels), axis=-1)


def objective(losses: ArrayT, stage_cost: float | np.ndarray) -> ArrayT:
    """J_N = L(yhat) + gamma sum_{k<N} L(yhat_k), equation (3).

    Args:
      losses: L(yhat_k) of every output, [outputs]; the last is that of the network's output.
        Arrays of numpy are summed by numpy, in their own precision.
      stage_cost: gamma >= 0; 0 is standard training. Or one gamma_k for each exit, [outputs - 1],
        as `stage_costs` gives them.

    Returns:
      The scalar objective, without weight decay, in the dtype of the losses.
    """
    return losses[-1] + (stage_cost * losses[:-1]).sum()


def stage_costs(stage_cost: float, exits: int, schedule: StageCostSchedule) -> np.ndarray:
    """gamma_k of every exit; whatever the schedule, their mean is gamma.

    constant   gamma_k = gamma, as in the paper
    linear     gamma_k = gamma 2 (k + 1) / (N + 1)
    terminal   the last quarter of the exits (at least one) share gamma N; the others have none

    Args:
      stage_cost: gamma.
      exits: N.
      schedule: its name.

    Returns:
      [exits], float32.

    Raises:
      ValueError: for an unknown schedule.
    """
    depth = np.arange(exits)
    if schedule == "constant":
        shape = np.ones(exits)
    elif schedule == "linear":
        shape = 2 * (depth + 1) / (exits + 1)
    elif schedule == "terminal":
        paying = max(exits // 4, 1)
        shape = np.where(depth >= exits - paying, exits / paying, 0.0)
    else:
        allowed = ", ".join(get_args(StageCostSchedule))
        raise ValueError(f"stage_cost_schedule is {schedule!r}, but must be one of {allowed}.")
    return (stage_cost * shape).astype(np.float32)


def weight_decay_mask(params: PyTree, on: WeightDecayOn) -> PyTree:
    """Which parameters decay: all, or only the residual branches w_F,k as in Theorem 1.

    Returns:
      A tree of booleans with the structure of `params`.
    """
    return jax.tree.map_with_path(
        lambda path, _: on == "all" or any(_key(part) == "residual" for part in path), params
    )


def separate_exit_mask(params: PyTree) -> PyTree:
    """Which parameters belong to separate exit heads; a tree of booleans like `params`."""
    return jax.tree.map_with_path(lambda path, _: any(_key(p) == "exit" for p in path), params)


def _key(part: object) -> object:
    return getattr(part, "key", None)
