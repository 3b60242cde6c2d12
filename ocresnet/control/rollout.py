"""The second forward pass: the policy applied stage by stage along the new trajectory.

Notation
    x_k, y_j           nominal states and outputs
    xhat_k, yhat_j     those of the parameters updated so far
    G_k                costates of the factors (`linearize.py`)
    s_k                what momentum and weight decay change anyway
    epsilon_k          what the changes of the stages before k did to every factor, [F]:
                       the sum over everything that crosses from them to the later stages

    epsilon_k = <G_k, xhat_k - x_k> + <G_shared,k, d theta_shared>
                + sum over the outputs y_j that were read before k of <G_yj, yhat_j - y_j>
    d theta_k = s_k - eta M_k^-1 C_k (weights_k + [kappa gains_k epsilon_k]_P)
    xhat_{k+1} = f_k(xhat_k, theta_k + d theta_k)

Shared parameters are decided before the first stage; later stages see the change as a deviation.
The pass takes batch statistics from the batch, as the first one does, and returns no running ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control import stages
from ocresnet.control.linearize import Trajectory
from ocresnet.control.value import Policy, applied_weights
from ocresnet.problem import Problem
from ocresnet.systems import fold as folds
from ocresnet.systems import system as systems
from ocresnet.systems.fold import advance, fold, shared_parameters
from ocresnet.systems.system import PyTree, Segment, Variables

Array = jax.Array


class Walked(NamedTuple):
    """What a rollout did.

    Attributes:
      directions: M^-1 C (applied weights), a tree like the parameters; u = -eta directions.
      weights: [stages, players, C], the applied weights.
      deviations: epsilon_k, [stages, F].
    """

    directions: PyTree
    weights: Array
    deviations: Array


class Given(NamedTuple):
    """What is given for a stage; leading axis [length] in stacked segments.

    Attributes:
      stage: what its transition reads.
      state: x_k, trees [batch, ...].
      costates: G_k, trees [F, batch, ...].
      shared_costates: the factors pulled back to the shared parameters, trees [F, ...].
      outputs: y_j, [outputs, batch, classes], or None.
      output_costates: the factors at them, [outputs, F, batch, classes], or None.
      policy: of the stage.
      columns: M^-1 C, trees [C, ...].
      drift: s_k, a tree like the parameters, or None.
    """

    stage: systems.Stage
    state: PyTree
    costates: PyTree
    shared_costates: PyTree
    outputs: Array | None
    output_costates: Array | None
    policy: Policy
    columns: PyTree
    drift: PyTree | None


def nonlinear_rollout(
    problem: Problem,
    variables: Variables,
    inputs: PyTree,
    trajectory: Trajectory,
    columns: PyTree,
    policy: Policy,
    drift: PyTree | None,
    learning_rate: float | Array,
    kappa: float | Array,
    gather: Callable[[Array], Array],
) -> Walked:
    """Apply the policy along the trajectory of samples that run together.

    Args:
      problem: system and costs.
      variables: the current parameters and batch statistics.
      inputs: [batch, ...].
      trajectory: their nominal trajectory (no axis for runs).
      columns: M^-1 C, a tree like the parameters with a leading axis [C].
      policy: of every stage.
      drift: s, a tree like the parameters; None: nothing else changes them.
      learning_rate: eta.
      kappa: weight of the terminal curvature in the feedback.
      gather: the deviations of the run's own factors -> those of all, [F].

    Returns:
      The applied update, the same for all runs.
    """
    system = problem.system

    def moved(params: PyTree, direction: PyTree, drift: PyTree | None) -> PyTree:
        step = jax.tree.map(lambda d: -learning_rate * d, direction)
        if drift is not None:
            step = jax.tree.map(jnp.add, step, drift)
        return jax.tree.map(lambda leaf, own: leaf + own.astype(leaf.dtype), params, step)

    before = shared = shared_parameters(system, variables.params)
    directions = {}
    if system.shared:
        own = {name: columns[name] for name in system.shared}
        directions = stages.combine(None, policy.weights[0], own)
        own_drift = None if drift is None else {name: drift[name] for name in system.shared}
        shared = moved(before, directions, own_drift)
    shared_change = jax.tree.map(jnp.subtract, shared, before)

    def body(
        segment: Segment, carry: tuple[PyTree, Array], given: Given
    ) -> tuple[tuple[PyTree, Array], tuple[PyTree, Array, Array]]:
        state, reached = carry
        change = jax.tree.map(jnp.subtract, state, given.state)
        deviation = reached + stages.inner(given.costates, change)
        deviation += stages.inner(given.shared_costates, shared_change)
        deviation = gather(deviation)
        weights = applied_weights(given.policy, deviation, kappa)
        direction = stages.combine(segment, weights, given.columns)
        stage = given.stage._replace(
            params=moved(given.stage.params, direction, given.drift), shared=shared, train=True
        )
        outputs, state, _ = advance(system, segment, stage, state)
        if outputs is not None:
            assert given.outputs is not None and given.output_costates is not None
            costates = jnp.moveaxis(given.output_costates, 1, 0)
            reached += stages.inner(costates, outputs - given.outputs)
        return (state, reached), (direction, weights, deviation)

    factors = trajectory.output_costates.shape[0]
    reached = jnp.zeros(factors, jnp.promote_types(trajectory.outputs.dtype, jnp.float32))
    given = _given(problem, variables, trajectory, columns, policy, drift)
    _, results = fold(system, body, (system.initial_state(inputs), reached), given)

    weights, deviations = (
        stages.concatenated(system, {name: result[part] for name, result in results.items()})
        for part in (1, 2)
    )
    if system.shared:
        weights = jnp.concatenate([policy.weights[:1], weights])
        deviations = jnp.concatenate([jnp.zeros_like(deviations[:1]), deviations])
    own = {name: results[name][0] for name in results if name in variables.params}
    return Walked({**directions, **own}, weights, deviations)


def _given(
    problem: Problem,
    variables: Variables,
    trajectory: Trajectory,
    columns: PyTree,
    policy: Policy,
    drift: PyTree | None,
) -> dict[str, Given]:
    """What the stages of every segment are given."""
    system = problem.system
    of_stages = folds.stages(system, variables)
    weights, gains = (stages.by_segment(system, leaf) for leaf in policy)
    outputs = stages.outputs_by_segment(system, trajectory.outputs)
    costates = jnp.moveaxis(trajectory.output_costates, 1, 0)
    output_costates = stages.outputs_by_segment(system, costates)
    return {
        segment.name: Given(
            stage=of_stages[segment.name],
            state=trajectory.states[segment.name],
            costates=stages.stage_first(segment, trajectory.costates[segment.name]),
            shared_costates=stages.stage_first(segment, trajectory.shared[segment.name]),
            outputs=outputs[segment.name],
            output_costates=output_costates[segment.name],
            policy=Policy(weights[segment.name], gains[segment.name]),
            columns=stages.stage_first(segment, columns.get(segment.name, {})),
            drift=None if drift is None else drift.get(segment.name, {}),
        )
        for segment in system.segments
    }
