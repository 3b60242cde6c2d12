"""Trees of parameters, seen stage by stage.

A tree like the parameters has one entry a segment (stacked along its transitions) and one a shared
part. The stages are, in order: one for all shared parameters, where there are any, then every
transition.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.systems.system import PyTree, System

Array = jax.Array


class Span(NamedTuple):
    """The stages of a segment: `start`, and how many; `length` is None for a single one."""

    start: int
    length: int | None

    def of(self, leaf: Array) -> Array:
        """The part of an array [stages, ...] that belongs to the segment: [(length), ...]."""
        if self.length is None:
            return leaf[self.start]
        return leaf[self.start : self.start + self.length]


def spans(system: System) -> dict[str, Span]:
    """Where the stages of every segment lie."""
    start, result = int(bool(system.shared)), {}
    for segment in system.segments:
        result[segment.name] = Span(start, segment.length)
        start += 1 if segment.length is None else segment.length
    return result


def gram_matrices(system: System, left: PyTree, right: PyTree) -> Array:
    """Inner products of columns, stage by stage.

    Args:
      system: names the stages.
      left, right: trees like the parameters, with a leading axis [columns].

    Returns:
      [stages, columns, columns].
    """
    columns = jax.tree.leaves(left)[0].shape[0]
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(left)), jnp.float32)

    def products(a: PyTree, b: PyTree, stages: int) -> Array:
        total = jnp.zeros((stages, columns, columns), dtype)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            x, y = (leaf.reshape(columns, stages, -1).astype(dtype) for leaf in (x, y))
            if columns == 1:
                total += jnp.sum(x * y, axis=-1).reshape(stages, 1, 1)
            else:
                total += jnp.einsum("ckp,dkp->kcd", x, y)
        return total

    parts = []
    if system.shared:
        a, b = ({name: tree[name] for name in system.shared} for tree in (left, right))
        parts.append(products(a, b, 1))
    for segment in system.segments:
        a, b = left.get(segment.name, {}), right.get(segment.name, {})
        parts.append(products(a, b, 1 if segment.length is None else segment.length))
    return jnp.concatenate(parts)


def combine(weights: Array, columns: PyTree) -> PyTree:
    """sum_c weights_c columns_c, for trees with a leading axis [columns]."""
    return jax.tree.map(
        lambda leaf: (
            jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1)
            if leaf.shape[0] > 1
            else weights[0].astype(leaf.dtype) * leaf[0]
        ),
        columns,
    )


def combine_stages(system: System, weights: Array, columns: PyTree) -> PyTree:
    """`combine` with weights [stages, columns] of every stage: a tree like the parameters."""
    result = {name: combine(weights[0], columns[name]) for name in system.shared}
    for name, span in spans(system).items():
        if name not in columns:
            continue
        if span.length is None:
            result[name] = combine(weights[span.start], columns[name])
        else:
            result[name] = jax.vmap(combine, in_axes=(0, 1))(span.of(weights), columns[name])
    return result
