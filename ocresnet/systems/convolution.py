"""Convolutions that are differentiated as fast inside `lax.scan` as outside it.

XLA's CPU backend has a fast path for convolutions in NHWC/HWIO form. The transposes that JAX
derives for a convolution leave that form; in the body of a loop or a conditional (where the backend
does not rewrite them) they run 10 to 100 times slower. This module therefore defines a bilinear
primitive whose transposes are written out as convolutions in NHWC/HWIO form again, by the same
primitive. So it is closed under differentiation: forward mode, reverse mode and their compositions
are all fast.

Notation (one direction of the images; the channels are summed over as in a product of matrices)
    x, w, y   images, kernel and result, with H, K and L pixels
    s, d, e   stride; dilations of images and kernel (steps between their pixels, zeros between)
    a, z      zeros padded before and after the dilated images

    y[l] = sum_i  xd[s l + e i - a] w[i],   xd[d h] = x[h], and 0 elsewhere
    d (H - 1) + 1 + a + z  =  s (L - 1) + 1 + e (K - 1)  (+ less than s, which is not read)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Padding = tuple[tuple[int, int], tuple[int, int]]


class Steps(NamedTuple):
    """s, d, e: the stride, and the dilations of images and kernel, the same in both directions."""

    stride: int = 1
    images: int = 1
    kernel: int = 1


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
    if jax.default_backend() == "cpu":
        return bilinear_convolution(x, kernel, padding, Steps(stride))
    return _stock_convolution(x, kernel, padding=padding, steps=Steps(stride))


def patches(x: jax.Array, kernel_shape: tuple[int, int], stride: int = 1) -> jax.Array:
    """What the kernel sees at every output pixel of `convolution`.

    Args:
      x: images [batch, height, width, channels_in].
      kernel_shape: height and width of the kernel, odd.
      stride: as in `convolution`.

    Returns:
      [batch, height', width', kernel_height * kernel_width * channels_in], ordered as the rows of
      `kernel.reshape(-1, channels_out)`.
    """
    rows, columns = kernel_shape[0] // 2, kernel_shape[1] // 2
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    x = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    shifted = [
        x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
        for i in range(kernel_shape[0])
        for j in range(kernel_shape[1])
    ]
    return jnp.concatenate(shifted, axis=-1)


def bilinear_convolution(
    x: jax.Array, kernel: jax.Array, padding: Padding, steps: Steps = Steps()
) -> jax.Array:
    """Convolution whose derivatives are convolutions of the same kind.

    Args:
      x: images [batch, height, width, channels_in].
      kernel: [kernel_height, kernel_width, channels_in, channels_out].
      padding: zeros added (before, after) the rows and (before, after) the columns of the dilated
        images; negative numbers take pixels away.
      steps: stride and dilations.

    Returns:
      [batch, height', width', channels_out].
    """
    return _convolution_p.bind(x, kernel, padding=padding, steps=steps)


def _stock_convolution(
    x: jax.Array, kernel: jax.Array, *, padding: Padding, steps: Steps
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (steps.stride,) * 2,
        padding,
        (steps.images,) * 2,
        (steps.kernel,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _output_shape(x: Any, kernel: Any, *, padding: Padding, steps: Steps) -> Any:
    s, d, e = steps
    height, width = (
        (d * (H - 1) + sum(zeros) - e * (K - 1)) // s + 1
        for H, K, zeros in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True)
    )
    return x.update(shape=(x.shape[0], height, width, kernel.shape[3]))


def _transpose_x(
    cotangent: jax.Array, x: Any, kernel: jax.Array, *, padding: Padding, steps: Steps
) -> jax.Array:
    """Input gradient: dxd[h] = sum over l and i with  s l + e i - a = h  of  dy[l] w[i].

    With the kernel flipped, its channels swapped: a convolution of the cotangent whose stride is d
    and whose dilations are s and e, padded with e (K - 1) - a zeros before it.
    """
    s, d, e = steps
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    before = [e * (K - 1) - a for K, (a, _) in zip(kernel.shape[:2], padding, strict=True)]
    return _convolution_of_shape(x.aval.shape[1:3], cotangent, flipped, before, Steps(d, s, e))


def _transpose_kernel(
    cotangent: jax.Array, x: jax.Array, kernel: Any, *, padding: Padding, steps: Steps
) -> jax.Array:
    """Kernel gradient: dw[i] = sum over l of  xd[s l + e i - a] dy[l].

    With samples in the place of channels: a convolution of the images with the cotangent as kernel,
    whose stride is e and whose dilations are d and s.
    """
    s, d, e = steps
    x, cotangent = x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
    before = [a for a, _ in padding]
    gradient = _convolution_of_shape(kernel.aval.shape[:2], x, cotangent, before, Steps(e, d, s))
    return gradient.transpose(1, 2, 0, 3)


def _convolution_of_shape(
    shape: Sequence[int], x: jax.Array, kernel: jax.Array, before: Sequence[int], steps: Steps
) -> jax.Array:
    """A convolution padded at the end so that it gives images of this height and width."""
    s, d, e = steps
    rows, columns = (
        (a, s * (L - 1) + e * (K - 1) - d * (H - 1) - a)
        for L, H, K, a in zip(shape, x.shape[1:3], kernel.shape[:2], before, strict=True)
    )
    return bilinear_convolution(x, kernel, (rows, columns), steps)


def _batch(
    operands: tuple[jax.Array, jax.Array], axes: tuple[Any, Any], **how: Any
) -> tuple[jax.Array, int]:
    """Where one operand alone is batched: one convolution, of more images or to more channels."""
    x, kernel = operands
    x_axis, kernel_axis = axes
    if kernel_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = bilinear_convolution(x.reshape(-1, *x.shape[2:]), kernel, **how)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        kernel = jnp.moveaxis(kernel, kernel_axis, 3)
        y = bilinear_convolution(x, kernel.reshape(*kernel.shape[:3], -1), **how)
        return y.reshape(*y.shape[:3], *kernel.shape[3:]), 3
    # One after the other is faster than the grouped convolution that XLA would make of them.
    pairs = jnp.moveaxis(x, x_axis, 0), jnp.moveaxis(kernel, kernel_axis, 0)
    return lax.map(lambda pair: bilinear_convolution(*pair, **how), pairs), 0


_convolution_p = Primitive("bilinear_convolution")
_convolution_p.def_abstract_eval(_output_shape)
_convolution_p.def_impl(jax.jit(_stock_convolution, static_argnames=("padding", "steps")))
ad.defbilinear(_convolution_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_convolution_p] = _batch
mlir.register_lowering(_convolution_p, mlir.lower_fun(_stock_convolution, multiple_results=False))
