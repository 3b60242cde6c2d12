"""The second-order adjoint against the matrices it stands for: by their ODEs, and by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from ocresnet.continuous.second_order import second_order_adjoint
from ocresnet.systems import explicit_steps
from tests.quick import quick_jit

HORIZON, STEPS = 0.9, 40


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def field(params, time, x):
    """Of a state of two parts, so that trees are seen."""
    u, v = x["u"], x["v"]
    inner = jnp.tanh(params["W"] @ jnp.concatenate([u, v]) + time * params["b"])
    return {"u": inner[:2] * jnp.cos(time), "v": inner[2:] - 0.3 * u[:1]}


def setting():
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(3, 3)), "b": rng.normal(size=3)}
    x = {"u": rng.normal(size=2), "v": rng.normal(size=1)}
    return jax.tree.map(
        jnp.asarray, (params, x, {"u": rng.normal(size=(2, 2)), "v": np.ones((2, 1))})
    )


def solve(field, params, x, start, length):
    h = length / STEPS

    def step(x, index):
        return explicit_steps.step("rk4", field, params, start + index * h, h, x), None

    return jax.lax.scan(step, x, jnp.arange(STEPS))[0]


def rows(tree):
    """[factors, all entries]."""
    return jax.vmap(lambda one: ravel_pytree(one)[0])(tree)


def dense_odes(params, x_end, factors):
    """Q_x, Q_u of the first factor, and Q_xx, Q_xu, Q_uu of all, by the matrices' own ODEs."""
    theta, to_params = ravel_pytree(params)
    x_end, to_state = ravel_pytree(x_end)

    def slope(theta, time, x):
        return ravel_pytree(field(to_params(theta), time, to_state(x)))[0]

    def back(theta, elapsed, state):
        x, Q_x, _, Q_xx, Q_xu, _ = state
        time = HORIZON - elapsed
        F_u, F_x = jax.jacfwd(slope, (0, 2))(theta, time, x)
        return (
            -slope(theta, time, x),
            F_x.T @ Q_x,
            F_u.T @ Q_x,
            F_x.T @ Q_xx + Q_xx @ F_x,
            F_x.T @ Q_xu + Q_xx @ F_u,
            F_u.T @ Q_xu + Q_xu.T @ F_u,
        )

    n, m = x_end.size, theta.size
    start = (
        x_end,
        factors[0],
        jnp.zeros(m),
        factors.T @ factors,
        jnp.zeros((n, m)),
        jnp.zeros((m, m)),
    )
    return solve(back, theta, start, 0.0, HORIZON)[1:]


def test_factors_are_those_of_the_matrices():
    params, x, terminal = setting()

    def end(params, x):
        return solve(field, params, x, 0.0, HORIZON)

    x_end = quick_jit(end)(params, x)
    Y = rows(terminal)
    states, controls = quick_jit(
        lambda: second_order_adjoint(field, params, HORIZON, x_end, terminal, steps=STEPS)
    )()
    r, p = rows(states), rows(controls)
    got = r[0], p[0], r.T @ r, r.T @ p, p.T @ p
    for own, wanted in zip(got, quick_jit(dense_odes)(params, x_end, Y), strict=True):
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-7)

    # By autodiff through a fine solve: J^T of the factors.
    by_u, by_x = quick_jit(jax.jacrev(lambda *given: ravel_pytree(end(*given))[0], (0, 1)))(
        params, x
    )
    J_u, J_x = rows(by_u), rows(by_x)
    np.testing.assert_allclose(p, Y @ J_u, rtol=0, atol=1e-7)
    np.testing.assert_allclose(r, Y @ J_x, rtol=0, atol=1e-7)


def test_its_error_falls_with_the_order_of_its_solver():
    params, x, terminal = setting()
    x_end = quick_jit(lambda: solve(field, params, x, 0.0, HORIZON))()

    def controls(steps, method):
        found = quick_jit(
            lambda: second_order_adjoint(
                field, params, HORIZON, x_end, terminal, method=method, steps=steps
            )
        )()
        return rows(found.controls)

    exact = controls(60, "rk4")
    for method, order in (("euler", 1), ("rk4", 4)):
        coarse, fine = (np.abs(controls(steps, method) - exact).max() for steps in (4, 8))
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.5)


def test_no_steps_are_refused():
    params, x, terminal = setting()
    with pytest.raises(ValueError, match="steps is 0, but must be a whole number of at least 1"):
        second_order_adjoint(field, params, 1.0, x, terminal, steps=0)
