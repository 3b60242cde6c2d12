"""Trees of parameters, states and outputs, seen stage by stage.

A tree like the parameters has one entry a segment (stacked along its transitions, where these have
controls of their own) and one a shared part. The stages are, in order: one for all shared
parameters, where there are any, then those of every segment. The players of a stage are those that
its segment names (`Segment.players`); whoever is not named is the first.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from ocresnet.systems.system import PyTree, Segment, System

Array = jax.Array


def by_segment(system: System, leaf: Array) -> dict[str, Array]:
    """[stages, ...] -> {segment: [(length), ...]}; the first axis is there in stacked segments."""
    start, result = int(bool(system.shared)), {}
    for run in system.runs:
        for turn, segment in enumerate(run):
            part = leaf[start + turn : start + len(run) * segment.stages : len(run)]
            result[segment.name] = part if segment.stacked else part[0]
        start += sum(segment.stages for segment in run)
    return result


def concatenated(system: System, results: Mapping[str, Array]) -> Array:
    """Undo `by_segment`, without the stage of the shared parameters: what `fold` gathered."""
    stacked = {s.name: results[s.name][None] for s in system.segments if not s.stacked}
    return in_order(system, {**results, **stacked})


def in_order(system: System, parts: Mapping[str, Array], first: Sequence[Array] = ()) -> Array:
    """What comes first, then {segment: [stages of it, ...]} in the order in which these are run:
    [stages, ...]."""
    ordered = list(first)
    for run in system.runs:
        own = [parts[segment.name] for segment in run]
        turns = own[0] if len(own) == 1 else jnp.stack(own, 1).reshape(-1, *own[0].shape[1:])
        ordered.append(turns)
    return jnp.concatenate(ordered)


def outputs_by_segment(system: System, outputs: Array) -> dict[str, Array | None]:
    """[outputs, ...] -> {segment: [(length), outputs of a stage, ...], or None without outputs}."""
    start = 0
    result: dict[str, Array | None] = {}
    for segment in system.segments:
        part = outputs[start : start + segment.outputs]
        start += segment.outputs
        if segment.output is None:
            result[segment.name] = None
        else:
            result[segment.name] = part[:, None] if segment.stacked else part
    return result


def stage_first(segment: Segment, tree: PyTree) -> PyTree:
    """[columns, (length), ...] -> [(length), columns, ...]."""
    if not segment.stacked:
        return tree
    return jax.tree.map(partial(jnp.moveaxis, source=1, destination=0), tree)


def players(system: System) -> int:
    """The largest number of players that a stage has."""
    return 1 + max(len(segment.players) for segment in system.segments)


def inner(factors: PyTree, change: PyTree) -> Array:
    """<factor_f, change> for every factor: trees [F, ...] and [...] -> [F]."""

    def of_leaf(factor: Array, leaf: Array) -> Array:
        dtype = jnp.promote_types(factor.dtype, jnp.float32)
        products = factor.astype(dtype) * leaf.astype(dtype)
        return jnp.sum(products, axis=tuple(range(1, factor.ndim)))

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, factors, change)), jnp.zeros(()))


def gram_matrices(system: System, left: PyTree, right: PyTree) -> Array:
    """Inner products of columns, stage by stage.

    Args:
      system: names the stages.
      left, right: trees like the parameters, with leading axes [columns] and [others].

    Returns:
      [stages, players, columns, others].
    """
    of_shared = []
    if system.shared:
        shared = ({name: tree[name] for name in system.shared} for tree in (left, right))
        of_shared.append(gram_matrix(system, None, *shared)[None])
    dtype, counts = _dtype(left), (_count(left), _count(right))
    parts: dict[str, Array] = {}
    for segment in system.segments:
        if not jax.tree.leaves(left.get(segment.name)):
            parts[segment.name] = jnp.zeros((segment.stages, players(system), *counts), dtype)
            continue
        of_stage = partial(gram_matrix, system, segment)
        own = left[segment.name], right[segment.name]
        if segment.stacked:
            parts[segment.name] = jax.vmap(of_stage, in_axes=1)(*own)
        else:
            parts[segment.name] = of_stage(*own)[None]
    return in_order(system, parts, of_shared)


def gram_matrix(system: System, segment: Segment | None, left: PyTree, right: PyTree) -> Array:
    """Inner products of columns at one stage, [players, columns, others].

    Args:
      system: says how many players there are.
      segment: the stage's; None for the shared parameters.
      left, right: its part of trees like the parameters, with leading axes [columns], [others].
    """
    counts, dtype = (_count(left), _count(right)), _dtype(left)
    result = jnp.zeros((players(system), *counts), dtype)

    def products(x: Array, y: Array) -> Array:
        x, y = (leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in (x, y))
        return jnp.sum(x * y).reshape(1, 1) if counts == (1, 1) else x @ y.T

    for (player, own), (_, other) in zip(
        _by_player(segment, left), _by_player(segment, right), strict=True
    ):
        pairs = zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True)
        total = sum((products(x, y) for x, y in pairs), jnp.zeros(counts, dtype))
        result = result.at[player].add(total)
    return result


def combine(segment: Segment | None, weights: Array, columns: PyTree) -> PyTree:
    """sum_c weights_c columns_c of every player of a stage.

    Args:
      segment: the stage's; None for the shared parameters.
      weights: [players, columns].
      columns: the segment's part of a tree like the parameters, with a leading axis [columns].
    """

    def of_leaf(weights: Array, leaf: Array) -> Array:
        if leaf.shape[0] == 1:
            return weights[0].astype(leaf.dtype) * leaf[0]
        return jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1)

    if segment is None or not segment.players:
        return jax.tree.map(partial(of_leaf, weights[0]), columns)
    return {
        name: jax.tree.map(partial(of_leaf, weights[player_of(segment, name)]), part)
        for name, part in columns.items()
    }


def combine_stages(system: System, weights: Array, columns: PyTree) -> PyTree:
    """`combine` with weights [stages, players, columns] of every stage: a tree like the
    parameters."""
    result = {name: combine(None, weights[0], columns[name]) for name in system.shared}
    own_weights = by_segment(system, weights)
    for segment in system.segments:
        if segment.name not in columns:
            continue
        own = columns[segment.name]
        if segment.stacked:
            combine_own = jax.vmap(partial(combine, segment), in_axes=(0, 1))
        else:
            combine_own = partial(combine, segment)
        result[segment.name] = combine_own(own_weights[segment.name], own)
    return result


def player_of(segment: Segment | None, name: str) -> int:
    """Which player decides the entry `name` of the segment's parameters."""
    if segment is None or name not in segment.players:
        return 0
    return 1 + segment.players.index(name)


def _by_player(segment: Segment | None, tree: PyTree) -> list[tuple[int, PyTree]]:
    """A segment's part of a tree: what is whose."""
    if segment is None or not segment.players:
        return [(0, tree)]
    return [(player_of(segment, name), tree[name]) for name in sorted(tree)]


def _count(tree: PyTree) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _dtype(tree: PyTree) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)
