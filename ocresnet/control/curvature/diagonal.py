"""Curvatures without structure: the identity, and RMSprop's diagonal."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.control.curvature.protocol import (
    CurvatureState,
    Entries,
    Metric,
    Statistics,
    average,
    finite_or,
    flatten,
    moments_like,
    unflatten,
)
from ocresnet.systems.system import PyTree, System

Array = jax.Array


class Identity(NamedTuple):
    """M = I."""

    needs_statistics: bool = False

    def init(self, system: System, params: PyTree) -> CurvatureState:
        return CurvatureState(jnp.zeros((), jnp.int32), {})

    def update(
        self, state: CurvatureState, gradient: PyTree, batch_size: int, statistics: Statistics
    ) -> CurvatureState:
        return CurvatureState(state.steps + 1, {})

    def solve(self, entries: Entries, tree: PyTree) -> PyTree:
        return tree

    def metric(self, entries: Entries, path: str, with_bias: bool) -> Metric:
        return Metric(None, None, None)


class Diagonal(NamedTuple):
    """M = diag(sqrt(E[g * g]) + epsilon)."""

    decay: float
    epsilon: float
    needs_statistics: bool = False

    def init(self, system: System, params: PyTree) -> CurvatureState:
        entries = {path: moments_like(leaf) for path, leaf in flatten(params).items()}
        return CurvatureState(jnp.zeros((), jnp.int32), entries)

    def update(
        self, state: CurvatureState, gradient: PyTree, batch_size: int, statistics: Statistics
    ) -> CurvatureState:
        entries = {
            path: finite_or(entry, average(entry, jnp.square(leaf), self.decay))
            for path, entry, leaf in _paired(state.entries, gradient)
        }
        return CurvatureState(state.steps + 1, entries)

    def solve(self, entries: Entries, tree: PyTree) -> PyTree:
        solved = {
            path: solve_diagonal(entry, leaf, self.epsilon)
            for path, entry, leaf in _paired(entries, tree)
        }
        return unflatten(solved, tree)

    def metric(self, entries: Entries, path: str, with_bias: bool) -> Metric:
        kernel = entries[f"{path}/kernel"]
        moments = kernel.reshape(-1, kernel.shape[-1])
        if with_bias:
            moments = jnp.concatenate([moments, entries[f"{path}/bias"][None]])
        return Metric(None, None, 1 / (jnp.sqrt(moments) + self.epsilon))


def solve_diagonal(moments: Array, leaf: Array, epsilon: float) -> Array:
    """leaf / (sqrt(moments) + epsilon)."""
    return (leaf / (jnp.sqrt(moments) + epsilon)).astype(leaf.dtype)


def _paired(entries: Entries, tree: PyTree) -> list[tuple[str, Array, Array]]:
    return [(path, entries[path], leaf) for path, leaf in flatten(tree).items()]
