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
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.costs import Factor
from ocresnet.control.layer_passes import LayerPass, recorders
from ocresnet.control.problem import (
    ControlProblem,
    outputs_of,
    per_sample_objective,
    run,
)
from ocresnet.systems.system import Probe, PyTree
from ocresnet.systems.taps import Tap, merge

Array = jax.Array

GROUPS = "groups"
"""Name of the mapped axis over the groups of a batch. A system whose batch norm is synchronised
over it normalises over the whole batch, another one over each group."""


class Trajectory(NamedTuple):
    """States and costates of every stage, per group: all have a leading axis [groups].

    Attributes:
      states: {segment: x_k, [groups, (length), batch, ...]}.
      costates: {segment: G_k, [groups, factors, (length), batch, ...]}.
      shared: {segment: the factors pulled back to the shared parameters from the stages k and
        after, trees with leading axes [groups, factors, (length)]}.
      outputs: y_j, [groups, outputs, batch, classes].
      output_costates: the factors at the outputs, [groups, factors, outputs, batch, classes].
      layers: {path: inputs and output gradients of an affine layer, [groups, (length), batch,
        ...]}, of the stages made of such layers alone; None unless they were asked for.
    """

    states: dict[str, Array]
    costates: dict[str, Array]
    shared: dict[str, PyTree]
    outputs: Array
    output_costates: Array
    layers: dict[str, LayerPass] | None


