"""The bilinear primitive against XLA's own convolution, in every mode of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ocresnet.systems.convolution import convolution, unit_stride_convolution

SHAPES = [
    # images, kernel, padding
    ((2, 6, 7, 3), (3, 3, 3, 4), ((1, 1), (1, 1))),
    ((2, 6, 7, 3), (1, 5, 3, 2), ((0, 0), (2, 2))),
    ((1, 5, 4, 2), (3, 2, 2, 3), ((2, 0), (0, 1))),
]


def stock(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("x_shape", "kernel_shape", "padding"), SHAPES)
def test_values_and_derivatives_are_those_of_the_stock_convolution(x_shape, kernel_shape, padding):
    rng = np.random.default_rng(0)
    x, kernel, x_tangent, kernel_tangent = (
        rng.normal(size=shape) for shape in (x_shape, kernel_shape, x_shape, kernel_shape)
    )

    def scalar(convolve):
        return lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel, padding)) ** 2)

    primals, tangents = (x, kernel), (x_tangent, kernel_tangent)
    for derivative in (
        lambda f: f(*primals),
        lambda f: jax.jvp(f, primals, tangents),
        lambda f: jax.grad(f, (0, 1))(*primals),
        lambda f: jax.jvp(jax.grad(f, (0, 1)), primals, tangents),
        lambda f: jax.grad(lambda *p: jax.jvp(f, p, tangents)[1], (0, 1))(*primals),
    ):
        ours, theirs = derivative(scalar(unit_stride_convolution)), derivative(scalar(stock))
        for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("axes", [(0, None), (3, None), (None, 0), (0, 0)])
def test_vmap_of_value_and_gradient(axes):
    rng = np.random.default_rng(0)
    shapes = ((2, 5, 5, 3), (3, 3, 3, 4))
    operands = [
        rng.normal(size=shape if axis is None else np.insert(shape, axis, 3))
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    padding = ((1, 1), (1, 1))

    def scalar(convolve):
        return lambda x, kernel: jnp.sum(convolve(x, kernel, padding) ** 3)

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        ours = jax.vmap(transform(scalar(unit_stride_convolution)), axes)(*operands)
        theirs = jax.vmap(transform(scalar(stock)), axes)(*operands)
        for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 8)), (2, (4, 4)), (3, (3, 3))])
def test_padding_is_half_the_kernel_at_any_stride(stride, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 7, 8, 3)), rng.normal(size=(3, 3, 3, 2))
    y = convolution(x, kernel, stride)
    assert y.shape == (2, *size, 2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, column in np.ndindex(*size):
        window = padded[:, row * stride : row * stride + 3, column * stride : column * stride + 3]
        np.testing.assert_allclose(
            y[:, row, column], np.einsum("bhwi,hwio->bo", window, kernel), rtol=1e-12, atol=1e-12
        )
