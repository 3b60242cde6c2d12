"""The horizon's slope against autodiff and finite differences; its rules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import lambertw

from ocresnet.continuous.horizon import free_horizon, horizon_slope
from ocresnet.systems.adaptive_gradients import solve
from ocresnet.systems.adaptive_solves import AdaptiveSolver
from tests.quick import quick_jit
from tests.systems.test_adaptive_solves import bent, setting

EXACT = AdaptiveSolver(rtol=1e-11, atol=1e-11, max_steps=300)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def loss(state):
    """The mean over a batch of states [batch, 2]."""
    return jnp.mean(jnp.sum(jnp.sin(state + jnp.arange(2.0)), axis=-1))


def test_the_slope_is_the_derivative_of_the_loss():
    params, x = setting()
    horizon = 0.8

    def end(horizon):
        return solve(EXACT, bent, params, 0.0, horizon, x)

    of, derivative = (
        quick_jit(function)
        for function in (lambda t: loss(end(t)), jax.grad(lambda t: loss(end(t))))
    )
    state = quick_jit(end)(horizon)
    slope = horizon_slope(bent, params, horizon, state, jax.grad(loss)(state))
    assert abs(slope) > 1e-2
    difference = (of(horizon + 1e-4) - of(horizon - 1e-4)) / 2e-4
    np.testing.assert_allclose(slope, difference, rtol=1e-7)
    np.testing.assert_allclose(slope, derivative(horizon), rtol=1e-6)


# x' = -x from x_0 with the loss x(T)^2 / 2:  s = -x_0^2 exp(-2 T), so that s + c T = 0 where
# 2 T exp(2 T) = 2 x_0^2 / c.
START, PRICE = 1.5, 0.2
BEST = float(lambertw(2 * START**2 / PRICE).real) / 2


def shrinking(params, time, x):
    return -x


def descend(rule, horizon, steps):
    def body(carry, _):
        horizon, state = carry
        x = START * jnp.exp(-horizon)
        slope = horizon_slope(shrinking, {}, horizon, x[None], x[None])
        change, state = rule.update(slope, state, horizon)
        horizon = optax.apply_updates(horizon, change)
        return (horizon, state), horizon

    start = jnp.asarray(horizon), rule.init(jnp.asarray(horizon))
    return np.asarray(quick_jit(lambda: jax.lax.scan(body, start, length=steps)[1])())


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("horizon", [0.2, 3.0])
def test_rules_find_the_horizon_of_the_closed_form(order, horizon):
    assert 1.0 < BEST < 1.5
    rule = free_horizon(0.2, order=order, price=PRICE, decay=0.5)
    path = descend(rule, horizon, 400)
    assert path[-1] == pytest.approx(BEST, abs=1e-6)
    assert abs(path[0] - BEST) < abs(horizon - BEST)


def test_the_second_order_is_the_quicker_one_where_slopes_are_small():
    steps = {}
    for order in ("first", "second"):
        path = descend(free_horizon(0.1, order=order, price=PRICE, decay=0.5), 3.0, 400)
        steps[order] = int(np.argmax(np.abs(path - BEST) < 0.1))
    assert 5 * steps["second"] < 2 * steps["first"]


def test_the_second_order_rule_is_the_formula():
    rule = free_horizon(0.3, price=0.1, decay=0.9, minimum=0.2)
    horizon, state = jnp.asarray(2.0), rule.init(jnp.asarray(2.0))
    means = np.zeros(2)
    for step, (slope, change) in enumerate([(0.7, 0.0), (-0.4, 0.25), (1.3, -0.1)], start=1):
        means = 0.9 * means + 0.1 * np.array([slope + 0.1 * 2.0, slope**2 + 0.1])
        numerator, denominator = means / (1 - 0.9**step)
        got, state = rule.update(jnp.asarray(slope), state, horizon, change=change)
        assert got == pytest.approx(-0.3 * (numerator + slope * change) / denominator, rel=1e-12)
    got, _ = rule.update(jnp.asarray(0.5), state, jnp.asarray(0.25))
    assert 0.25 + got == pytest.approx(0.2)  # the minimum


def test_the_horizon_waits_and_the_means_go_on():
    rule = free_horizon(0.1, every=3)
    state = rule.init(jnp.asarray(1.0))
    changes = []
    for _ in range(6):
        change, state = rule.update(jnp.asarray(0.5), state, jnp.asarray(1.0))
        changes.append(float(change))
    assert [change != 0 for change in changes] == [False, False, True] * 2
    assert state.steps == 6


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0, but must be a positive number."),
        ({"learning_rate": float("inf")}, "learning_rate is inf, but must be a positive number."),
        ({"order": "third"}, "order is 'third', but must be one of first, second."),
        ({"price": -1.0}, "price is -1.0, but must be a number, at least 0."),
        ({"decay": 1.0}, "decay is 1.0, but must be a number in [0, 1)."),
        ({"minimum": 0.0}, "minimum is 0.0, but must be a positive number."),
        ({"every": 0}, "every is 0, but must be a whole number of at least 1."),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError) as refusal:
        free_horizon(**{"learning_rate": 0.1, **choices})
    assert str(refusal.value) == message


def test_a_rule_without_its_horizon_is_refused():
    rule = free_horizon(0.1)
    with pytest.raises(ValueError, match="the rule needs the horizon: call update"):
        rule.update(jnp.asarray(1.0), rule.init(jnp.asarray(1.0)))
