"""Kronecker-factored curvature: K-FAC and EKFAC as curvatures of the controls.

Notation (one affine layer: dense, convolution, projection; W its kernel with the bias as last row)
    x, delta   input at a location and gradient of a sample's cost there (`systems/taps.py`)
    A          E[sum over locations of x x^T],            [rows_in, rows_in]
    G          E[mean over locations of delta delta^T],   [channels_out, channels_out]
    U_A, U_G   their eigenvectors;  a, c  their eigenvalues
    D          gradient of W, the mean over the batch,    [rows_in, channels_out]
    m          second moments in the eigenbasis,          [rows_in, channels_out]

    K-FAC   M^-1 D = U_A [ (U_A^T D U_G) / ((a + pi sqrt(damping)) (c + sqrt(damping) / pi)) ]
            U_G^T,  pi^2 = (tr A / rows_in) / (tr G / channels_out)
    EKFAC   M^-1 D = U_A [ (U_A^T D U_G) / (m + damping) ] U_G^T

Martens and Grosse 2015; Grosse and Martens 2016 (convolutions); George et al. 2018 (EKFAC). The
expectation is over the samples of a batch with their own labels (empirical Fisher). A layer that is
read at several depths counts each of them as a location. Parallel layers, as the players of a stage
have them, may have factors in common (`kronecker_layers.py`). Arrays that no layer owns
(normalisation, what a system declares no layer for) get EKFAC's formula in their own coordinates,
D / (m + damping). Everything here is at least float32, whatever the activations are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control.curvature.kronecker_layers import (
    Coupling,
    Layer,
    empty_layer,
    layer_leaves,
    layer_matrix,
    make_taps,
    members,
    records,
    rotate,
    rotate_back,
    shapes,
)
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

Moments = Literal["batch", "per_example"]


@dataclass(frozen=True)
class Kronecker:
    """K-FAC, or with `corrected` EKFAC; `curvature.kfac` and `ekfac` describe the fields."""

    damping: float
    decay: float
    factor_every: int
    factor_samples: int | None
    eigen_every: int
    corrected: bool
    moments: Moments = "batch"
    coupling: Coupling | None = None
    needs_statistics: bool = True

    def init(self, system: System, params: PyTree) -> CurvatureState:
        factored = shapes(system, params, self.coupling or "concatenated")
        entries: Entries = {path: empty_layer(shape) for path, shape in factored.items()}
        owned = {own for path in factored for own in members(path)[0]}
        for path, leaf in flatten(params).items():
            if path.rpartition("/")[0] not in owned:
                entries[path] = moments_like(leaf)
        return CurvatureState(jnp.zeros((), jnp.int32), entries)

    def update(
        self, state: CurvatureState, gradient: PyTree, batch_size: int, statistics: Statistics
    ) -> CurvatureState:
        count, entries = state
        layers = {path: entry for path, entry in entries.items() if isinstance(entry, Layer)}
        # The first gradients weigh alike, instead of the first one for ever.
        decay = jnp.minimum(self.decay, 1 - 1 / (count // self.factor_every + 1))
        estimated = ("inputs", "outputs", *(["moments"] if self._per_example else []))
        layers = _refreshed(
            layers,
            estimated,
            count % self.factor_every == 0,
            lambda: self._refresh_factors(layers, batch_size, statistics, decay),
        )
        layers = _refreshed(
            layers,
            ("input_basis", "output_basis", "moments"),
            count % self.eigen_every == 0,
            partial(self._refresh_bases, layers),
        )
        flat = flatten(gradient)
        if self.corrected and self.moments == "batch":
            for path, layer in layers.items():
                rotated = rotate(layer, layer_matrix(flat, path, layer))
                moments = average(layer.moments, batch_size * jnp.square(rotated), self.decay)
                layers[path] = finite_or(layer, layer._replace(moments=moments))
        decay = jnp.minimum(self.decay, 1 - 1 / (count + 1))
        others = {
            path: finite_or(entry, average(entry, batch_size * jnp.square(flat[path]), decay))
            for path, entry in entries.items()
            if path not in layers
        }
        return CurvatureState(count + 1, {**others, **layers})

    def solve(self, entries: Entries, tree: PyTree) -> PyTree:
        flat = flatten(tree)
        solved: dict[str, Array] = {}
        for path, entry in entries.items():
            if isinstance(entry, Layer):
                damping = self.damping if self.corrected else 0.0
                matrix = rotate(entry, layer_matrix(flat, path, entry))
                matrix = rotate_back(entry, matrix / (entry.moments + damping))
                solved.update(layer_leaves(matrix, flat, path))
            else:
                leaf = flat[path]
                solved[path] = (leaf / (entry + self.damping)).astype(leaf.dtype)
        return unflatten(solved, tree)

    def metric(self, entries: Entries, path: str, with_bias: bool) -> Metric | None:
        if path not in entries:  # one of several coupled layers
            return None
        layer = entries[path]
        damping = self.damping if self.corrected else 0.0
        return Metric(layer.input_basis, layer.output_basis, 1 / (layer.moments + damping))

    @property
    def _per_example(self) -> bool:
        return self.corrected and self.moments == "per_example"

    def _refresh_factors(
        self, layers: dict[str, Layer], batch_size: int, statistics: Statistics, decay: Array
    ) -> dict[str, Layer]:
        recorded = statistics(make_taps(layers, self._per_example), self.factor_samples)
        refreshed = {}
        for path, layer in layers.items():
            record = records(recorded, path)
            rows = record["rows"][..., None, None]
            new = layer._replace(
                inputs=average(layer.inputs, record["inputs"] / batch_size, decay),
                outputs=average(layer.outputs, record["outputs"] / rows, decay),
            )
            if self._per_example:
                moments = average(layer.moments, record["moments"] / batch_size, decay)
                new = new._replace(moments=moments)
            refreshed[path] = finite_or(layer, new)
        return refreshed

    def _refresh_bases(self, layers: dict[str, Layer]) -> dict[str, Layer]:
        factors = [factor for layer in layers.values() for factor in (layer.inputs, layer.outputs)]
        decompositions = iter(_decompose_in_turn(factors))
        refreshed = {}
        for path, layer in layers.items():
            (a, input_basis), (c, output_basis) = next(decompositions), next(decompositions)
            a, c = (jnp.maximum(values, 0)[..., None] for values in (a, c))
            if not self.corrected:
                ratio = jnp.mean(a, -2, keepdims=True) / jnp.mean(c, -2, keepdims=True)
                pi = jnp.sqrt(jnp.where(ratio > 0, ratio, 1.0))
                a, c = a + pi * self.damping**0.5, c + self.damping**0.5 / pi
            moments = a * jnp.swapaxes(c, -1, -2)
            new = layer._replace(
                input_basis=input_basis, output_basis=output_basis, moments=moments
            )
            refreshed[path] = finite_or(layer, new)
        return refreshed


def require_finite(state: CurvatureState) -> None:
    """Refuse a curvature that is not finite (not for use inside a compiled function).

    Raises:
      ValueError: naming the first layer whose curvature is not finite.
    """
    for path, entry in state.entries.items():
        if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(entry)):
            raise ValueError(
                f"the curvature of {path} is not finite after {int(state.steps)} updates: lower "
                "the learning rate or raise the damping."
            )


def _refreshed(
    layers: dict[str, Layer],
    fields: tuple[str, ...],
    due: Array,
    refresh: Callable[[], dict[str, Layer]],
) -> dict[str, Layer]:
    """The layers with these fields from `refresh()`, where it is due.

    Nothing else leaves the conditional: XLA lays out what does as one of the branches would have
    it, so that arrays which never change were transposed twice at every step.
    """

    def taken(layers: dict[str, Layer]) -> dict[str, dict[str, Array]]:
        return {
            path: {field: getattr(layer, field) for field in fields}
            for path, layer in layers.items()
        }

    fresh = lax.cond(due, lambda: taken(refresh()), lambda: taken(layers))
    return {path: layer._replace(**fresh[path]) for path, layer in layers.items()}


def _decompose_in_turn(matrices: list[Array]) -> list[tuple[Array, Array]]:
    """Eigenvalues and eigenvectors of symmetric matrices, one call after the other.

    On CPU a batched decomposition waits inside a worker thread for others of the same pool: as many
    of them at once as there are threads wait for ever. So each is made to depend on the last one,
    and a stack is taken apart, since several devices share the pool.
    """
    decompositions = []
    nothing = jnp.zeros(())
    for matrix in matrices:
        values, vectors = _decompose(matrix + nothing.astype(matrix.dtype))
        nothing = 0.0 * jnp.nan_to_num(jnp.sum(values))
        decompositions.append((values, vectors))
    return decompositions


def _decompose(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of a symmetric matrix, or of a stack of them."""

    def one_by_one(stack: Array) -> tuple[Array, Array]:
        values, vectors = lax.map(jnp.linalg.eigh, stack)
        return values, vectors

    def at_once(stack: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(stack)
        return values, vectors

    if matrix.ndim == 2:
        return at_once(matrix)
    return lax.platform_dependent(matrix, cpu=one_by_one, default=at_once)
