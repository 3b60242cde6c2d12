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
read at several depths counts each of them as a location. Arrays that no layer owns (normalisation,
what a system declares no layer for) get EKFAC's formula in their own
coordinates, D / (m + damping). Everything here is at least float32, whatever the activations are.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

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
from ocresnet.systems.taps import Reading, Tap

Array = jax.Array

Moments = Literal["batch", "per_example"]


class AffineLayer(NamedTuple):
    """Shape of a layer's kernel, whether it has a bias, and whether it is stacked along depth."""

    kernel_shape: tuple[int, ...]
    with_bias: bool
    stacked: bool


class Layer(NamedTuple):
    """Curvature of an affine layer; in a stacked segment every array has a leading axis [length].

    Attributes:
      inputs: A.
      outputs: G.
      input_basis: U_A.
      output_basis: U_G.
      moments: EKFAC: m; K-FAC: the product of the damped eigenvalues.
    """

    inputs: Array
    outputs: Array
    input_basis: Array
    output_basis: Array
    moments: Array


@dataclass(frozen=True)
class Kronecker:
    """K-FAC, or with `corrected` EKFAC; `curvature.kfac` and `ekfac` describe the fields."""

    damping: float
    decay: float
    factor_every: int
    eigen_every: int
    corrected: bool
    moments: Moments = "batch"
    needs_statistics: bool = True

    def init(self, system: System, params: PyTree) -> CurvatureState:
        layers = affine_layers(system, params)
        entries: Entries = {}
        for path, leaf in flatten(params).items():
            layer = path.rpartition("/")[0]
            if layer not in layers:
                entries[path] = moments_like(leaf)
            elif path.endswith("/kernel"):
                entries[layer] = _init_layer(layers[layer], moments_like(leaf).dtype)
        return CurvatureState(jnp.zeros((), jnp.int32), entries)

    def update(
        self, state: CurvatureState, gradient: PyTree, batch_size: int, statistics: Statistics
    ) -> CurvatureState:
        count, entries = state
        layers = {path: entry for path, entry in entries.items() if isinstance(entry, Layer)}
        # The first gradients weigh alike, instead of the first one for ever.
        decay = jnp.minimum(self.decay, 1 - 1 / (count // self.factor_every + 1))
        layers = lax.cond(
            count % self.factor_every == 0,
            lambda layers: self._refresh_factors(layers, batch_size, statistics, decay),
            lambda layers: layers,
            layers,
        )
        layers = lax.cond(
            count % self.eigen_every == 0,
            self._refresh_bases,
            lambda layers: layers,
            layers,
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

    def metric(self, entries: Entries, path: str, with_bias: bool) -> Metric:
        layer = entries[path]
        damping = self.damping if self.corrected else 0.0
        return Metric(layer.input_basis, layer.output_basis, 1 / (layer.moments + damping))

    def _refresh_factors(
        self, layers: dict[str, Layer], batch_size: int, statistics: Statistics, decay: Array
    ) -> dict[str, Layer]:
        per_example = self.corrected and self.moments == "per_example"
        taps = {path: _tap(layer, per_example) for path, layer in layers.items()}
        recorded = statistics(taps)
        refreshed = {}
        for path, layer in layers.items():
            record = recorded[path].arrays
            rows = record["rows"][..., None, None]
            new = layer._replace(
                inputs=average(layer.inputs, record["inputs"] / batch_size, decay),
                outputs=average(layer.outputs, record["outputs"] / rows, decay),
            )
            if per_example:
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


def affine_layers(system: System, params: PyTree) -> dict[str, AffineLayer]:
    """The layers that the system declares, by their path in the parameters."""
    declared = dict.fromkeys(system.shared_layers, False)
    for segment in system.segments:
        for path in segment.layers:
            declared["/".join(filter(None, (segment.name, path)))] = segment.stacked
    flat = flatten(params)
    return {
        path: AffineLayer(flat[f"{path}/kernel"].shape, f"{path}/bias" in flat, stacked)
        for path, stacked in declared.items()
        if f"{path}/kernel" in flat
    }


def layer_matrix(flat: dict[str, Array], path: str, layer: Layer) -> Array:
    """Kernel and bias of a layer as one matrix, [(length), rows_in, channels_out]."""
    kernel = flat[f"{path}/kernel"].astype(layer.moments.dtype)
    kernel = kernel.reshape(*layer.inputs.shape[:-2], -1, kernel.shape[-1])
    bias = flat.get(f"{path}/bias")
    if bias is None:
        return kernel
    return jnp.concatenate([kernel, bias[..., None, :].astype(kernel.dtype)], axis=-2)


def layer_leaves(matrix: Array, flat: dict[str, Array], path: str) -> dict[str, Array]:
    """Undo `layer_matrix`: the matrix as arrays like those in `flat`."""
    kernel = flat[f"{path}/kernel"]
    bias = flat.get(f"{path}/bias")
    rows = matrix.shape[-2] - (bias is not None)
    leaves = {f"{path}/kernel": matrix[..., :rows, :].reshape(kernel.shape).astype(kernel.dtype)}
    if bias is not None:
        leaves[f"{path}/bias"] = matrix[..., rows, :].astype(bias.dtype)
    return leaves


def rotate(layer: Layer, matrix: Array) -> Array:
    """U_A^T D U_G."""
    return jnp.swapaxes(layer.input_basis, -1, -2) @ matrix @ layer.output_basis


def rotate_back(layer: Layer, matrix: Array) -> Array:
    """U_A D U_G^T."""
    return layer.input_basis @ matrix @ jnp.swapaxes(layer.output_basis, -1, -2)


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


def _init_layer(layer: AffineLayer, dtype: jnp.dtype) -> Layer:
    leading = layer.kernel_shape[:1] if layer.stacked else ()
    *inputs, channels = layer.kernel_shape[len(leading) :]
    rows = math.prod(inputs) + layer.with_bias

    def identity(size: int) -> Array:
        return jnp.broadcast_to(jnp.eye(size, dtype=dtype), (*leading, size, size))

    return Layer(
        inputs=jnp.zeros((*leading, rows, rows), dtype),
        outputs=jnp.zeros((*leading, channels, channels), dtype),
        input_basis=identity(rows),
        output_basis=identity(channels),
        moments=jnp.ones((*leading, rows, channels), dtype),
    )


def _tap(layer: Layer, per_example: bool) -> Tap:
    zeros = {
        "inputs": jnp.zeros_like(layer.inputs),
        "outputs": jnp.zeros_like(layer.outputs),
        "rows": jnp.zeros(layer.inputs.shape[:-2], layer.inputs.dtype),
    }
    if not per_example:
        return Tap(zeros, _record_factors)
    bases = {"input_basis": layer.input_basis, "output_basis": layer.output_basis}
    return Tap(
        {**zeros, **bases, "moments": jnp.zeros_like(layer.moments)}, _record_factors_and_moments
    )


def _record_factors(arrays: PyTree, reading: Reading) -> PyTree:
    """Sums over samples and locations of x x^T and delta delta^T, and their number."""
    x, delta = (rows.reshape(-1, rows.shape[-1]) for rows in reading.rows())
    rows = jnp.asarray(x.shape[0], arrays["rows"].dtype)
    return {"inputs": x.T @ x, "outputs": delta.T @ delta, "rows": rows}


def _record_factors_and_moments(arrays: PyTree, reading: Reading) -> PyTree:
    """The same, and the sum over samples of (U_A^T D_i U_G)^2."""
    x, delta = reading.rows()
    rotated_x, rotated_delta = x @ arrays["input_basis"], delta @ arrays["output_basis"]
    if x.shape[1] == 1:
        moments = jnp.square(rotated_x[:, 0]).T @ jnp.square(rotated_delta[:, 0])
    else:
        gradients = jnp.einsum("bli,blo->bio", rotated_x, rotated_delta)
        moments = jnp.sum(jnp.square(gradients), axis=0)
    zeros = {name: jnp.zeros_like(arrays[name]) for name in ("input_basis", "output_basis")}
    return {**_record_factors(arrays, reading), **zeros, "moments": moments}


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
