"""Steps of explicit solvers against a linear equation's matrix exponential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import expm

from ocresnet.systems.explicit_steps import EVALUATIONS, step
from tests.quick import quick_jit

A = np.array([[-0.4, 1.3, 0.2], [-1.1, 0.3, 0.5], [0.1, -0.7, -0.2]])
START = np.array([1.0, -0.5, 0.8])
ORDERS = {"euler": 1, "midpoint": 2, "rk4": 4}


def linear(params, time, state):
    """x' = A x + b t, in two parts: the state is a tree."""
    x = jnp.concatenate([state["first"], state["rest"]])
    slope = params["A"] @ x + params["b"] * time
    return {"first": slope[:1], "rest": slope[1:]}


def exact(time):
    """Of x' = A x + b t, as a linear equation of (x, t, 1) that does not know the time."""
    whole = np.zeros((5, 5))
    whole[:3, :3], whole[:3, 3], whole[3, 4] = A, A[:, 0], 1.0
    return np.asarray(expm(whole * time) @ np.array([*START, 0.0, 1.0]))[:3]


def integrated(method, steps, horizon=1.5):
    h = horizon / steps
    params = {"A": jnp.asarray(A), "b": jnp.asarray(A[:, 0])}

    @quick_jit
    def run(state):
        def body(state, time):
            return step(method, linear, params, time, h, state), None

        return jax.lax.scan(body, state, h * jnp.arange(steps))[0]

    state = run({"first": jnp.asarray(START[:1]), "rest": jnp.asarray(START[1:])})
    return np.concatenate([state["first"], state["rest"]])


@pytest.mark.parametrize("method", ORDERS)
def test_errors_fall_with_the_order_of_the_method(method):
    with jax.enable_x64(True):
        wanted = exact(1.5)
        errors = [np.abs(integrated(method, steps) - wanted).max() for steps in (40, 80, 160)]
    orders = -np.diff(np.log2(errors))
    np.testing.assert_allclose(orders, ORDERS[method], atol=0.05)
    assert errors[-1] < {"euler": 1e-1, "midpoint": 1e-3, "rk4": 1e-8}[method]


@pytest.mark.parametrize("method", ORDERS)
def test_evaluations_are_counted(method):
    calls = []

    def field(params, time, x):
        calls.append(time)
        return -x

    step(method, field, {}, jnp.zeros(()), 0.1, jnp.ones(2))
    assert len(calls) == EVALUATIONS[method]