class Nominal(NamedTuple):
    """What one forward and one backward pass give.

    Attributes:
      objective: J, [].
      outputs: y_j, [outputs, batch, classes].
      batch_stats: the new batch statistics (means over groups).
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
    problem: ControlProblem,
    params: PyTree,
    batch_stats: PyTree,
    images: Array,
    labels: Array,
    *,
    factor: Factor = "gradient",
    groups: int = 1,
    keep_trajectory: bool = True,
    keep_layers: bool = False,
    key: Array | None = None,
) -> Nominal:
    """Forward and backward pass around the current parameters.

    Args:
      problem: system and costs.
      params, batch_stats: the network's variables.
      images: inputs of the system, [batch, ...].
      labels: [batch].
      factor: of the terminal curvature.
      groups: into how many equal parts the batch is divided; each has factors of its own.
      keep_trajectory: keep states and costates.
      keep_layers: keep inputs and output gradients of every layer in the trajectory too, which
        makes feedback "per_sample" cheaper.
      key: for the random factors.

    Returns:
      Objective, gradient, factors and trajectory.

    Raises:
      ValueError: if the batch is not divisible into groups, or the cost has no such factor.
    """
    batch = labels.shape[0]
    if batch % groups:
        raise ValueError(f"a batch of {batch} samples is not divisible into {groups} groups.")
    _check_factor(problem, factor)
    shape = (groups, batch // groups)
    grouped = (images.reshape(*shape, *images.shape[1:]), labels.reshape(*shape))
    keys = jax.random.split(jax.random.key(0) if key is None else key, groups)

    def linearize_group(images: Array, labels: Array, key: Array) -> Nominal:
        return _linearize_group(
            problem, params, batch_stats, images, labels, factor, keep_trajectory, keep_layers, key
        )

    if groups == 1:
        result = linearize_group(images, labels, keys[0])
        result = jax.tree.map(lambda leaf: leaf[None], result)
    else:
        result = jax.vmap(linearize_group, axis_name=GROUPS)(*grouped, keys)

    factors = result.factors
    if factor == "gradient":
        factors = None if groups == 1 else jax.tree.map(lambda leaf: leaf[:, None], result.gradient)
    return Nominal(
        objective=jnp.mean(result.objective),
        outputs=jnp.moveaxis(result.outputs, 0, 1).reshape(-1, batch, result.outputs.shape[-1]),
        batch_stats=jax.tree.map(
            lambda leaf: leaf[0] if groups == 1 else _mean(leaf), result.batch_stats
        ),
        gradient=jax.tree.map(
            lambda leaf: leaf[0] if groups == 1 else _mean(leaf), result.gradient
        ),
        factors=jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), factors),
        trajectory=result.trajectory,
    )


def _mean(leaf: Array) -> Array:
    return jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]


def _linearize_group(
    problem: ControlProblem,
    params: PyTree,
    batch_stats: PyTree,
    images: Array,
    labels: Array,
    factor: Factor,
    keep_trajectory: bool,
    keep_layers: bool,
    key: Array,
) -> Nominal:
    probe = _probe(problem, params, batch_stats, images) if keep_trajectory else None
    recording = {}
    if keep_layers and probe is not None:
        recording = recorders(problem.system.segments, params, probe.states)

    def outputs_and_rest(
        params: PyTree, probe: Probe | None, recording: dict[str, Tap]
    ) -> tuple[Array, tuple[dict[str, Array], PyTree]]:
        params = merge(params, recording)
        result = run(problem, params, batch_stats, images, keep_states=keep_trajectory, probe=probe)
        return outputs_of(result), (result.states, result.batch_stats)

    outputs, pull_back, (states, new_stats) = jax.vjp(
        outputs_and_rest, params, probe, recording, has_aux=True
    )

    def mean_objective(outputs: Array) -> Array:
        return jnp.mean(per_sample_objective(problem, outputs, labels))

    value, cotangent = jax.value_and_grad(mean_objective)(outputs)
    gradient, costates, recorded = pull_back(cotangent)
    factors = None
    if factor == "gradient":
        cotangents = cotangent[None]
        costates = jax.tree.map(lambda leaf: leaf[None], costates)
    else:
        cotangents = output_factors(problem, outputs, factor, key)
        factors, costates, _ = jax.vmap(pull_back)(cotangents)

    trajectory = None
    if keep_trajectory:
        shared = _from_here_on(problem, costates.shared)
        layers = {path: tap.arrays for path, tap in recorded.items()} if keep_layers else None
        trajectory = Trajectory(states, costates.states, shared, outputs, cotangents, layers)
    return Nominal(value, outputs, new_stats, gradient, factors, trajectory)


def output_factors(problem: ControlProblem, outputs: Array, factor: Factor, key: Array) -> Array:
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
    weights = jnp.full(count, problem.stage_cost, outputs.dtype).at[-1].set(1.0)
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


def _check_factor(problem: ControlProblem, factor: Factor) -> None:
    if factor != "gradient" and getattr(problem.cost, factor) is None:
        raise ValueError(
            f"factor is {factor!r}, but this cost defines none: choose 'gradient', or give the "
            f"Cost its `{factor}` factor."
        )


def _probe(problem: ControlProblem, params: PyTree, batch_stats: PyTree, images: Array) -> Probe:
    """Zeros of the shape of every state, and of the shared parameters at every stage."""
    result = jax.eval_shape(
        lambda params, images: run(problem, params, batch_stats, images, keep_states=True).states,
        params,
        images,
    )
    states = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), result)
    shared = {name: params[name] for name in problem.system.shared}
    return Probe(
        states,
        {
            segment.name: jax.tree.map(
                lambda leaf, length=segment.length: jnp.zeros(
                    leaf.shape if length is None else (length, *leaf.shape), leaf.dtype
                ),
                shared,
            )
            for segment in problem.system.segments
        },
    )


def _from_here_on(problem: ControlProblem, parts: dict[str, PyTree]) -> dict[str, PyTree]:
    """Sum over the stages k and after of {segment: [factors, (length), ...]}."""
    sums: dict[str, PyTree] = {}
    later: PyTree | None = None
    for segment in reversed(problem.system.segments):
        own = parts[segment.name]
        if segment.length is not None:
            own = jax.tree.map(lambda leaf: jnp.flip(jnp.cumsum(jnp.flip(leaf, 1), 1), 1), own)
        if later is not None:
            axis = () if segment.length is None else 1
            own = jax.tree.map(
                lambda leaf, rest, axis=axis: leaf + jnp.expand_dims(rest, axis), own, later
            )
        sums[segment.name] = own
        later = own if segment.length is None else jax.tree.map(lambda leaf: leaf[:, 0], own)
    return sums
