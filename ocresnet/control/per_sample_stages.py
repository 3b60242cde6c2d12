"""What feedback "per_sample" does at one stage with the samples' columns (`per_sample.py`).

Gradients of single samples are needed for their Gram matrices alone. Where affine layers own all of
a stage's parameters, not even for these: a layer's input and output gradients give the square of
every sample's gradient, and the backward pass through the stage records it (`systems/taps.py`).
A weighted sum over samples of columns is one backward pass with weighted costates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control import stages
from ocresnet.control.curvature.protocol import Curvature, Entries, Metric
from ocresnet.systems import layers, taps
from ocresnet.systems.fold import advance
from ocresnet.systems.system import PyTree, Segment, Stage, System
from ocresnet.systems.taps import Reading

Array = jax.Array


class Samples(NamedTuple):
    """What is known of the samples at a stage; leading axis [length] in stacked segments.

    Attributes:
      stage: what its transition reads.
      entries: curvature of its controls.
      state: x_k, trees [batch, ...].
      next_costates: columns pulled back to x_{k+1}, trees [C, batch, ...].
      costates: the factors pulled back to x_k, trees [F, batch, ...].
      outputs: y_j, [outputs, batch, classes], or None.
      output_costates: the columns at them, [outputs, C, batch, classes], or None.
      drift: s_k, a tree like the parameters, or None.
    """

    stage: Stage
    entries: Entries
    state: PyTree
    next_costates: PyTree
    costates: PyTree
    outputs: Array | None
    output_costates: Array | None
    drift: PyTree | None

    def at(self, weights: Array) -> tuple[Array | None, PyTree]:
        """Weighted sums over the columns at outputs and next state; weights [batch, C]."""

        def weighted(columns: Array) -> Array:
            return jnp.einsum("bc,cb...->b...", weights, columns).astype(columns.dtype)

        outputs = None
        if self.output_costates is not None:
            outputs = jax.vmap(weighted)(self.output_costates)
        return outputs, jax.tree.map(weighted, self.next_costates)


Ends = tuple[Array | None, PyTree]
"""Outputs of a stage, and the state after it."""


def run_stage(
    system: System, segment: Segment, samples: Samples, params: PyTree, state: PyTree
) -> Ends:
    """y_j and x_{k+1}, without shared parameters or batch statistics."""
    stage = samples.stage._replace(params=params, shared={}, train=True)
    outputs, state, _ = advance(system, segment, stage, state)
    return outputs, state


def gram_matrices(
    system: System, curvature: Curvature, segment: Segment, samples: Samples
) -> Array:
    """C_i^T M^-1 C_i of every sample at one stage: [batch, players, C, C]."""
    squares = _squares(system, curvature, segment, samples)
    if squares is not None:
        return squares[:, :, None, None]

    def of_sample(state: PyTree, costates: Ends) -> Array:
        def ends(params: PyTree) -> Ends:
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], state)
            return run_stage(system, segment, samples, params, batch_of_one)

        reached, pullback = jax.vjp(ends, samples.stage.params)

        def pull_back(outputs: Array | None, following: PyTree) -> PyTree:
            if outputs is not None:
                outputs = outputs[:, None]
            following = jax.tree.map(lambda leaf: leaf[None], following)
            given = _as_types_of(reached, (outputs, following))
            return {segment.name: pullback(given)[0]}

        columns = jax.vmap(pull_back, in_axes=(1, 0))(*costates)
        if not jax.tree.leaves(columns):
            count = jax.tree.leaves(costates[1])[0].shape[0]
            return jnp.zeros((stages.players(system), count, count))
        solved = jax.vmap(lambda column: curvature.solve(samples.entries, column))(columns)
        return stages.gram_matrix(system, segment, columns[segment.name], solved[segment.name])

    costates = samples.output_costates, samples.next_costates
    outputs_axis = None if costates[0] is None else 2
    return jax.vmap(of_sample, in_axes=(0, (outputs_axis, 1)))(samples.state, costates)


def mean_gradient(system: System, segment: Segment, samples: Samples, weights: Array) -> PyTree:
    """(1/B) sum_i C_i weights_i, a tree like the stage's parameters; weights [batch, C]."""
    ends, pullback = jax.vjp(
        lambda params: run_stage(system, segment, samples, params, samples.state),
        samples.stage.params,
    )
    (gradient,) = pullback(_as_types_of(ends, samples.at(weights / weights.shape[0])))
    return gradient


