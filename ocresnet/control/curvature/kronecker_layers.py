"""What Kronecker factors belong to: the affine layers of a system, alone or coupled.

Notation: that of `kronecker.py`. Parallel layers (`systems/layers.py`) act in one stage, where
players may have a part each. Their curvature takes one of three forms:

    separate      A and G for every layer: M is block diagonal over the layers
    concatenated  layers of one kind that read the same input are one layer with all their channels:
                  one A, and one G over the channels of all. Other layers are separate
    schur         one A over the inputs of all layers, one G over all their channels (the papers'
                  form). The layers' gradients are the diagonal blocks of D, and what M^-1 makes of
                  them are those blocks of A^-1 D G^-1. For two layers u, v that is
                  (D_u + A_uv A_vv^-1 D_v G_vv^-1 G_vu), multiplied with the inverse Schur
                  complements A_uu - A_uv A_vv^-1 A_vu from the left, and G's from the right.
                  Layers with the same input make A singular, but for its damping

What has factors is known by the path of its layer, and coupled layers by the names of all of them:
"run/(left+right)" reads one input, "run/(left,right)" reads one for each name.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp

from ocresnet.control.curvature.protocol import Array, flatten, moments_like
from ocresnet.systems.layers import Parallel
from ocresnet.systems.system import PyTree, System
from ocresnet.systems.taps import ParallelReading, Reading, Tap

Coupling = Literal["separate", "concatenated", "schur"]

ONE_INPUT, OWN_INPUTS = "+", ","


class Shape(NamedTuple):
    """Of what has factors.

    Attributes:
      length: of its leading axis; None: it has none.
      rows, channels: of D.
      dtype: at least float32.
    """

    length: int | None
    rows: int
    channels: int
    dtype: jnp.dtype


class Layer(NamedTuple):
    """Curvature of a layer, or of coupled ones; in a stacked segment every array has a leading axis
    [length].

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


def shapes(system: System, params: PyTree, coupling: Coupling) -> dict[str, Shape]:
    """What has factors, by path: the layers that the system declares, coupled or not."""
    flat = flatten(params)
    result = {}
    for path, layer, length in _declared(system):
        if not isinstance(layer, Parallel):
            if f"{path}/kernel" in flat:
                result[path] = _shape(flat, path, length)
            continue
        own = {name: _shape(flat, f"{path}/{name}", length) for name in layer.names}
        for names in _coupled(layer, own, coupling):
            if len(names) == 1:
                result[f"{path}/{names[0]}"] = own[names[0]]
                continue
            one_input = coupling == "concatenated"
            rows = [own[name].rows for name in names]
            together = own[names[0]]._replace(
                rows=rows[0] if one_input else sum(rows),
                channels=sum(own[name].channels for name in names),
            )
            separator = ONE_INPUT if one_input else OWN_INPUTS
            result[f"{path}/({separator.join(names)})"] = together
    return result


def members(path: str) -> tuple[list[str], bool]:
    """The paths of the layers that have these factors, and whether they read one input."""
    parent, _, name = path.rpartition("/")
    if not (name.startswith("(") and name.endswith(")")):
        return [path], True
    one_input = ONE_INPUT in name
    names = name[1:-1].split(ONE_INPUT if one_input else OWN_INPUTS)
    return [f"{parent}/{own}" for own in names], one_input


def empty_layer(shape: Shape) -> Layer:
    """Factors of nothing, with the identity as their bases."""
    length, rows, channels, dtype = shape
    leading = () if length is None else (length,)

    def identity(size: int) -> Array:
        return jnp.broadcast_to(jnp.eye(size, dtype=dtype), (*leading, size, size))

    return Layer(
        inputs=jnp.zeros((*leading, rows, rows), dtype),
        outputs=jnp.zeros((*leading, channels, channels), dtype),
        input_basis=identity(rows),
        output_basis=identity(channels),
        moments=jnp.ones((*leading, rows, channels), dtype),
    )


