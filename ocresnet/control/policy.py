"""The second forward pass: the policy applied stage by stage along the new trajectory.

Notation
    x_k, y_j           nominal states and outputs
    xhat_k, yhat_j     those of the parameters updated so far
    G_k                costates of the factors (`nominal.py`)
    epsilon_k          what the updates of the stages before k changed in every factor, [F]:
                       the sum over everything that crosses from them to the later stages

    epsilon_k = <G_k, xhat_k - x_k> + <G_shared,k, d theta_shared>
                + sum over the outputs y_j that were read before k of <G_yj, yhat_j - y_j>
    d theta_k = -eta M_k^-1 C_k (omega_k + [kappa N_k epsilon_k]_P)
    xhat_{k+1} = f_k(xhat_k, theta_k + d theta_k)

Shared parameters are decided before the first stage; later stages see the change as a deviation.
The pass takes batch statistics from the batch, as the first one does, and returns no running ones.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import stages
from ocresnet.control.bellman import Policy, applied_weights
from ocresnet.control.nominal import Trajectory
from ocresnet.control.problem import ControlProblem
from ocresnet.systems.system import PyTree, Segment, run_transition

Array = jax.Array


class Applied(NamedTuple):
    """What the policy did.

    Attributes:
      directions: M^-1 C (applied weights), a tree like the parameters; d theta = -eta directions.
      weights: [stages, C], the applied weights.
      deviations: epsilon_k, [stages, F].
    """

    directions: PyTree
    weights: Array
    deviations: Array


class Stage(NamedTuple):
    """What the stages of a segment are made of; leading axis [length] where it is scanned.

    Attributes:
      params, batch_stats: of the transition.
      state: x_k, [batch, ...].
      costates: G_k, [F, batch, ...].
      shared_costates: the factors pulled back to the shared parameters, trees [F, ...].
      output: y_k and the factors at it, [F, batch, classes]; None without an output.
      policy: of the stage.
      columns: M^-1 C, trees [C, ...].
    """

    params: PyTree
    batch_stats: PyTree
    state: Array
    costates: Array
    shared_costates: PyTree
    output: tuple[Array, Array] | None
    policy: Policy
    columns: PyTree


def nonlinear_rollout(
    problem: ControlProblem,
    params: PyTree,
    batch_stats: PyTree,
    images: Array,
    trajectory: Trajectory,
    columns: PyTree,
    policy: Policy,
    learning_rate: float | Array,
    kappa: float | Array,
    gather: Callable[[Array], Array],
) -> Applied:
    """Apply the policy along the trajectory of one group of the batch.

    Args:
      problem: system and costs.
      params, batch_stats: the current variables.
      images: inputs of the group, [batch, ...].
      trajectory: nominal trajectory of the group (no axis for groups).
      columns: M^-1 C, a tree like the parameters with a leading axis [C].
      policy: of every stage.
      learning_rate: eta.
      kappa: weight of the terminal curvature in the feedback.
      gather: the deviations of the group's own factors -> those of all groups, [F].

    Returns:
      The applied update, the same for all groups.
    """
    system = problem.system
    directions: dict[str, PyTree] = {}
    results: list[tuple[Array, Array]] = []

    def moved(controls: PyTree, direction: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, d: leaf - (learning_rate * d).astype(leaf.dtype), controls, direction
        )

    old_shared = {name: params[name] for name in system.shared}
    shared = old_shared
    if system.shared:
        first = policy.weights[:1]
        for name in system.shared:
            directions[name] = stages.combine(first[0], columns[name])
        shared = moved(old_shared, directions)
        results.append((first, jnp.zeros_like(policy.gains[:1, 0])))
    shared_change = jax.tree.map(jnp.subtract, shared, old_shared)

    def step(
        carry: tuple[Array, Array], stage: Stage, segment: Segment
    ) -> tuple[tuple[Array, Array], tuple[PyTree, Array, Array]]:
        state, reached = carry
        deviation = reached + _inner(stage.costates, state - stage.state)
        deviation += _inner_of_trees(stage.shared_costates, shared_change)
        deviation = gather(deviation)
        weights = applied_weights(stage.policy, deviation, kappa)
        direction = stages.combine(weights, stage.columns)
        output, state, _ = run_transition(
            segment, shared, moved(stage.params, direction), stage.batch_stats, state, True, True
        )
        if output is not None and stage.output is not None:
            reached += _inner(stage.output[1], output - stage.output[0])
        return (state, reached), (direction, weights, deviation)

    factors = trajectory.output_costates.shape[0]
    carry = (
        system.initial_state(images),
        jnp.zeros(factors, jnp.promote_types(trajectory.outputs.dtype, jnp.float32)),
    )
    for segment, stage in _stages(problem, params, batch_stats, trajectory, columns, policy):
        take = partial(step, segment=segment)
        if segment.length is None:
            carry, (direction, weights, deviations) = take(carry, stage)
            weights, deviations = weights[None], deviations[None]
        elif problem.unroll:
            taken = []
            for index in range(segment.length):
                carry, one = take(carry, jax.tree.map(lambda leaf, i=index: leaf[i], stage))
                taken.append(one)
            direction, weights, deviations = jax.tree.map(lambda *one: jnp.stack(one), *taken)
        else:
            carry, (direction, weights, deviations) = lax.scan(take, carry, stage)
        if segment.name in params:
            directions[segment.name] = direction
        results.append((weights, deviations))
    return Applied(directions, *(jnp.concatenate(parts) for parts in zip(*results, strict=True)))


def _stages(
    problem: ControlProblem,
    params: PyTree,
    batch_stats: PyTree,
    trajectory: Trajectory,
    columns: PyTree,
    policy: Policy,
) -> Iterator[tuple[Segment, Stage]]:
    """The stages of every segment, in the form in which they are scanned."""
    read = 0
    spans = stages.spans(problem.system)
    for segment in problem.system.segments:
        name, span = segment.name, spans[segment.name]
        scanned = span.length is not None

        def stage_first(tree: PyTree, scanned: bool = scanned) -> PyTree:
            """[columns, length, ...] -> [length, columns, ...]."""
            return (
                jax.tree.map(partial(jnp.moveaxis, source=1, destination=0), tree)
                if scanned
                else tree
            )

        output = None
        if segment.output is not None:
            part = slice(read, read + (span.length or 1))
            read = part.stop
            output = (
                trajectory.outputs[part],
                jnp.moveaxis(trajectory.output_costates[:, part], 1, 0),
            )
            if not scanned:
                output = (output[0][0], output[1][0])
        yield (
            segment,
            Stage(
                params=params.get(name, {}),
                batch_stats=batch_stats.get(name, {}),
                state=trajectory.states[name],
                costates=stage_first(trajectory.costates[name]),
                shared_costates=stage_first(trajectory.shared[name]),
                output=output,
                policy=jax.tree.map(span.of, policy),
                columns=stage_first(columns.get(name, {})),
            ),
        )


def _inner(factors: Array, change: Array) -> Array:
    """<factor_f, change> for every factor: [F, ...], [...] -> [F]."""
    dtype = jnp.promote_types(factors.dtype, jnp.float32)
    products = factors.astype(dtype) * change.astype(dtype)
    return jnp.sum(products, axis=tuple(range(1, factors.ndim)))


def _inner_of_trees(factors: PyTree, change: PyTree) -> Array | float:
    """`_inner`, summed over the leaves of two trees."""
    leaves = zip(jax.tree.leaves(factors), jax.tree.leaves(change), strict=True)
    return sum(_inner(factor, leaf) for factor, leaf in leaves)
