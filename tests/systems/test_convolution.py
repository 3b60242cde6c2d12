"""The bilinear primitive against XLA's own convolution, in every mode of differentiation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ocresnet.systems.convolution import Steps, bilinear_convolution, convolution, patches

SHAPES = [
    # images, kernel, padding, steps
    ((2, 6, 7, 3), (3, 3, 3, 4), ((1, 1), (1, 1)), Steps()),
    ((2, 6, 7, 3), (1, 5, 3, 2), ((0, 0), (2, 2)), Steps()),
    ((1, 5, 4, 2), (3, 2, 2, 3), ((2, 0), (0, 1)), Steps()),
    ((2, 6, 7, 3), (3, 3, 3, 4), ((1, 1), (1, 1)), Steps(2)),
    ((2, 8, 7, 2), (3, 5, 2, 3), ((1, 1), (2, 2)), Steps(3)),
    ((2, 6, 7, 3), (1, 1, 3, 2), ((0, 0), (0, 0)), Steps(2)),
    ((1, 8, 9, 2), (3, 2, 2, 3), ((-1, 0), (0, 1)), Steps(2)),
    ((2, 4, 3, 2), (3, 3, 2, 3), ((1, 2), (1, 1)), Steps(images=2)),
    ((1, 7, 8, 2), (3, 2, 2, 3), ((2, 1), (0, 0)), Steps(kernel=2)),
    ((1, 7, 8, 2), (3, 2, 2, 3), ((2, 1), (0, -1)), Steps(2, 3, 2)),
]
AXES = [(0, None), (3, None), (None, 0), (None, 2), (0, 0), (1, 4)]


def stock(x, kernel, padding, steps):
    s, d, e = steps
    return lax.conv_general_dilated(
        x, kernel, (s, s), padding, (d, d), (e, e), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def assert_equal_trees(ours, theirs):
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-11)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("x_shape", "kernel_shape", "padding", "steps"), SHAPES)
def test_values_and_derivatives_are_those_of_the_stock_convolution(
    x_shape, kernel_shape, padding, steps
):
    rng = np.random.default_rng(0)
    x, kernel, x_tangent, kernel_tangent = (
        rng.normal(size=shape) for shape in (x_shape, kernel_shape, x_shape, kernel_shape)
    )

    def scalar(convolve):
        return lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel, padding, steps)) ** 2)

    primals, tangents = (x, kernel), (x_tangent, kernel_tangent)
    for derivative in (
        lambda f: f(*primals),
        lambda f: jax.jvp(f, primals, tangents),
        lambda f: jax.grad(f, (0, 1))(*primals),
        lambda f: jax.jvp(jax.grad(f, (0, 1)), primals, tangents),
        lambda f: jax.grad(lambda *p: jax.jvp(f, p, tangents)[1], (0, 1))(*primals),
    ):
        assert_equal_trees(derivative(scalar(bilinear_convolution)), derivative(scalar(stock)))


@pytest.mark.parametrize("steps", [Steps(), Steps(2)])
@pytest.mark.parametrize("axes", AXES)
def test_vmap_of_value_and_gradient(axes, steps):
    rng = np.random.default_rng(0)
    shapes = ((2, 5, 6, 3), (3, 3, 3, 4))
    operands = [
        rng.normal(size=shape if axis is None else np.insert(shape, axis, 3))
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    padding = ((1, 1), (1, 1))

    def scalar(convolve):
        return lambda x, kernel: jnp.sum(convolve(x, kernel, padding, steps) ** 3)

    for transform in (lambda f: f, lambda f: jax.grad(f, (0, 1))):
        ours = jax.vmap(transform(scalar(bilinear_convolution)), axes)(*operands)
        theirs = jax.vmap(transform(scalar(stock)), axes)(*operands)
        assert_equal_trees(ours, theirs)

    def total(convolve):
        return lambda x, kernel: jnp.sum(jax.vmap(scalar(convolve), axes)(x, kernel))

    gradients = (jax.grad(total(convolve), (0, 1)) for convolve in (bilinear_convolution, stock))
    assert_equal_trees(*(gradient(*operands) for gradient in gradients))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("axes", [None, (0, None), (None, 0), (0, 0)])
def test_every_convolution_in_a_loop_has_the_fast_form(axes, stride):
    def cost(x, kernel):
        return jnp.sum(convolution(x, kernel, stride) ** 2)

    gradient = jax.value_and_grad(cost, (0, 1))
    shapes = [(2, 7, 8, 3), (3, 3, 3, 4)]
    if axes is not None:
        gradient = jax.vmap(gradient, axes)
        shapes = [
            shape if axis is None else (3, *shape) for shape, axis in zip(shapes, axes, strict=True)
        ]

    def loop(x, kernel):
        return lax.scan(lambda carry, _: (carry, gradient(x, kernel)), 0.0, length=2)[1]

    lowered = jax.jit(loop).lower(*(jax.ShapeDtypeStruct(shape, float) for shape in shapes))
    forms = re.findall(r"dim_numbers = (.*?), window", lowered.as_text())
    assert len(forms) == 3
    assert set(forms) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 8)), (2, (4, 4)), (3, (3, 3))])
def test_padding_is_half_the_kernel_at_any_stride(stride, size):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 7, 8, 3)), rng.normal(size=(3, 3, 3, 2))
    y, seen = convolution(x, kernel, stride), patches(x, (3, 3), stride)
    assert y.shape == (2, *size, 2)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, column in np.ndindex(*size):
        window = padded[:, row * stride : row * stride + 3, column * stride : column * stride + 3]
        np.testing.assert_array_equal(seen[:, row, column], window.reshape(2, -1))
        np.testing.assert_allclose(
            y[:, row, column], np.einsum("bhwi,hwio->bo", window, kernel), rtol=1e-12, atol=1e-12
        )