def effect_of_drift(system: System, segment: Segment, samples: Samples, factors: int) -> Array:
    """p_i = P_i^T s of every sample at one stage, [batch, F]; the last F columns are factors."""
    _, (outputs, following) = jax.jvp(
        lambda params: run_stage(system, segment, samples, params, samples.state),
        (samples.stage.params,),
        (samples.drift,),
    )
    of_factors = jax.tree.map(lambda leaf: leaf[-factors:], samples.next_costates)
    effect = inner(of_factors, following)
    if outputs is not None and samples.output_costates is not None:
        effect += inner_of_outputs(samples.output_costates[:, -factors:], outputs)
    return effect


def inner(factors: PyTree, change: PyTree) -> Array:
    """<factor_f, change> for every sample: trees [F, batch, ...], [batch, ...] -> [batch, F]."""
    return jax.vmap(stages.inner, in_axes=(1, 0))(factors, change)


def inner_of_outputs(factors: Array, change: Array) -> Array:
    """The same at outputs: [outputs, F, batch, classes], [outputs, batch, classes]."""
    return jax.vmap(stages.inner, in_axes=(2, 1))(jnp.moveaxis(factors, 1, 0), change)


def _squares(
    system: System, curvature: Curvature, segment: Segment, samples: Samples
) -> Array | None:
    """<g_i, M^-1 g_i> of every sample, [batch, players].

    None where there are other columns, or where M or the stage has no such form: arrays that no
    layer owns, layers that are read more than once, or that M couples.
    """
    params = samples.stage.params
    columns, batch = jax.tree.leaves(samples.next_costates)[0].shape[:2]
    if columns > 1 or segment.tied or not segment.layers:
        return None
    recording, owned = {}, 0
    for path in layers.one_by_one(segment.layers):
        leaves = _at(params, path)
        owned += len(leaves)
        full_path = "/".join(filter(None, (segment.name, path)))
        metric = curvature.metric(samples.entries, full_path, "bias" in leaves)
        if metric is None:
            return None
        dtype = jnp.promote_types(leaves["kernel"].dtype, jnp.float32)
        zeros = jnp.zeros(batch, dtype)
        recording[full_path] = taps.Tap((zeros, metric), _record_squares)
    if owned != len(jax.tree.leaves(params)):
        return None

    def ends(recording: dict[str, taps.Tap]) -> Ends:
        tapped = taps.merge({segment.name: params}, recording)[segment.name]
        return run_stage(system, segment, samples, tapped, samples.state)

    reached, pullback = jax.vjp(ends, recording)
    (recorded,) = pullback(_as_types_of(reached, samples.at(jnp.ones((batch, 1)))))
    total = jnp.zeros((stages.players(system), batch), jnp.float32)
    for path, tap in recorded.items():
        name = path.removeprefix(segment.name).strip("/").split("/")[0]
        total = total.astype(tap.arrays[0].dtype)
        total = total.at[stages.player_of(segment, name)].add(tap.arrays[0])
    return total.T


def _record_squares(arrays: tuple[Array, Metric], reading: Reading) -> tuple[Array, Metric]:
    zeros = jax.tree.map(jnp.zeros_like, arrays[1])
    return _squares_of_layer(arrays[1], *reading.rows()).astype(arrays[0].dtype), zeros


def _squares_of_layer(metric: Metric, x: Array, delta: Array) -> Array:
    """<D_i, M^-1 D_i> for D_i = sum over locations of x_i delta_i^T."""
    if metric.input_basis is not None:
        x = x @ metric.input_basis
    if metric.output_basis is not None:
        delta = delta @ metric.output_basis
    locations, rows, channels = x.shape[1], x.shape[2], delta.shape[2]
    if metric.weights is None and locations * (rows + channels) < rows * channels:
        # The same sum without the gradients: over pairs of locations, of which there are fewer.
        return jnp.sum((x @ x.mT) * (delta @ delta.mT), axis=(1, 2))
    if locations > 1:
        squares = jnp.square(jnp.einsum("bli,blo->bio", x, delta))
        if metric.weights is not None:
            squares *= metric.weights
        return jnp.sum(squares, axis=(1, 2))
    x, delta = jnp.square(x[:, 0]), jnp.square(delta[:, 0])
    weighted = jnp.sum(x, axis=1, keepdims=True)
    if metric.weights is not None:
        weighted = x @ metric.weights
    return jnp.sum(weighted * delta, axis=1)


def _at(params: PyTree, path: str) -> PyTree:
    for key in filter(None, path.split("/")):
        params = params[key]
    return params


def _as_types_of(ends: Ends, costates: Ends) -> Ends:
    return jax.tree.map(lambda end, costate: costate.astype(end.dtype), ends, costates)
