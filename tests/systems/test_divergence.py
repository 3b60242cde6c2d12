"""The trace of a Jacobian, exact and estimated, against the whole Jacobian in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.divergence import directions, with_divergence
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
            vectors = directions("exact", None, x)
            slopes = with_divergence(field)((params, vectors), time, state)
            jacobians = jax.vmap(jax.jacfwd(lambda x: field(params, time, x)))(x)
            return slopes, field(params, time, x), jacobians

        slopes, plain, jacobians = map(np.asarray, both(x))
    np.testing.assert_array_equal(slopes[:, :-1], plain)
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
        linear = with_divergence(lambda theta, time, x: x @ theta)
        params = jnp.asarray(matrix), vectors
        estimates = np.asarray(linear(params, jnp.zeros(()), state)[:, -1])
    error = np.sqrt(variance / samples)
    assert abs(estimates.mean() - np.trace(matrix)) < 4 * error
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.05)
    assert np.abs(vectors).max() == 1 or trace == "gaussian"


def test_impossible_directions_are_refused():
    with pytest.raises(ValueError, match="trace is 'cauchy', but must be one of exact, rademacher"):
        directions("cauchy", None, jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="trace is 'gaussian', which needs a key to draw"):
        directions("gaussian", None, jnp.zeros((2, 2)))
