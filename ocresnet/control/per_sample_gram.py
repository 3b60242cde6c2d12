"""Gram matrices of every sample's columns at one stage, C_i^T M^-1 C_i (`per_sample.py`)."""

from collections import Counter
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.curvature_protocol import Curvature, Entries, Metric
from ocresnet.control.kronecker import affine_layers
from ocresnet.systems import taps
from ocresnet.systems.system import PyTree, Segment, System, run_transition

Array = jax.Array


class Stage(NamedTuple):
    """What a segment's stages are made of; leading axis [length] where the segment is scanned.

    Attributes:
      params: controls.
      entries: their curvature.
      state: x_k, [batch, ...].
      next_costates: columns pulled back to x_{k+1}, [columns, batch, ...].
      costates: the factors pulled back to x_k, [factors, batch, ...].
      output: y_k and the columns at it, or None.
    """

    params: PyTree
    entries: Entries
    state: Array
    next_costates: Array
    costates: Array
    output: tuple[Array, Array] | None


def run_stage(segment: Segment, params: PyTree, state: Array) -> tuple[Array | None, Array]:
    """y_k and x_{k+1} of a stage without shared parameters or batch statistics."""
    output, state, _ = run_transition(segment, {}, params, {}, state, True, True)
    return output, state


def gram_matrices(curvature: Curvature, segment: Segment, stage: Stage) -> Array:
    """C_i^T M^-1 C_i of every sample at one stage: [batch, columns, columns].

    Where the gradient is the only column and all of the stage's arrays belong to affine layers that
    are read once, a backward pass over the whole batch records them, and no sample's gradient is
    formed. Otherwise the samples' gradients are.
    """
    if stage.next_costates.shape[0] == 1:
        recorded = _recorded_squares(curvature, segment, stage)
        if recorded is not None:
            return recorded[:, None, None]

    def of_sample(state: Array, next_costates: Array, output_costates: Array | None) -> Array:
        (output, following), pullback = jax.vjp(
            lambda params: jax.tree.map(
                lambda leaf: leaf[0], run_stage(segment, params, state[None])
            ),
            stage.params,
        )
        if output is not None and output_costates is not None:
            output_costates = output_costates.astype(output.dtype)
        columns = jax.vmap(lambda *costates: pullback(costates)[0])(
            output_costates, next_costates.astype(following.dtype)
        )
        solved = columns
        if jax.tree.leaves(columns):
            solved = jax.vmap(
                lambda column: curvature.solve(stage.entries, {segment.name: column})[segment.name]
            )(columns)
        count = next_costates.shape[0]
        total = jnp.zeros((count, count), _at_least_single(state))
        for x, y in zip(jax.tree.leaves(columns), jax.tree.leaves(solved), strict=True):
            x, y = (leaf.reshape(count, -1).astype(total.dtype) for leaf in (x, y))
            total += x @ y.T
        return total

    output_costates = None if stage.output is None else stage.output[1]
    return jax.vmap(of_sample, in_axes=(0, 1, None if output_costates is None else 1))(
        stage.state, stage.next_costates, output_costates
    )


class _Squares(NamedTuple):
    """What the tap of an affine layer records and reads.

    Attributes:
      squares: <D_i, M^-1 D_i> of every sample's gradient, [batch].
      metric: M^-1.
    """

    squares: Array
    metric: Metric


def _recorded_squares(curvature: Curvature, segment: Segment, stage: Stage) -> Array | None:
    """<g_i, M^-1 g_i> of every sample, [batch]; None where it cannot be recorded."""
    layers = affine_layers(System((segment,)), {segment.name: stage.params})
    owned = sum(1 + layer.with_bias for layer in layers.values())
    if owned != len(jax.tree.leaves(stage.params)):
        return None
    squares = jnp.zeros(stage.state.shape[0], _at_least_single(stage.state))
    reads: Counter[str] = Counter()
    records = {}
    for path, layer in layers.items():
        metric = curvature.metric(stage.entries, path, layer.with_bias)
        if metric is None:
            return None
        records[path] = taps.Tap(_Squares(squares, metric), partial(_record_squares, reads, path))

    def tapped(records: dict[str, taps.Tap]) -> tuple[Array | None, Array]:
        params = taps.merge({segment.name: stage.params}, records)
        return run_stage(segment, params[segment.name], stage.state)

    (output, following), pullback = jax.vjp(tapped, records)
    output_costate = None
    if output is not None and stage.output is not None:
        output_costate = stage.output[1][0].astype(output.dtype)
    (recorded,) = pullback((output_costate, stage.next_costates[0].astype(following.dtype)))
    if any(reads[path] != 1 for path in layers):
        return None
    return sum((tap.arrays.squares for tap in recorded.values()), squares)


def _record_squares(
    reads: "Counter[str]", path: str, arrays: _Squares, x: Array, delta: Array
) -> _Squares:
    """<D_i, M^-1 D_i> for D_i = sum over locations of x delta^T; and counts the reads."""
    reads[path] += 1
    metric = arrays.metric
    if metric.input_basis is not None:
        x = x @ metric.input_basis
    if metric.output_basis is not None:
        delta = delta @ metric.output_basis
    if x.shape[1] > 1:
        squares = jnp.square(jnp.einsum("bli,blo->bio", x, delta))
        if metric.weights is not None:
            squares *= metric.weights
        squares = jnp.sum(squares, axis=(1, 2))
    else:
        x, delta = jnp.square(x[:, 0]), jnp.square(delta[:, 0])
        weighted = jnp.sum(x, axis=1, keepdims=True)
        if metric.weights is not None:
            weighted = x @ metric.weights
        squares = jnp.sum(weighted * delta, axis=1)
    return _Squares(squares, jax.tree.map(jnp.zeros_like, metric))


def _at_least_single(array: Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)