def layer_matrix(flat: dict[str, Array], path: str, layer: Layer) -> Array:
    """Kernels and biases as one matrix D, [(length), rows_in, channels_out]."""
    paths, one_input = members(path)
    matrices = [_own_matrix(flat, own, layer) for own in paths]
    if len(matrices) == 1:
        return matrices[0]
    if one_input:
        return jnp.concatenate(matrices, axis=-1)
    result = jnp.zeros_like(layer.moments)
    row = channel = 0
    for matrix in matrices:
        rows, channels = matrix.shape[-2:]
        result = result.at[..., row : row + rows, channel : channel + channels].set(matrix)
        row, channel = row + rows, channel + channels
    return result


def layer_leaves(matrix: Array, flat: dict[str, Array], path: str) -> dict[str, Array]:
    """Undo `layer_matrix`: the matrix, or its blocks, as arrays like those in `flat`."""
    paths, one_input = members(path)
    leaves: dict[str, Array] = {}
    row = channel = 0
    for own in paths:
        kernel, bias = flat[f"{own}/kernel"], flat.get(f"{own}/bias")
        channels = kernel.shape[-1]
        block = matrix[..., row:, channel : channel + channels]
        rows = math.prod(kernel.shape[matrix.ndim - 2 : -1])
        of_kernel = block[..., :rows, :].reshape(kernel.shape)
        leaves[f"{own}/kernel"] = of_kernel.astype(kernel.dtype)
        if bias is not None:
            leaves[f"{own}/bias"] = block[..., rows, :].astype(bias.dtype)
        channel += channels
        if not one_input:
            row += rows + (bias is not None)
    return leaves


def rotate(layer: Layer, matrix: Array) -> Array:
    """U_A^T D U_G."""
    return jnp.swapaxes(layer.input_basis, -1, -2) @ matrix @ layer.output_basis


def rotate_back(layer: Layer, matrix: Array) -> Array:
    """U_A D U_G^T."""
    return layer.input_basis @ matrix @ jnp.swapaxes(layer.output_basis, -1, -2)


# Statistics


def make_taps(layers: dict[str, Layer], moments: bool) -> dict[str, Tap]:
    """Taps that record sums over samples and locations for all layers.

    They are "inputs": x x^T, "outputs": delta delta^T, "rows": their number, and where `moments`
    are wanted "moments": the sum over samples of (U_A^T D_i U_G)^2.
    """
    taps: dict[str, Tap] = {}
    coupled: dict[str, dict[str, dict[str, Array]]] = {}
    for path, layer in layers.items():
        arrays = {
            "inputs": jnp.zeros_like(layer.inputs),
            "outputs": jnp.zeros_like(layer.outputs),
            "rows": jnp.zeros(layer.inputs.shape[:-2], layer.inputs.dtype),
        }
        if moments:
            arrays["input_basis"] = layer.input_basis
            arrays["output_basis"] = layer.output_basis
            arrays["moments"] = jnp.zeros_like(layer.moments)
        if len(members(path)[0]) == 1:
            taps[path] = Tap(arrays, _record)
        else:
            parent = path.rpartition("/")[0]
            coupled.setdefault(parent, {})[path] = arrays
    return taps | {path: Tap(arrays, _record_coupled) for path, arrays in coupled.items()}


def records(recorded: dict[str, Tap], path: str) -> dict[str, Array]:
    """What the taps have recorded for the layer, or the coupled ones, at `path`."""
    if len(members(path)[0]) == 1:
        return recorded[path].arrays
    return recorded[path.rpartition("/")[0]].arrays[path]


def _record(arrays: dict[str, Array], reading: Reading) -> dict[str, Array]:
    return _sums(arrays, [reading.rows()])


def _record_coupled(arrays: dict[str, dict[str, Array]], reading: ParallelReading) -> PyTree:
    parts = {name: part.rows() for name, part in reading.parts().items()}
    result = {}
    for path, own in arrays.items():
        paths, one_input = members(path)
        blocks = [parts[member.rpartition("/")[2]] for member in paths]
        if len({x.shape[1] for x, _ in blocks}) > 1:
            raise ValueError(
                f"coupling 'schur' needs parallel layers of as many locations each, but those of "
                f"{path} have {', '.join(str(x.shape[1]) for x, _ in blocks)}: choose "
                "'concatenated' or 'separate'."
            )
        if one_input:
            blocks = [(blocks[0][0], jnp.concatenate([delta for _, delta in blocks], axis=-1))]
        result[path] = _sums(own, blocks)
    return result


