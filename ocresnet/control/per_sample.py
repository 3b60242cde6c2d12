"""One step of feedback "per_sample": each sample is a problem of its own, policies are averaged.

This is the papers' algorithm (DDPNOpt, Algorithm 3). All samples share the controls and M_k; each
has its own value function.

Notation (sample i)
    J_i            its cost;  lambda_i,k = dJ_i/dx_k its costate
    C_i,k          columns: its gradient, and its factors where they are others
    Gamma_i,k      eta C_i,k^T M_k^-1 C_i,k
    omega_i,k      coordinates of its policy in its columns
    B              samples

    d theta_k = -eta M_k^-1 (1/B) sum_i C_i,k (omega_i,k + [kappa N_i,k epsilon_i,k]_P)

A weighted sum over samples of columns is one backward pass through the stage with weighted
costates, so that gradients of single samples are needed for Gamma alone, one stage at a time.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import stages
from ocresnet.control.bellman import Policy, applied_weights, value_recursion
from ocresnet.control.curvature_protocol import Curvature, Entries, of_segment
from ocresnet.control.layer_passes import run_stage, weighted_gradient
from ocresnet.control.nominal import Nominal, linearize
from ocresnet.control.per_sample_gram import Stage, gram_matrices, readings_of
from ocresnet.control.problem import ControlProblem
from ocresnet.control.settings import Info, Settings
from ocresnet.systems.system import PyTree, Segment

Array = jax.Array

Solve = Callable[[Entries, PyTree], PyTree]


def per_sample_step(
    problem: ControlProblem,
    settings: Settings,
    params: PyTree,
    batch: tuple[Array, Array],
    nominal: Nominal | None,
    curvature: Curvature,
    entries: Entries,
    learning_rate: float | Array,
    key: Array,
) -> tuple[PyTree, Info]:
    """The direction -d theta / eta.

    Args:
      problem: system (without shared parameters or batch statistics) and costs.
      settings: feedback "per_sample".
      params: the current parameters.
      batch: inputs and labels (of this device).
      nominal: nominal trajectory of the batch with all columns, or None to compute it.
      curvature: M.
      entries: of its state.
      learning_rate: eta.
      key: for random factors.

    Returns:
      A tree like the parameters, and diagnostics.

    Raises:
      ValueError: if the system has shared parameters.
    """
    if problem.system.shared:
        raise ValueError(
            "feedback 'per_sample' needs a system without shared parameters, but this one shares "
            f"{', '.join(problem.system.shared)}: use feedback 'stacked' or 'joint'."
        )
    stages_of = _stages(problem, settings, params, batch, nominal, entries, key)
    first = int(settings.factor != "gradient")

    # Backward: Gamma of every stage, then the value function of every sample.
    grams = []
    for segment in problem.system.segments:
        gram_of = partial(gram_matrices, curvature, segment)
        stage = stages_of[segment.name]
        grams.append(gram_of(stage)[None] if segment.length is None else lax.map(gram_of, stage))
    gram = learning_rate * jnp.concatenate(grams)
    columns = gram.shape[-1]
    weights = jnp.zeros(columns, gram.dtype).at[0].set(1.0)
    policy = jax.vmap(
        lambda gram: value_recursion(
            gram, weights, columns - first, settings.weight_of_value, settings.value_update
        ),
        in_axes=1,
        out_axes=1,
    )(gram)

    # Forward: the averaged policies, stage by stage.
    kappa = settings.beta if settings.forward_feedback else 0.0
    walk = partial(_forward_stage, settings, curvature.solve, learning_rate, kappa)
    images = problem.system.initial_state(batch[0])
    factors = gram.shape[-1] - first
    state = images if settings.rollout == "nonlinear" else jnp.zeros_like(images)
    carry = (state, jnp.zeros((images.shape[0], factors), gram.dtype))
    directions, applied, deviations = {}, [], []
    for segment in problem.system.segments:
        span = stages.spans(problem.system)[segment.name]
        inputs = (stages_of[segment.name], jax.tree.map(span.of, policy))
        step = partial(walk, segment)
        if span.length is None:
            carry, result = step(carry, inputs)
            result = (result[0], result[1][None], result[2][None])
        else:
            carry, result = lax.scan(step, carry, inputs)
        if segment.name in params:
            directions[segment.name] = result[0]
        applied.append(result[1])
        deviations.append(result[2])

    change = jnp.sum(gram[:, :, 0, :] * jnp.concatenate(applied), axis=-1)
    own = gram[:, :, 0, 0]
    info = Info(
        trust=_mean(settings, jnp.sum(own, axis=0)),
        predicted_change=jnp.zeros(()),
        weights=_mean(settings, change / jnp.where(own > 0, own, 1.0), axis=1),
        deviations=_mean(settings, jnp.mean(jnp.concatenate(deviations), axis=-1), axis=1),
    )
    return directions, info


def _mean(settings: Settings, values: Array, axis: int = 0) -> Array:
    mean = jnp.mean(values, axis=axis)
    return mean if settings.axis_name is None else lax.pmean(mean, settings.axis_name)


def _stages(
    problem: ControlProblem,
    settings: Settings,
    params: PyTree,
    batch: tuple[Array, Array],
    nominal: Nominal | None,
    entries: Entries,
    key: Array,
) -> dict[str, Stage]:
    """Nominal trajectory and costates of every sample, in the form that stages are scanned in."""
    keep_layers = settings.factor == "gradient"
    kept = nominal is not None and nominal.trajectory is not None and nominal.trajectory.layers
    if not kept:
        nominal = linearize(problem, params, {}, *batch, keep_layers=keep_layers)
    assert nominal is not None and nominal.trajectory is not None
    trajectory = jax.tree.map(lambda leaf: leaf[0], nominal.trajectory)
    count = batch[1].shape[0]
    # Of the mean over samples -> of every sample's own cost.
    costates = jax.tree.map(lambda leaf: count * leaf, trajectory.costates)
    outputs = count * trajectory.output_costates
    layers = {
        path: layer._replace(output_gradients=count * layer.output_gradients)
        for path, layer in (trajectory.layers or {}).items()
    }
    if settings.factor != "gradient":
        factors = linearize(problem, params, {}, *batch, factor=settings.factor, key=key).trajectory
        assert factors is not None
        scale = count**0.5
        costates = jax.tree.map(
            lambda own, other: jnp.concatenate([own, scale * other[0]]), costates, factors.costates
        )
        outputs = jnp.concatenate([outputs, scale * factors.output_costates[0]])
    first = int(settings.factor != "gradient")

    result: dict[str, Stage] = {}
    following, read = outputs[:, -1], outputs.shape[1] - 1
    for segment in reversed(problem.system.segments):
        own = costates[segment.name]
        output = None
        if segment.length is None:
            next_costates, of_factors = following, own[first:]
            following = own
        else:
            shifted = jnp.concatenate([own[:, 1:], following[:, None].astype(own.dtype)], axis=1)
            next_costates, of_factors = (
                jnp.moveaxis(leaf, 1, 0) for leaf in (shifted, own[first:])
            )
            following = own[:, 0]
        if segment.output is not None:
            length = 1 if segment.length is None else segment.length
            part = slice(read - length, read)
            read -= length
            output = (trajectory.outputs[part], jnp.moveaxis(outputs[:, part], 1, 0))
            if segment.length is None:
                output = (output[0][0], output[1][0])
        result[segment.name] = Stage(
            params=params.get(segment.name, {}),
            entries=of_segment(entries, segment.name),
            state=trajectory.states[segment.name],
            next_costates=next_costates,
            costates=of_factors,
            output=output,
            layers=of_segment(layers, segment.name) or None,
        )
    return result


def _forward_stage(
    settings: Settings,
    solve: Solve,
    learning_rate: float | Array,
    kappa: float | Array,
    segment: Segment,
    carry: tuple[Array, Array],
    inputs: tuple[Stage, Policy],
) -> tuple[tuple[Array, Array], tuple[PyTree, Array, Array]]:
    """Update the control of one stage and go on along the new (or linearised) trajectory."""
    (state, reached), (stage, policy) = carry, inputs
    nonlinear = settings.rollout == "nonlinear"
    change = state - stage.state if nonlinear else state
    deviation = reached + _inner(stage.costates, change)
    weights = jax.vmap(lambda *own: applied_weights(Policy(*own[:2]), own[2], kappa))(
        policy.weights, policy.gains, deviation
    )

    def weighted(columns: Array) -> Array:
        return jnp.einsum("bc,cb...->b...", weights, columns) / weights.shape[0]

    layers = readings_of(segment, stage)
    if layers:
        mean_weights = weights[:, 0] / weights.shape[0]
        gradient = weighted_gradient(stage.params, layers, segment.name, mean_weights)
    else:
        (nominal, _), pullback = jax.vjp(
            lambda params: run_stage(segment, params, stage.state), stage.params
        )
        output_costate = None
        if nominal is not None and stage.output is not None:
            output_costate = weighted(stage.output[1]).astype(nominal.dtype)
        (gradient,) = pullback((output_costate, weighted(stage.next_costates).astype(state.dtype)))
    if settings.axis_name is not None:
        gradient = lax.pmean(gradient, settings.axis_name)
    direction = gradient
    if jax.tree.leaves(gradient):
        direction = solve(stage.entries, {segment.name: gradient})[segment.name]
    update = jax.tree.map(lambda d: -learning_rate * d, direction)

    if nonlinear:
        moved = jax.tree.map(lambda leaf, d: leaf + d.astype(leaf.dtype), stage.params, update)
        output, state = run_stage(segment, moved, state)
        output_change = None if output is None or stage.output is None else output - stage.output[0]
    else:
        _, (output_change, state) = jax.jvp(
            partial(run_stage, segment), (stage.params, stage.state), (update, change)
        )
    if output_change is not None and stage.output is not None:
        first = stage.output[1].shape[0] - reached.shape[1]
        reached += _inner(stage.output[1][first:], output_change)
    return (state, reached), (direction, weights, deviation)


def _inner(factors: Array, change: Array) -> Array:
    """<factor_f, change> for every sample: [F, batch, ...], [batch, ...] -> [batch, F]."""
    count, batch = factors.shape[:2]
    dtype = jnp.promote_types(factors.dtype, jnp.float32)
    factors, change = factors.astype(dtype), change.astype(dtype)
    return jnp.einsum("fbx,bx->bf", factors.reshape(count, batch, -1), change.reshape(batch, -1))
