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
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp

from ocresnet.systems.system import PyTree

Array = jax.Array

Rule = Callable[[PyTree, Any], PyTree]
"""(arrays, the `Reading` or `ParallelReading`) -> a tree like `arrays`: what is recorded."""

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
    """The parameters with taps in the layers of these paths, as in "blocks/residual/dense_1"."""
    merged = dict(params)
    for path, tap in taps.items():
        node = merged
        for key in path.split("/"):
            node[key] = dict(node[key])
            node = node[key]
        node[TAP] = tap
    return merged


def split(params: PyTree) -> tuple[PyTree, PyTree]:
    """Parameters without their taps, and the taps alone, nested as they were."""
    plain, recording = {}, {}
    for key, node in params.items():
        if key == TAP:
            recording[key] = node
        elif isinstance(node, dict):
            plain[key], own = split(node)
            if own:
                recording[key] = own
        else:
            plain[key] = node
    return plain, recording


def join(plain: PyTree, recording: PyTree) -> PyTree:
    """Undo `split`."""
    nodes = {key: node if key == TAP else join(plain[key], node) for key, node in recording.items()}
    return {**plain, **nodes}


class AffineLayer(Protocol):
    """A layer y = x W + b at every location, as `layers.py` has them; hashable."""

    def __call__(self, params: PyTree, x: Array) -> Array:
        """y, for a dictionary with `kernel` and perhaps `bias`; a tap in it records."""
        ...

    def product(self, x: Array, kernel: Array) -> Array:
        """y without bias; linear in both."""
        ...

    def rows(self, x: Array) -> Array:
        """What the kernel is multiplied with at every location, [batch, ..., rows_in]."""
        ...


class ParallelLayers(Protocol):
    """Affine layers that are recorded together, as `layers.Parallel` has them; hashable."""

    @property
    def layers(self) -> tuple[tuple[str, AffineLayer], ...]:
        """(name, layer) of each."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The label of each layer's input."""
        ...


class Reading(NamedTuple):
    """One use of an affine layer, as its backward pass sees it.

    Attributes:
      layer: what reads.
      with_bias: whether it has a bias.
      inputs: x, as the layer got it, [batch, ...].
      output_gradients: delta, like the layer's output, [batch, ..., channels_out].
    """

    layer: AffineLayer
    with_bias: bool
    inputs: PyTree = None
    output_gradients: PyTree = None

    def rows(self) -> tuple[Array, Array]:
        """x [batch, locations, rows_in] and delta [batch, locations, channels_out], at least
        float32."""
        x, delta = self.layer.rows(self.inputs), self.output_gradients
        x, delta = (leaf.reshape(leaf.shape[0], -1, leaf.shape[-1]) for leaf in (x, delta))
        x, delta = (leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in (x, delta))
        if self.with_bias:
            x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        return x, delta


class ParallelReading(NamedTuple):
    """One use of parallel layers.

    Attributes:
      layer: what reads.
      with_bias: whether each of its layers has a bias.
      inputs: by label.
      output_gradients: by name.
    """

    layer: ParallelLayers
    with_bias: tuple[bool, ...]
    inputs: PyTree = None
    output_gradients: PyTree = None

    def parts(self) -> dict[str, Reading]:
        """What each layer read and got back, by its name."""
        labelled = zip(self.layer.layers, self.with_bias, self.layer.reads, strict=True)
        return {
            name: Reading(layer, with_bias, self.inputs[label], self.output_gradients[name])
            for (name, layer), with_bias, label in labelled
        }


def record(params: PyTree, layer: AffineLayer | ParallelLayers, x: PyTree, y: PyTree) -> PyTree:
    """y itself; where the layer has a tap, its backward pass records.

    Args:
      params: of the layer.
      layer: what reads them; parallel layers are one.
      x: the layer's input, [batch, ...]; of parallel layers, by label.
      y: the layer's output, [batch, ..., channels_out]; of parallel layers, by name.
    """
    if TAP not in params:
        return y
    reading: Reading | ParallelReading
    if isinstance(y, dict):
        with_bias = tuple("bias" in params[name] for name in y)
        reading = ParallelReading(cast(ParallelLayers, layer), with_bias)
    else:
        reading = Reading(cast(AffineLayer, layer), "bias" in params)
    tap = params[TAP]
    return _record(tap.rule, reading, tap.arrays, jax.lax.stop_gradient(x), y)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _record(
    rule: Rule, reading: Reading | ParallelReading, arrays: PyTree, x: PyTree, y: PyTree
) -> PyTree:
    return y


def _forward(
    rule: Rule, reading: Reading | ParallelReading, arrays: PyTree, x: PyTree, y: PyTree
) -> tuple[PyTree, tuple[PyTree, PyTree]]:
    return y, (arrays, x)


def _backward(
    rule: Rule,
    reading: Reading | ParallelReading,
    residuals: tuple[PyTree, PyTree],
    delta: PyTree,
) -> tuple[PyTree, None, PyTree]:
    arrays, x = residuals
    return rule(arrays, reading._replace(inputs=x, output_gradients=delta)), None, delta


_record.defvjp(_forward, _backward)