def _sums(arrays: dict[str, Array], blocks: list[tuple[Array, Array]]) -> dict[str, Array]:
    """What is recorded, of the blocks on the diagonal of D: x [batch, locations, rows_in] and delta
    [batch, locations, channels_out] of each."""
    x, delta = (_joined([block[part] for block in blocks]) for part in (0, 1))
    x, delta = (leaf.reshape(-1, leaf.shape[-1]) for leaf in (x, delta))
    rows = jnp.asarray(x.shape[0], arrays["rows"].dtype)
    sums = {"inputs": x.T @ x, "outputs": delta.T @ delta, "rows": rows}
    if "moments" not in arrays:
        return sums
    zeros = {name: jnp.zeros_like(arrays[name]) for name in ("input_basis", "output_basis")}
    return {**sums, **zeros, "moments": _squares(arrays, blocks)}


def _squares(arrays: dict[str, Array], blocks: list[tuple[Array, Array]]) -> Array:
    """The sum over samples of (U_A^T D_i U_G)^2."""
    rotated = []
    row = channel = 0
    for x, delta in blocks:
        rows, channels = x.shape[-1], delta.shape[-1]
        of_x = x @ arrays["input_basis"][row : row + rows]
        of_delta = delta @ arrays["output_basis"][channel : channel + channels]
        rotated.append((of_x, of_delta))
        row, channel = row + rows, channel + channels
    (x, delta), *others = rotated
    if x.shape[1] == 1 and not others:
        return jnp.square(x[:, 0]).T @ jnp.square(delta[:, 0])
    gradients = sum(jnp.einsum("bli,blo->bio", x, delta) for x, delta in rotated)
    return jnp.sum(jnp.square(gradients), axis=0)


def _joined(blocks: list[Array]) -> Array:
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=-1)


# Which layers there are


def _declared(system: System) -> Iterator[tuple[str, object, int | None]]:
    """Path in the parameters, layer, and length of the leading axis."""
    for path, layer in system.shared_layers.items():
        yield path, layer, None
    for segment in system.segments:
        for path, layer in segment.layers.items():
            length = segment.length if segment.stacked else None
            yield "/".join(filter(None, (segment.name, path))), layer, length


def _coupled(layer: Parallel, own: dict[str, Shape], coupling: Coupling) -> list[tuple[str, ...]]:
    """The names of parallel layers, those together that have factors together."""
    if coupling == "separate":
        return [(name,) for name in layer.names]
    if coupling == "schur":
        return [layer.names]
    alike: dict[object, tuple[str, ...]] = {}
    for (name, kind), label in zip(layer.layers, layer.reads, strict=True):
        key = kind, label, own[name].rows
        alike[key] = (*alike.get(key, ()), name)
    return list(alike.values())


def _shape(flat: dict[str, Array], path: str, length: int | None) -> Shape:
    kernel = flat[f"{path}/kernel"]
    *inputs, channels = kernel.shape[int(length is not None) :]
    rows = math.prod(inputs) + (f"{path}/bias" in flat)
    return Shape(length, rows, channels, moments_like(kernel).dtype)


def _own_matrix(flat: dict[str, Array], path: str, layer: Layer) -> Array:
    """Kernel and bias of one layer, [(length), rows_in, channels_out]."""
    kernel = flat[f"{path}/kernel"].astype(layer.moments.dtype)
    kernel = kernel.reshape(*layer.inputs.shape[:-2], -1, kernel.shape[-1])
    bias = flat.get(f"{path}/bias")
    if bias is None:
        return kernel
    return jnp.concatenate([kernel, bias[..., None, :].astype(kernel.dtype)], axis=-2)
