"""Adaptive solves and their gradients, against closed forms, finite differences and each other."""

import builtins
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems import layers
from ocresnet.systems.adaptive_gradients import adjoint_solution, solve
from ocresnet.systems.adaptive_solves import AdaptiveSolver, solution, taken_steps
from ocresnet.systems.explicit_steps import step
from ocresnet.systems.taps import Tap, merge
from tests.quick import quick_jit
from tests.systems.test_explicit_steps import START, A, exact, linear

EXACT = AdaptiveSolver(rtol=1e-10, atol=1e-10, max_steps=200)
ADJOINTS = ("direct", "backsolve")
METHODS = ("dopri5", "tsit5")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def bent(params, time, x):
    """A nonlinear field of states [batch, 2] that knows the time."""
    hidden = jnp.tanh(x @ params["W"] + time * params["b"])
    return hidden @ params["V"]


def setting():
    rng = np.random.default_rng(0)
    shapes = {"W": (2, 3), "b": (3,), "V": (3, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    return params, jnp.asarray(rng.normal(size=(3, 2)))


def cost(settings, params, times, x):
    end = solve(settings, bent, params, *times, x)
    return jnp.sum(jnp.sin(end + jnp.arange(2.0)))


TIMES = jnp.array([0.2, 1.1])


@pytest.mark.parametrize("method", METHODS)
def test_solves_are_exact_to_their_tolerances(method):
    params = {"A": jnp.asarray(A), "b": jnp.asarray(A[:, 0])}
    start = {"first": jnp.asarray(START[:1]), "rest": jnp.asarray(START[1:])}
    for tolerance in (1e-4, 1e-9):
        settings = AdaptiveSolver(method, rtol=tolerance, atol=tolerance)
        solved = quick_jit(lambda s, own=settings: solution(own, linear, params, 0.0, 1.5, s))(
            start
        )
        assert solved.complete
        got = np.concatenate([solved.state["first"], solved.state["rest"]])
        error = np.abs(got - exact(1.5)).max()
        assert tolerance * 1e-4 < error < tolerance * 10
    there_and_back = quick_jit(lambda s: solve(EXACT, linear, params, 1.5, 0.0, s))(solved.state)
    np.testing.assert_allclose(there_and_back["rest"], START[1:], rtol=1e-7)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_gradients_are_finite_differences(adjoint):
    params, x = setting()
    settings = replace(EXACT, adjoint=adjoint)

    @quick_jit
    def value(params, times, x):
        return cost(settings, params, times, x)

    gradient = quick_jit(jax.grad(lambda *args: cost(settings, *args), (0, 1, 2)))(params, TIMES, x)
    rng = np.random.default_rng(1)
    for part in range(3):
        here = [params, TIMES, x]
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), here[part])

        def moved(h, part=part, here=here, direction=direction):
            there = list(here)
            there[part] = jax.tree.map(lambda a, d: a + h * d, here[part], direction)
            return value(*there)

        wanted = (moved(1e-4) - moved(-1e-4)) / 2e-4
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient[part], direction)
        assert sum(jax.tree.leaves(products)) == pytest.approx(float(wanted), rel=1e-6, abs=1e-8)
        assert abs(wanted) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_direct_and_backsolve_agree_to_tolerance_and_direct_is_that_of_its_steps(method):
    params, x = setting()
    differences = []
    for tolerance in (1e-4, 1e-8):
        both = []
        for adjoint in ADJOINTS:
            settings = AdaptiveSolver(method, tolerance, tolerance, 200, adjoint)
            gradient = jax.grad(lambda params, x, own=settings: cost(own, params, TIMES, x))
            both.append(quick_jit(gradient)(params, x))
        differences.append(
            max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, both), strict=True))
        )
    # Both are right to their tolerance, with other errors.
    assert 1e-6 < differences[0] < 1e-2
    assert differences[1] < 1e-6


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_solve_that_reaches_its_limit_has_no_result_and_no_gradient(adjoint):
    params, x = setting()
    settings = AdaptiveSolver(rtol=1e-8, atol=1e-8, max_steps=3, adjoint=adjoint)
    solved = quick_jit(lambda params, x: solution(settings, bent, params, 0.0, 1.0, x))(params, x)
    assert not solved.complete and solved.steps == 3
    np.testing.assert_array_equal(solved.state, np.inf)
    # Not NaN: XLA's ReLU on CPU would make a zero of it.
    assert not np.isfinite(jnp.sum(jax.nn.relu(solved.state)))
    value, gradient = quick_jit(
        jax.value_and_grad(lambda params: jnp.sum(solve(settings, bent, params, 0.0, 1.0, x)))
    )(params)
    assert not np.isfinite(value)
    assert not any(np.isfinite(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_what_is_not_finite_has_no_result():
    params, x = setting()
    solved = quick_jit(lambda x: solution(EXACT, bent, params, 0.0, 1.0, x))(x.at[0, 0].set(np.nan))
    assert not solved.complete
    np.testing.assert_array_equal(solved.state, np.inf)


def test_an_adjoint_that_reaches_its_limit_has_no_result():
    """x' = 8 x is easy forward to this absolute tolerance, and hard with a large adjoint."""
    settings = AdaptiveSolver(rtol=1e-9, atol=1e-2, max_steps=12, adjoint="backsolve")
    args = settings, lambda params, time, x: params * x, jnp.asarray(2.0), 0.0, 1.0
    start = jnp.full(3, 1e-3)
    assert quick_jit(lambda: solution(*args, start))().complete
    solved = quick_jit(lambda: adjoint_solution(*args, start, jnp.full(3, 1e6)))()
    assert not solved.complete
    gradient = quick_jit(jax.grad(lambda x: 1e6 * jnp.sum(solve(*args, x))))(start)
    assert not np.isfinite(gradient).any()


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_counted(method):
    calls = []

    def field(params, time, x):
        noted = jax.pure_callback(
            lambda time, zeros: (calls.append(time), zeros)[1], jax.typeof(x), time, 0 * x
        )
        return -2 * x * jnp.sin(3 * x) + noted

    settings = AdaptiveSolver(method, rtol=1e-4, atol=1e-4)
    start = 3 * jnp.arange(4.0)
    taken = quick_jit(lambda x: taken_steps(settings, field, {}, x))(start)
    calls.clear()
    solved = quick_jit(lambda x: solution(settings, field, {}, 0.0, 1.0, x))(start)
    jax.block_until_ready(solved)
    assert solved.complete and solved.steps > taken.steps  # some were rejected
    again = calls.count(0.0) - 1  # after a first step that was
    assert solved.evaluations == len(calls) - again


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_taps_record_what_the_gradient_is_made_of_and_leave_it_as_it_is(adjoint):
    params, x = setting()
    settings = AdaptiveSolver(rtol=1e-6, atol=1e-6, adjoint=adjoint)

    def field(params, time, x):
        return layers.dense(params["layer"], jnp.tanh(x))

    def outer(arrays, reading):
        rows, delta = reading.rows()
        return jnp.einsum("bli,blo->io", rows, delta)

    own = {"layer": {"kernel": params["W"] @ params["V"]}}

    def gradient(params):
        return jax.grad(lambda p: jnp.sum(solve(settings, field, p, 0.0, 1.0, x) ** 2))(params)

    plain = quick_jit(gradient)(own)
    tapped = quick_jit(
        lambda params: gradient(merge(params, {"layer": Tap(jnp.zeros((2, 2)), outer)}))
    )(own)
    kernel = plain["layer"]["kernel"]
    # But for rounding: it is another program.
    np.testing.assert_allclose(tapped["layer"]["kernel"], kernel, rtol=1e-13)
    np.testing.assert_allclose(tapped["layer"]["tap"].arrays, kernel, rtol=1e-10)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_states_and_gradients_keep_their_types(adjoint):
    single = jax.tree.map(lambda leaf: leaf.astype("float32"), setting())
    settings = AdaptiveSolver(adjoint=adjoint)

    def field(params, time, x):
        return bent(params, time.astype("float32"), x)

    def end(params, x):
        return solve(settings, field, params, 0.0, 1.0, x)

    assert jax.eval_shape(end, *single).dtype == np.float32
    gradient = jax.eval_shape(jax.grad(lambda *given: jnp.sum(end(*given)), (0, 1)), *single)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}


def test_solves_are_mapped_over_groups_and_devices():
    params, x = setting()
    settings = replace(EXACT, rtol=1e-6)
    groups = jnp.stack([x, 10 * x])

    def gradient(x):
        return jax.grad(lambda params: cost(settings, params, TIMES, x))(params)["W"]

    alone = [quick_jit(gradient)(own) for own in groups]
    np.testing.assert_allclose(quick_jit(jax.vmap(gradient))(groups), alone, rtol=1e-9)
    mapped = jax.pmap(gradient, axis_name="batch", devices=jax.devices()[:2])(groups)
    np.testing.assert_allclose(mapped, alone, rtol=1e-9)


def test_without_diffrax_one_sentence_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "diffrax":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"need diffrax: install 'ocresnet\[ode\]', or choose"):
        solve(EXACT, bent, *setting()[:1], 0.0, 1.0, setting()[1])
    step("euler", bent, setting()[0], jnp.zeros(()), 0.1, setting()[1])
