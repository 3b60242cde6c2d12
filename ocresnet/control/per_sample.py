"""One step of feedback "per_sample": each sample is a problem of its own, policies are averaged.

This is the papers' algorithm (DDPNOpt, Algorithm 3). All samples share the controls and M_k; each
has its own value function.

Notation (sample i)
    J_i            its cost;  lambda_i,k = dJ_i/dx_k its costate
    C_i,k          columns: its gradient, and its factors where they are others
    Gamma_i,k      eta C_i,k^T M_k^-1 C_i,k
    s_k            what is changed anyway;  p_i,k = P_i,k^T s_k what that does to its factors
    w_i,k          coordinates of its policy in its columns: weights + [kappa gains epsilon_i,k]_P
    B              samples

    d theta_k = s_k - eta M_k^-1 (1/B) sum_i C_i,k w_i,k

The gradient g_in that comes in may not be the mean g of the samples' own: a transformation before
this one has made something else of it. It is taken apart, g_in = c g + r with <r, g> = 0. Then
c J_i are the costs, and r is minimised as it is: -eta M^-1 r is a part of s.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.control import per_sample_stages, stages
from ocresnet.control.coupled import is_same
from ocresnet.control.curvature.protocol import of_segment
from ocresnet.control.linearize import Keep, Nominal, linearize
from ocresnet.control.per_sample_stages import Samples, inner, inner_of_outputs, run_stage
from ocresnet.control.region import sizes
from ocresnet.control.settings import Applied, Settings, Step
from ocresnet.control.value import Policy, Value, applied_weights, value_recursion
from ocresnet.systems import fold as folds
from ocresnet.systems.fold import fold
from ocresnet.systems.system import PyTree, Segment

Array = jax.Array


class SampleColumns(NamedTuple):
    """What the recursion knows of the stages.

    Attributes:
      samples: what is known of the samples at the stages of every segment.
      gram: Gamma_i,k, [stages, batch, players, C, C].
      drift: p_i,k, [stages, batch, F].
      scale: c, [].
      rest: -M^-1 r, a tree like the parameters; None where r is known to be nothing.
      sizes: c of every sample's factor (`region.py`), [batch].
    """

    samples: dict[str, Samples]
    gram: Array
    drift: Array
    scale: Array
    rest: PyTree | None
    sizes: Array


def make_columns(step: Step, nominal: Nominal | None) -> SampleColumns:
    """Columns of every sample, and their Gram matrices.

    Args:
      step: what the update is made from; the system has neither shared parameters nor batch
        statistics.
      nominal: of the batch, with its trajectory.
    """
    assert nominal is not None
    system = step.problem.system
    scale, rest = _taken_apart(step, nominal)
    drift = step.drift
    if rest is not None:
        drift = jax.tree.map(lambda leaf: step.learning_rate * leaf, rest)
        if step.drift is not None:
            drift = jax.tree.map(jnp.add, drift, step.drift)
    samples, factors = _samples(step, nominal, drift)

    def body(segment: Segment, carry: tuple, own: Samples) -> tuple[tuple, tuple[Array, Array]]:
        gram = per_sample_stages.gram_matrices(system, step.curvature, segment, own)
        effect = jnp.zeros((gram.shape[0], factors), gram.dtype)
        if own.drift is not None and jax.tree.leaves(own.drift):
            effect = per_sample_stages.effect_of_drift(system, segment, own, factors)
        return carry, (gram, effect)

    _, results = fold(system, body, (), samples)
    gram, effects = (
        stages.concatenated(system, {name: result[part] for name, result in results.items()})
        for part in (0, 1)
    )
    size = sizes(step, nominal)
    each = jnp.broadcast_to(1.0 if size is None else size, gram.shape[1:2]).astype(gram.dtype)
    return SampleColumns(samples, step.learning_rate * gram, effects, scale, rest, each)


def solve_value(step: Step, columns: SampleColumns) -> Policy:
    """The Bellman recursion of every sample: [stages, batch, players, ...]."""
    gram = columns.gram
    weights = jnp.zeros(gram.shape[-1], gram.dtype).at[0].set(columns.scale)
    last = Value(weights, jnp.eye(columns.drift.shape[-1], dtype=gram.dtype))
    kappa, decide = step.settings.weight_of_value * columns.sizes, step.settings.decision
    return jax.vmap(
        lambda gram, drift, kappa: value_recursion(gram, drift, last, kappa, decide),
        in_axes=(1, 1, 0),
        out_axes=1,
    )(gram, columns.drift, kappa)


def roll_out(
    step: Step, nominal: Nominal | None, columns: SampleColumns, policy: Policy
) -> Applied:
    """Apply the averaged policies, stage by stage."""
    settings, system, gram = step.settings, step.problem.system, columns.gram
    start = system.initial_state(step.batch[0])
    if settings.rollout == "linear":
        start = jax.tree.map(jnp.zeros_like, start)
    weights, gains = (stages.by_segment(system, leaf) for leaf in policy)
    given = {
        name: (own, Policy(weights[name], gains[name])) for name, own in columns.samples.items()
    }
    reached = jnp.zeros(columns.drift.shape[1:], gram.dtype)
    kappa = settings.beta * columns.sizes
    _, results = fold(system, partial(_roll_out_stage, step, kappa), (start, reached), given)

    directions = {name: result[0] for name, result in results.items() if name in step.gradient}
    if columns.rest is not None:
        directions = jax.tree.map(jnp.subtract, directions, columns.rest)
    used, deviations = (
        stages.concatenated(system, {name: result[part] for name, result in results.items()})
        for part in (1, 2)
    )
    change = jnp.einsum("kbnc,kbnc->kb", gram[:, :, :, 0, :], used)
    own = jnp.sum(gram[:, :, :, 0, 0], axis=2)
    total = _mean(settings, jnp.sum(own, axis=0))
    return Applied(
        directions,
        share=_mean(settings, jnp.sum(change, axis=0)) / jnp.where(total > 0, total, 1.0),
        trust=total,
        weights=_mean(settings, change / jnp.where(own > 0, own, 1.0), axis=1),
        deviations=_mean(settings, jnp.mean(deviations, axis=-1), axis=1),
    )


def _roll_out_stage(
    step: Step,
    kappa: Array,
    segment: Segment,
    carry: tuple[PyTree, Array],
    given: tuple[Samples, Policy],
) -> tuple[tuple[PyTree, Array], tuple[PyTree, Array, Array]]:
    """Update the control of one stage and go on along the new (or linearised) trajectory."""
    settings, system = step.settings, step.problem.system
    (state, reached), (samples, policy) = carry, given
    nonlinear = settings.rollout == "nonlinear"
    change = jax.tree.map(jnp.subtract, state, samples.state) if nonlinear else state
    deviation = reached + inner(samples.costates, change)
    weights = jax.vmap(applied_weights)(policy, deviation, kappa)

    params, name = samples.stage.params, segment.name
    direction = _by_player(
        segment,
        [
            per_sample_stages.mean_gradient(system, segment, samples, weights[:, player])
            for player in range(1 + len(segment.players))
        ],
    )
    if settings.axis_name is not None:
        direction = lax.pmean(direction, settings.axis_name)
    if jax.tree.leaves(direction):
        direction = step.curvature.solve(samples.entries, {name: direction})[name]
    update = jax.tree.map(lambda d: -step.learning_rate * d, direction)
    if samples.drift is not None:
        update = jax.tree.map(jnp.add, update, samples.drift)

    run = partial(run_stage, system, segment, samples)
    if nonlinear:
        moved = jax.tree.map(lambda leaf, own: leaf + own.astype(leaf.dtype), params, update)
        outputs, state = run(moved, state)
        if outputs is not None and samples.outputs is not None:
            outputs -= samples.outputs
    else:
        _, (outputs, state) = jax.jvp(run, (params, samples.state), (update, change))
    if outputs is not None and samples.output_costates is not None:
        reached += inner_of_outputs(samples.output_costates[:, -reached.shape[1] :], outputs)
    return (state, reached), (direction, weights, deviation)


def _by_player(segment: Segment, directions: list[PyTree]) -> PyTree:
    """Every player's own part of the directions that were made with its weights."""
    if not segment.players:
        return directions[0]
    return {name: directions[stages.player_of(segment, name)][name] for name in directions[0]}


