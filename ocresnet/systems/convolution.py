"""Convolutions that are differentiated as fast inside `lax.scan` as outside it.

XLA's CPU backend has a fast path for convolutions in NHWC/HWIO form. The transposes that JAX
derives for a convolution leave that form; in a loop body (where the backend does not rewrite them)
they run about 30 times slower. This module therefore defines a bilinear primitive, the convolution
of unit stride, whose transposes are written out: the input gradient as the same primitive, the
kernel gradient as a product of matrices, which is also twice as fast as any convolution there. The
primitive is closed under differentiation, so forward mode, reverse mode, their compositions and
vmap all work.

Notation
    x   images [batch, height, width, channels_in]
    w   kernel [kernel_height, kernel_width, channels_in, channels_out]
    y   x * w  [batch, height', width', channels_out]
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Two-dimensional convolution, zero-padded by half the kernel on every side.

    Args:
      x: images [batch, height, width, channels_in].
      kernel: [kernel_height, kernel_width, channels_in, channels_out], sides odd, dtype of `x`.
      stride: step between output pixels, the same in both directions.

    Returns:
      [batch, ceil(height / stride), ceil(width / stride), channels_out].
    """
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    padding = ((rows, rows), (columns, columns))
    if stride == 1 and jax.default_backend() == "cpu":
        return unit_stride_convolution(x, kernel, padding)
    return _stock_convolution(x, kernel, padding=padding, stride=stride)


def unit_stride_convolution(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolution of unit stride whose derivatives are convolutions of the same kind.

    Args:
      x: images [batch, height, width, channels_in].
      kernel: [kernel_height, kernel_width, channels_in, channels_out].
      padding: zeros added (before, after) the rows and (before, after) the columns.

    Returns:
      [batch, height + padding - kernel_height + 1, ..., channels_out].
    """
    return _convolution_p.bind(x, kernel, padding=padding)


def _stock_convolution(
    x: jax.Array, kernel: jax.Array, *, padding: Padding, stride: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _output_shape(x: Any, kernel: Any, *, padding: Padding) -> Any:
    batch, height, width, _ = x.shape
    kernel_height, kernel_width, _, channels = kernel.shape
    return x.update(
        shape=(
            batch,
            height + sum(padding[0]) - kernel_height + 1,
            width + sum(padding[1]) - kernel_width + 1,
            channels,
        )
    )


def _transpose_x(cotangent: jax.Array, x: Any, kernel: jax.Array, *, padding: Padding) -> jax.Array:
    """Input gradient: correlate with the kernel, flipped in space, its channels swapped."""
    height, width = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    opposite = (
        (height - 1 - top, height - 1 - bottom),
        (width - 1 - left, width - 1 - right),
    )
    return unit_stride_convolution(cotangent, flipped, opposite)


def _transpose_kernel(
    cotangent: jax.Array, x: jax.Array, kernel: Any, *, padding: Padding
) -> jax.Array:
    """Kernel gradient, as one product of two matrices.

    dw[i, j] = sum over b, h, l of  x[b, h + i, l + j] cotangent[b, h, l]  (x with its padding).
    Moving the shift of the rows to the cotangent makes the two shifts separate: with x shifted by
    every j side by side, and the cotangent by every i, a single product gives all (i, j).
    """
    del kernel
    (top, bottom), columns = padding
    channels_in, channels_out = x.shape[3], cotangent.shape[3]
    height = x.shape[1] + top + bottom - cotangent.shape[1] + 1
    width = x.shape[2] + sum(columns) - cotangent.shape[2] + 1
    x = jnp.pad(x, ((0, 0), (0, 0), columns, (0, 0)))
    rows = (height - 1 - top, height - 1 - bottom)
    cotangent = jnp.pad(cotangent, ((0, 0), rows, (0, 0), (0, 0)))
    rows_in, columns_out = x.shape[1], cotangent.shape[2]
    x_shifted = [x[:, :, j : j + columns_out] for j in range(width)]
    cotangent_shifted = [
        cotangent[:, height - 1 - i : height - 1 - i + rows_in] for i in range(height)
    ]
    x_matrix = jnp.concatenate(x_shifted, axis=-1).reshape(-1, width * channels_in)
    cotangent_matrix = jnp.concatenate(cotangent_shifted, axis=-1)
    cotangent_matrix = cotangent_matrix.reshape(-1, height * channels_out)
    gradient = (x_matrix.T @ cotangent_matrix).reshape(width, channels_in, height, channels_out)
    return gradient.transpose(2, 0, 1, 3)


def _batch(
    operands: tuple[jax.Array, jax.Array], axes: tuple[Any, Any], *, padding: Padding
) -> tuple[jax.Array, int]:
    x, kernel = operands
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = unit_stride_convolution(x.reshape(-1, *x.shape[2:]), kernel, padding)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0

    def stock(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _stock_convolution(x, kernel, padding=padding)

    return jax.vmap(stock, in_axes=(x_axis, kernel_axis))(x, kernel), 0


_convolution_p = Primitive("unit_stride_convolution")
_convolution_p.def_abstract_eval(_output_shape)
_convolution_p.def_impl(jax.jit(_stock_convolution, static_argnames="padding"))
ad.defbilinear(_convolution_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_convolution_p] = _batch
mlir.register_lowering(_convolution_p, mlir.lower_fun(_stock_convolution, multiple_results=False))
