"""What every affine layer of a stage read and got back: inputs and output gradients.

Notation (one affine layer, sample i)
    x_i, delta_i   its input, and the gradient of the cost with respect to its output
    D_i            sum over locations of x_i delta_i^T, the gradient of its kernel (and bias)

With x and delta kept by one backward pass, a sum over samples of weights times D_i is one kernel
gradient, without another forward or backward pass through the stage.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.curvature_protocol import flatten, unflatten
from ocresnet.control.kronecker import affine_layers
from ocresnet.systems import taps
from ocresnet.systems.system import PyTree, Segment, System, run_transition
from ocresnet.systems.taps import Reading

Array = jax.Array


class LayerPass(NamedTuple):
    """Attributes:
    inputs: x, as the layer got it, [batch, ...].
    output_gradients: delta, [batch, ..., channels_out].
    """

    inputs: Array
    output_gradients: Array


def run_stage(segment: Segment, params: PyTree, state: Array) -> tuple[Array | None, Array]:
    """y_k and x_{k+1} of a stage without shared parameters or batch statistics."""
    output, state, _ = run_transition(segment, {}, params, {}, state, True, True)
    return output, state


def readings(segment: Segment, params: PyTree, state: PyTree) -> dict[str, Reading] | None:
    """How each affine layer of one stage is read, by path; nothing is computed.

    Args:
      segment: the stage's.
      params: of one stage, arrays or their shapes.
      state: x_k, or its shape.

    Returns:
      Readings with shapes in place of arrays; None if the stage has arrays that no affine layer
      owns, or reads a layer more than once.
    """
    layers = affine_layers(System((segment,)), {segment.name: params})
    if sum(1 + layer.with_bias for layer in layers.values()) != len(jax.tree.leaves(params)):
        return None
    found: dict[str, list[Reading]] = {path: [] for path in layers}

    def note(path: str, arrays: Array, reading: Reading) -> Array:
        shapes: list[Any] = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in reading[2:]]
        found[path].append(Reading(*reading[:2], *shapes))
        return arrays

    def total(notes: dict[str, taps.Tap], params: PyTree, state: Array) -> Array:
        merged = taps.merge({segment.name: params}, notes)
        output, following = run_stage(segment, merged[segment.name], state)
        return jnp.sum(following) + (0.0 if output is None else jnp.sum(output))

    notes = {path: taps.Tap(jnp.zeros(()), partial(note, path)) for path in layers}
    jax.eval_shape(jax.grad(total), notes, params, state)
    if any(len(uses) != 1 for uses in found.values()):
        return None
    return {path: uses[0] for path, uses in found.items()}


def recorders(
    segments: tuple[Segment, ...], params: PyTree, states: dict[str, Array]
) -> dict[str, taps.Tap]:
    """Taps that keep inputs and output gradients, in every stage where `readings` finds them.

    Args:
      segments: of a system.
      params: its parameters.
      states: {segment: array like the states that enter its transitions}.
    """
    recording = {}
    for segment in segments:
        own, state = stage_shapes(segment, params, states)
        for path, reading in (readings(segment, own, state) or {}).items():
            leading = () if segment.length is None else (segment.length,)
            zeros = (jnp.zeros((*leading, *leaf.shape), leaf.dtype) for leaf in reading[2:])
            recording[path] = taps.Tap(LayerPass(*zeros), _keep)
    return recording


def stage_shapes(
    segment: Segment, params: PyTree, states: dict[str, Array]
) -> tuple[PyTree, PyTree]:
    """Shapes of the parameters of one stage of a segment, and of its state."""
    skip = 0 if segment.length is None else 1
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[skip:], leaf.dtype),
        (params.get(segment.name, {}), states[segment.name]),
    )


def weighted_gradient(
    params: PyTree, layers: dict[str, Reading], name: str, weights: Array
) -> PyTree:
    """sum_i weights_i D_i, a tree like `params`.

    Args:
      params: of one stage.
      layers: its readings, with arrays.
      name: of its segment, with which the paths begin.
      weights: [batch].
    """
    like = {name: params}
    shapes = flatten(like)
    gradient: dict[str, Array] = {}
    for path, reading in layers.items():
        delta = reading.output_gradients
        delta = delta * weights.reshape(-1, *[1] * (delta.ndim - 1)).astype(delta.dtype)
        shape = jax.ShapeDtypeStruct(shapes[f"{path}/kernel"].shape, delta.dtype)
        transpose = jax.linear_transpose(partial(reading.operation.product, reading.inputs), shape)
        (gradient[f"{path}/kernel"],) = transpose(delta)
        if reading.with_bias:
            gradient[f"{path}/bias"] = jnp.sum(delta, axis=range(delta.ndim - 1))
    return unflatten(gradient, like)[name]


def _keep(arrays: LayerPass, reading: Reading) -> LayerPass:
    return LayerPass(*reading[2:])