def _taken_apart(step: Step, nominal: Nominal) -> tuple[Array, PyTree | None]:
    """c and -M^-1 r of the gradient that came in."""
    if is_same(step.gradient, nominal.gradient):
        return jnp.ones(()), None
    g = nominal.gradient
    if step.settings.axis_name is not None:
        g = lax.pmean(g, step.settings.axis_name)
    square = optax.tree.vdot(g, g)
    scale = jnp.where(square > 0, optax.tree.vdot(step.gradient, g) / square, 1.0)
    rest = jax.tree.map(lambda own, other: scale * other - own, dict(step.gradient), g)
    return scale, step.solve(rest)


def _samples(step: Step, nominal: Nominal, drift: PyTree | None) -> tuple[dict[str, Samples], int]:
    """Nominal trajectory and costates of every sample, in the form that stages are folded in, and
    the number of factors."""
    problem, settings, (params, _) = step.problem, step.settings, step.variables
    system, trajectory = problem.system, nominal.trajectory
    assert trajectory is not None
    count = trajectory.outputs.shape[2]
    # Of the mean over samples -> of every sample's own cost.
    costates = jax.tree.map(lambda leaf: count * leaf[0], trajectory.costates)
    at_outputs = count * trajectory.output_costates[0]
    first = int(settings.factor != "gradient")
    if first:
        keep = Keep(settings.factor, trajectory=True)
        factors = linearize(problem, params, {}, *step.batch, keep, step.key).trajectory
        assert factors is not None
        scale = count**0.5
        costates = jax.tree.map(
            lambda own, other: jnp.concatenate([own, scale * other[0]]), costates, factors.costates
        )
        at_outputs = jnp.concatenate([at_outputs, scale * factors.output_costates[0]])

    outputs = stages.outputs_by_segment(system, trajectory.outputs[0])
    output_costates = stages.outputs_by_segment(system, jnp.moveaxis(at_outputs, 1, 0))
    of_stages = folds.stages(system, step.variables)
    result: dict[str, Samples] = {}
    following = at_outputs[:, -1]
    for run in reversed(system.runs):
        entering = costates[run[0].name]
        if run[0].stacked:  # the last of the run's segments is followed by the first one's next
            following = jax.tree.map(
                lambda own, last: jnp.concatenate(
                    [own[:, 1:], last[:, None].astype(own.dtype)], axis=1
                ),
                entering,
                following,
            )
        for segment in reversed(run):
            name, own = segment.name, costates[segment.name]
            of_factors = jax.tree.map(lambda leaf: leaf[first:], own)
            result[name] = Samples(
                stage=of_stages[name],
                entries=of_segment(step.entries, name),
                state=jax.tree.map(lambda leaf: leaf[0], trajectory.states[name]),
                next_costates=stages.stage_first(segment, following),
                costates=stages.stage_first(segment, of_factors),
                outputs=outputs[name],
                output_costates=output_costates[name],
                drift=None if drift is None else drift.get(name, {}),
            )
            following = own
        if run[0].stacked:
            following = jax.tree.map(lambda leaf: leaf[:, 0], entering)
    return result, len(at_outputs) - first


def _mean(settings: Settings, values: Array, axis: int = 0) -> Array:
    mean = jnp.mean(values, axis=axis)
    return mean if settings.axis_name is None else lax.pmean(mean, settings.axis_name)
