"""The nominal trajectory: one forward and one backward pass that keep what the policy needs.

Notation
    x_k, y_j       states and outputs of the nominal (current) parameters
    J              cost, the mean over the batch (or over a group of it)
    g = dJ/dtheta  gradient
    w_i            row of the factor of sample i, at the outputs: [outputs, classes]
    v, G_k         a factor pulled back: to the parameters, and to the state x_k (a costate)

The factors of a group of n samples, as vectors at its outputs:
    gradient   dJ/dy, the whole cost as one column, so that v = g and G_k = lambda_k = dJ/dx_k
    sampled    w_i / sqrt(n), where w_i is random with mean 0 and E[w_i w_i^T] the cost's Hessian
    exact      s_i w_i / sqrt(n) for every column w_i of the Hessian's factor and every output,
               with a random sign s_i for each sample, so that products of different samples
               cancel on average; exact for n = 1
The curvature of the batch is the mean over groups of sum_f v_f v_f^T.

Groups run side by side, each on its own samples. Batch statistics couple them: then the whole batch
runs as one, and the factors of every group are pulled back through all of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.alignment import Alignment
from ocresnet.control.view import aligned
from ocresnet.costs import Factor
from ocresnet.problem import Problem, objective_of_outputs, run
from ocresnet.systems.fold import shared_parameters
from ocresnet.systems.rollout import Probe
from ocresnet.systems.system import PyTree

Array = jax.Array


@dataclass(frozen=True)
class Keep:
    """What a linearisation keeps beside objective and gradient.

    Attributes:
      factor: of the terminal curvature.
      groups: into how many equal parts the batch is divided; each has factors of its own.
      trajectory: states and costates too.
      alignment: whose stages the trajectory has.
    """

    factor: Factor = "gradient"
    groups: int = 1
    trajectory: bool = False
    alignment: Alignment = "blocks"


class Trajectory(NamedTuple):
    """States and costates of every stage, per group of samples that run on their own.

    In the stages of an alignment, segments and shared parameters are those of its view (`view.py`).

    All have a leading axis [runs]: the groups, or a single one for the whole batch where batch
    statistics couple its groups; then `factors` counts those of all groups.

    Attributes:
      states: {segment: x_k, trees [runs, (length), batch, ...]}.
      costates: {segment: G_k, trees [runs, factors, (length), batch, ...]}.
      shared: {segment: the factors pulled back to the shared parameters from the stages k and
        after, trees with leading axes [runs, factors, (length)]}.
      outputs: y_j, [runs, outputs, batch, classes].
      output_costates: the factors at the outputs, [runs, factors, outputs, batch, classes].
    """

    states: dict[str, PyTree]
    costates: dict[str, PyTree]
    shared: dict[str, PyTree]
    outputs: Array
    output_costates: Array


class Nominal(NamedTuple):
    """What one forward and one backward pass give.

    Attributes:
      objective: J, [].
      outputs: y_j, [outputs, batch, classes].
      batch_stats: the new batch statistics.
      gradient: dJ/dtheta, as `jax.grad` gives it.
      factors: v, a tree like the parameters with a leading axis [groups * factors]; None where
        the only factor is the gradient itself.
      trajectory: None unless it was asked for.
    """

    objective: Array
    outputs: Array
    batch_stats: PyTree
    gradient: PyTree
    factors: PyTree | None
    trajectory: Trajectory | None


def linearize(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    inputs: PyTree,
    targets: PyTree,
    keep: Keep = Keep(),
    key: Array | None = None,
) -> Nominal:
    """Forward and backward pass around the current parameters.

    Args:
      problem: system and costs.
      params, batch_stats: the network's variables.
      inputs: of the system, [batch, ...].
      targets: of the cost, [batch, ...].
      keep: what of it is wanted.
      key: for the random factors.

    Returns:
      Objective, gradient, factors and trajectory.

    Raises:
      ValueError: if the batch is not divisible into groups, or the cost has no such factor; for an
        alignment that does not fit the system.
    """
    if keep.trajectory and keep.alignment != "blocks":
        view = aligned(problem, keep.alignment)
        in_view = view.split(params), view.split(batch_stats)
        keep = replace(keep, alignment="blocks")
        nominal = linearize(view.problem, *in_view, inputs, targets, keep, key)
        factors = nominal.factors
        return nominal._replace(
            gradient=view.join(nominal.gradient, params),
            batch_stats=view.join(nominal.batch_stats, batch_stats),
            factors=None if factors is None else view.join(factors, params),
        )
    batch, groups = jax.tree.leaves(targets)[0].shape[0], keep.groups
    if batch % groups:
        raise ValueError(f"a batch of {batch} samples is not divisible into {groups} groups.")
    _check_factor(problem, keep.factor)
    key = jax.random.key(0) if key is None else key

    coupled = bool(jax.tree.leaves(batch_stats))
    runs, of_run = (1, groups) if coupled else (groups, 1)
    linearize_run = partial(_linearize_run, problem, params, batch_stats, keep, of_run)
    if runs == 1:
        result = linearize_run(inputs, targets, key)
        result = jax.tree.map(lambda leaf: leaf[None], result)
    else:
        inputs, targets = jax.tree.map(
            lambda leaf: leaf.reshape(runs, -1, *leaf.shape[1:]), (inputs, targets)
        )
        result = jax.vmap(linearize_run)(inputs, targets, jax.random.split(key, runs))

    def mean(leaf: Array) -> Array:
        return leaf[0] if runs == 1 else jnp.mean(leaf, axis=0)

    factors = result.factors
    if keep.factor == "gradient" and runs > 1:
        factors = jax.tree.map(lambda leaf: leaf[:, None], result.gradient)
    return Nominal(
        objective=mean(result.objective),
        outputs=jnp.moveaxis(result.outputs, 0, 1).reshape(-1, batch, result.outputs.shape[-1]),
        batch_stats=jax.tree.map(lambda leaf: leaf[0], result.batch_stats),
        gradient=jax.tree.map(mean, result.gradient),
        factors=jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), factors),
        trajectory=result.trajectory,
    )


def _linearize_run(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    keep: Keep,
    groups: int,
    inputs: PyTree,
    targets: PyTree,
    key: Array,
) -> Nominal:
    """`linearize` for samples that run together, in `groups` groups."""
    probe = _probe(problem, params, batch_stats, inputs) if keep.trajectory else None

    def outputs_and_rest(params: PyTree, probe: Probe | None) -> tuple[Array, tuple]:
        result = run(problem, params, batch_stats, inputs, keep_states=keep.trajectory, probe=probe)
        return result.all_outputs(), (result.states, result.batch_stats)

    outputs, pull_back, (states, new_stats) = jax.vjp(outputs_and_rest, params, probe, has_aux=True)
    value, cotangent = jax.value_and_grad(
        lambda outputs: objective_of_outputs(problem, outputs, targets)
    )(outputs)
    gradient, costates = pull_back(cotangent)
    factors = None
    if keep.factor == "gradient" and groups == 1:
        cotangents = cotangent[None]
        costates = jax.tree.map(lambda leaf: leaf[None], costates)
    else:
        cotangents = _of_groups(problem, outputs, cotangent, keep.factor, groups, key)
        factors, costates = jax.vmap(pull_back)(cotangents)

    trajectory = None
    if keep.trajectory:
        shared = _from_here_on(problem, costates.shared)
        trajectory = Trajectory(states, costates.states, shared, outputs, cotangents)
    return Nominal(value, outputs, new_stats, gradient, factors, trajectory)


def _of_groups(
    problem: Problem, outputs: Array, cotangent: Array, factor: Factor, groups: int, key: Array
) -> Array:
    """The factors of every group, at the outputs of all: [groups * factors, outputs, batch,
    classes], zero at the samples of other groups."""
    grouped = jnp.moveaxis(outputs.reshape(len(outputs), groups, -1, outputs.shape[-1]), 1, 0)
    if factor == "gradient":
        own = groups * jnp.moveaxis(cotangent.reshape(jnp.moveaxis(grouped, 0, 1).shape), 1, 0)
        own = own[:, None]
    else:
        keys = jax.random.split(key, groups)
        own = jax.vmap(partial(output_factors, problem, factor=factor))(grouped, key=keys)
    # [group, factor, output, sample, class] -> [group, factor, output, its group, sample, class]
    placed = jnp.einsum("gfonc,gh->gfohnc", own, jnp.eye(groups, dtype=own.dtype))
    return placed.reshape(-1, *outputs.shape)


def output_factors(problem: Problem, outputs: Array, factor: Factor, key: Array) -> Array:
    """The random or exact factors of a group's curvature, at its outputs.

    Args:
      problem: gives the cost and the weight of every output.
      outputs: [outputs, batch, classes].
      factor: "sampled" or "exact".
      key: of the samples or signs.

    Returns:
      [factors, outputs, batch, classes].
    """
    count, batch = outputs.shape[:2]
    weights = jnp.asarray([*problem.stage_costs, 1.0], outputs.dtype)
    scale = jnp.sqrt(weights / batch)[:, None, None]
    if factor == "sampled":
        assert problem.cost.sampled is not None
        return (scale * problem.cost.sampled(key, outputs))[None]
    assert problem.cost.exact is not None
    columns = scale * problem.cost.exact(outputs)
    signs = jax.random.rademacher(key, (batch, 1), outputs.dtype) if batch > 1 else 1.0
    # Each output has columns of its own, which are zero at the others.
    separate = jnp.einsum("cobn,op->pcobn", columns * signs, jnp.eye(count, dtype=outputs.dtype))
    return separate.reshape(-1, *outputs.shape)


def _check_factor(problem: Problem, factor: Factor) -> None:
    if factor != "gradient" and getattr(problem.cost, factor) is None:
        raise ValueError(
            f"factor is {factor!r}, but this cost defines none: choose 'gradient', or give the "
            f"Cost its `{factor}` factor."
        )


def _probe(problem: Problem, params: PyTree, batch_stats: PyTree, inputs: PyTree) -> Probe:
    """Zeros of the shape of every state, and of the shared parameters at every stage."""
    states = jax.eval_shape(
        lambda: run(problem, params, batch_stats, inputs, keep_states=True).states
    )
    shared = shared_parameters(problem.system, params)
    return Probe(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), states),
        {
            segment.name: jax.tree.map(
                lambda leaf, leading=(segment.length,) if segment.stacked else (): jnp.zeros(
                    (*leading, *leaf.shape), leaf.dtype
                ),
                shared,
            )
            for segment in problem.system.segments
        },
    )


def _from_here_on(problem: Problem, parts: dict[str, PyTree]) -> dict[str, PyTree]:
    """Sum over the stages k and after of {segment: [factors, (length), ...]}."""
    sums: dict[str, PyTree] = {}
    later: PyTree | None = None
    for segments in reversed(problem.system.runs):
        stacked, count = segments[0].stacked, len(segments)
        # Interleaved segments take turns: [factors, length, segments, ...].
        own = jax.tree.map(lambda *leaves: _in_turn(leaves), *(parts[s.name] for s in segments))
        if stacked:
            own = jax.tree.map(lambda leaf: jnp.flip(jnp.cumsum(jnp.flip(leaf, 1), 1), 1), own)
        if later is not None:
            axis = 1 if stacked else ()
            own = jax.tree.map(
                lambda leaf, rest, axis=axis: leaf + jnp.expand_dims(rest, axis), own, later
            )
        for turn, segment in enumerate(segments):
            sums[segment.name] = own
            if count > 1:
                sums[segment.name] = jax.tree.map(
                    lambda leaf, turn=turn, count=count: leaf[:, turn::count], own
                )
        later = jax.tree.map(lambda leaf: leaf[:, 0], own) if stacked else own
    return sums


def _in_turn(leaves: Sequence[Array]) -> Array:
    """[factors, length, ...] of each interleaved segment -> [factors, length * segments, ...]."""
    if len(leaves) == 1:
        return leaves[0]
    return jnp.stack(leaves, 2).reshape(len(leaves[0]), -1, *leaves[0].shape[2:])
