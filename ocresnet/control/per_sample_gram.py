"""Gram matrices of every sample's columns at one stage, C_i^T M^-1 C_i (`per_sample.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.curvature_protocol import Curvature, Entries, Metric
from ocresnet.control.layer_passes import LayerPass, readings, run_stage
from ocresnet.systems.system import PyTree, Segment
from ocresnet.systems.taps import Reading

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
      layers: inputs and output gradients of its affine layers (of the samples' own costs), by path;
        None where they are not kept.
    """

    params: PyTree
    entries: Entries
    state: Array
    next_costates: Array
    costates: Array
    output: tuple[Array, Array] | None
    layers: dict[str, LayerPass] | None


def readings_of(segment: Segment, stage: Stage) -> dict[str, Reading] | None:
    """The kept passes of a stage's layers, with what those layers do."""
    if stage.layers is None:
        return None
    found = readings(segment, stage.params, stage.state)
    assert found is not None
    return {path: Reading(*found[path][:2], *kept) for path, kept in stage.layers.items()}


def gram_matrices(curvature: Curvature, segment: Segment, stage: Stage) -> Array:
    """C_i^T M^-1 C_i of every sample at one stage: [batch, columns, columns].

    Where inputs and output gradients of all layers are kept, they give the samples' gradients.
    Otherwise each sample has forward and backward passes of its own.
    """
    layers = readings_of(segment, stage)
    if layers:
        squares = _squares(curvature, stage.entries, layers)
        if squares is not None:
            return squares[:, None, None]

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


def _squares(curvature: Curvature, entries: Entries, layers: dict[str, Reading]) -> Array | None:
    """<D_i, M^-1 D_i> of every sample's gradient, [batch]; None where M has no such form."""
    total: Array | None = None
    for path, reading in layers.items():
        metric = curvature.metric(entries, path, reading.with_bias)
        if metric is None:
            return None
        squares = _squares_of_layer(metric, *reading.rows())
        total = squares if total is None else total + squares
    return total


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


def _at_least_single(array: Array) -> jnp.dtype:
    return jnp.promote_types(array.dtype, jnp.float32)
