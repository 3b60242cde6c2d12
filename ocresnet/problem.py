"""Training a network as an optimal control problem: a system, and what its outputs cost.

Notation (equation 3 of Puettschneider et al. 2025)
    y_k, yhat_k   intermediate outputs of the system (exits), k = 0 ... N-1;  y_N = x_K, the last
    phi, L        cost of an output, averaged over the batch
    gamma_k       stage cost: weight of the intermediate output k

    J = sum_{k<N} gamma_k phi(y_k) + phi(y_N)      (+ lambda/2 ||w||^2, in the optimizer)

With gamma > 0 the outputs cost something on the way: phi(y_k) is the running cost of the stages. An
output that has been read is a part of the state from then on (as in Mayer's form of the problem),
so that every cost is a terminal one and OCNOpt's value function keeps its low rank.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.costs import Cost, cross_entropy
from ocresnet.systems.rollout import Probe, Rollout, rollout
from ocresnet.systems.system import PyTree, System, Variables

Array = jax.Array
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)

StageCostSchedule = Literal["constant", "linear", "terminal"]
"""How the stage cost is spread over depth."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A system and what its outputs cost.

    Attributes:
      system: the network; where no intermediate output costs anything it loses them, and its
        program is that of standard training.
      cost: phi.
      stage_cost: gamma, or one gamma_k for each intermediate output; at least 0.

    Raises:
      ValueError: for an impossible stage cost, or one on outputs that the system does not have.
    """

    system: System
    cost: Cost = cross_entropy
    stage_cost: float | tuple[float, ...] = 0.0
    stage_costs: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Cost):
            raise ValueError(
                f"cost is {self.cost!r}, but must be a Cost, as Cost(value) makes one of a "
                "function of logits and targets."
            )
        given = np.asarray(self.stage_cost)
        numbers = given.dtype.kind in "fiu" and np.isfinite(given).all()
        if not numbers or (given < 0).any():
            raise ValueError(f"stage_cost is {self.stage_cost!r}, but must be at least 0.")
        given, outputs = given.astype(np.float32), self.system.outputs
        if given.any() and outputs == 0:
            raise ValueError(
                f"stage_cost is {self.stage_cost}, but the network has no exits to pay it on."
            )
        if not given.any():
            object.__setattr__(self, "system", self.system.with_own_output_only())
            given = np.zeros(0, np.float32)
        elif given.ndim == 0:
            given = np.full(outputs, given)
        elif given.shape != (outputs,):
            raise ValueError(
                f"stage_cost has shape {given.shape}, but must be one number, or one for each of "
                f"the {outputs} intermediate outputs."
            )
        object.__setattr__(self, "stage_costs", given)

    @property
    def stages(self) -> int:
        """K: those of the system, and before them one that decides the shared parameters."""
        return bool(self.system.shared) + sum(segment.stages for segment in self.system.segments)


def run(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    inputs: Array,
    *,
    keep_states: bool = False,
    probe: Probe | None = None,
) -> Rollout:
    """The training-mode forward pass of the problem's system."""
    return rollout(
        problem.system,
        Variables(params, batch_stats),
        problem.system.initial_state(inputs),
        train=True,
        keep_states=keep_states,
        probe=probe,
    )


def per_sample_costs(problem: Problem, outputs: Array, targets: PyTree) -> Array:
    """phi of every output: [outputs, batch, classes], trees [batch, ...] -> [outputs, batch]."""
    return jax.vmap(problem.cost.value, in_axes=(0, None))(outputs, targets)


def weighted_sum(costs: ArrayT, stage_costs: float | np.ndarray) -> ArrayT:
    """J_N = L(yhat) + sum_{k<N} gamma_k L(yhat_k), equation (3).

    Args:
      costs: of every output, [outputs, ...]; the last is that of the network's own. Arrays of
        numpy are summed by numpy, in their own precision.
      stage_costs: gamma_k of every intermediate output, [outputs - 1], or one gamma.

    Returns:
      [...], in the dtype of the costs.
    """
    weights = np.reshape(stage_costs, (-1,) + (1,) * (costs.ndim - 1))
    return costs[-1] + (weights * costs[:-1]).sum(axis=0)


def objective(
    problem: Problem, params: PyTree, batch_stats: PyTree, inputs: Array, targets: PyTree
) -> Array:
    """J, the mean over the batch."""
    outputs = run(problem, params, batch_stats, inputs).all_outputs()
    return objective_of_outputs(problem, outputs, targets)


def objective_of_outputs(problem: Problem, outputs: Array, targets: PyTree) -> Array:
    """J, the mean over the batch, of outputs [outputs, batch, classes]."""
    losses = jnp.mean(per_sample_costs(problem, outputs, targets), axis=-1)
    return weighted_sum(losses, problem.stage_costs)


def stage_costs(stage_cost: float, exits: int, schedule: StageCostSchedule) -> tuple[float, ...]:
    """gamma_k of every exit; whatever the schedule, their mean is gamma.

    constant   gamma_k = gamma, as in the paper
    linear     gamma_k = gamma 2 (k + 1) / (N + 1)
    terminal   the last quarter of the exits (at least one) share gamma N; the others have none

    Args:
      stage_cost: gamma.
      exits: N.
      schedule: its name.

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
    return tuple(float(gamma) for gamma in stage_cost * shape)
