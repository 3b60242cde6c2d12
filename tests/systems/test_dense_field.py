"""The trace of a Jacobian, exact and estimated, against the whole Jacobian in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.dense_field import dense_field, directions, field_with_growth
from ocresnet.systems.flow import FlowConfig
from tests.conftest import random_variables, to_float64
from tests.quick import quick_jit

FLOW = FlowConfig(hidden=(5, 4), solver="rk4", steps=2, image_shape=(1, 1, 3))


def test_the_exact_trace_is_that_of_the_whole_jacobian():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params = to_float64(random_variables(FLOW).params)["flow"]
        x, time, field = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(0.7), FLOW.field()

        @quick_jit
        def both(x):
            state = jnp.concatenate([x, jnp.zeros((6, 1))], axis=-1)
            slopes = field_with_growth(2, "tanh")((params, None), time, state)
            jacobians = jax.vmap(jax.jacrev(lambda x: field(params, time, x[None])[0]))(x)
            return slopes, field(params, time, x), jacobians

        slopes, plain, jacobians = map(np.asarray, both(x))
    np.testing.assert_allclose(slopes[:, :-1], plain, rtol=1e-12)
    assert np.abs(slopes[:, -1]).min() > 1e-3
    np.testing.assert_allclose(slopes[:, -1], np.trace(jacobians, axis1=1, axis2=2), rtol=1e-12)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_estimates_have_the_trace_for_their_mean_and_their_known_variance(trace):
    """Of v^T A v, with S the symmetric part of A: 2 |S|^2 for normal numbers; for signs without
    the diagonal of S, which they know exactly."""
    samples, features = 40_000, 4
    matrix = np.random.default_rng(1).normal(size=(features, features))
    symmetric = (matrix + matrix.T) / 2
    if trace == "rademacher":
        symmetric = symmetric - np.diag(np.diag(symmetric))
    variance = 2 * np.sum(symmetric**2)
    with jax.enable_x64(True):
        state = jnp.zeros((samples, features + 1))
        vectors = directions(trace, jax.random.key(3), state[:, :-1])
        theta = {"layer_1": {"kernel": jnp.pad(jnp.asarray(matrix), ((0, 2), (0, 0)))}}
        linear = field_with_growth(0, "tanh")
        estimates = np.asarray(linear((theta, vectors), jnp.zeros(()), state)[:, -1])
    error = np.sqrt(variance / samples)
    assert abs(estimates.mean() - np.trace(matrix)) < 4 * error
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.05)
    assert np.abs(vectors).max() == 1 or trace == "gaussian"


def test_impossible_directions_are_refused():
    with pytest.raises(ValueError, match="trace is 'cauchy', but must be one of exact, rademacher"):
        directions("cauchy", None, jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="trace is 'gaussian', which needs a key to draw"):
        directions("gaussian", None, jnp.zeros((2, 2)))


def test_the_field_is_its_formula():
    rng = np.random.default_rng(4)
    x, time = rng.normal(size=(5, 3)).astype(np.float32), 0.3
    params = random_variables(FLOW).params["flow"]
    z = np.float64(x)
    for index in (1, 2, 3):
        seen = np.broadcast_to([time, 1.0], (5, 2))
        z = np.concatenate([z, seen], -1) @ np.float64(params[f"layer_{index}"]["kernel"])
        z = z if index == 3 else np.tanh(z)
    got = dense_field(2, "tanh")(params, jnp.asarray(time), jnp.asarray(x))
    np.testing.assert_allclose(got, z, rtol=1e-4, atol=1e-5)
