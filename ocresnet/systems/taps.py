"""Taps: statistics of a layer's inputs and output gradients, recorded by the backward pass.

Notation (one affine layer, y = x W + b at every location of an image, or at one)
    x      its input at a location, with a 1 appended where there is a bias: [rows_in]
    delta  gradient of the cost, summed over samples, with respect to y: [channels_out]

A tap is put beside the kernel of a layer in the parameters (`merge`). The layer's values do not
change. The derivative of the cost with respect to the tap's arrays is what its rule makes of x and
delta: so statistics come out of `jax.grad`, with the structure of the parameters, stacked where a
segment is scanned, and summed over the depths where parameters are read several times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from ocresnet.systems.system import PyTree

Array = jax.Array

Rule = Callable[[PyTree, Array, Array], PyTree]
"""(arrays, x [batch, locations, rows_in], delta [batch, locations, channels_out]) -> a tree like
`arrays`: what is recorded."""

TAP = "tap"


@partial(jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["rule"])
@dataclass(frozen=True)
class Tap:
    """Attributes:
    arrays: what is recorded has their structure and shapes; the rule may read their values.
    rule: makes the record.
    """

    arrays: PyTree
    rule: Rule


def merge(params: PyTree, taps: dict[str, Tap]) -> PyTree:
    """The parameters with taps in the layers of these paths, as in "stage_0/residual/dense"."""
    merged = dict(params)
    for path, tap in taps.items():
        node = merged
        for key in path.split("/"):
            node[key] = dict(node[key])
            node = node[key]
        node[TAP] = tap
    return merged


def record(params: PyTree, inputs: Callable[[], Array], y: Array) -> Array:
    """y itself; where the layer has a tap, its backward pass records.

    Args:
      params: of the layer.
      inputs: makes the layer's inputs at every location, [batch, ..., rows_in] without bias.
      y: the layer's output, [batch, ..., channels_out].
    """
    if TAP not in params:
        return y
    tap = params[TAP]
    x = inputs()
    x = x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
    if "bias" in params:
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    return _record(tap.rule, tap.arrays, jax.lax.stop_gradient(x), y)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _record(rule: Rule, arrays: PyTree, x: Array, y: Array) -> Array:
    return y


def _forward(rule: Rule, arrays: PyTree, x: Array, y: Array) -> tuple[Array, tuple[PyTree, Array]]:
    return y, (arrays, x)


def _backward(
    rule: Rule, residuals: tuple[PyTree, Array], delta: Array
) -> tuple[PyTree, None, Array]:
    arrays, x = residuals
    rows = delta.reshape(x.shape[0], -1, delta.shape[-1]).astype(x.dtype)
    return rule(arrays, x, rows), None, delta


_record.defvjp(_forward, _backward)
