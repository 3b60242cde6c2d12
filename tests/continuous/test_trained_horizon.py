"""A horizon among the parameters: its gradient, who moves it, and what becomes of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.continuous.evaluations import function_evaluations
from ocresnet.continuous.horizon import free_horizon, horizon_slope
from ocresnet.continuous.snopt import scale_by_snopt
from ocresnet.continuous.trained_horizon import fix_horizon, free_segments, with_horizon_rule
from ocresnet.problem import Problem, objective
from ocresnet.stage_cost.pruning import prune
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.network import Network
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import SGD, AdamW, OCNOpt, ScheduleFreeAdamW, SNOpt
from ocresnet.training.sweep import sweep
from tests.conftest import apply, random_images, random_network, random_variables, to_float64
from tests.quick import quick_jit

FREE = NeuralODEConfig(
    width=3,
    hidden=2,
    horizon=0.8,
    free_horizon=True,
    solver="rk4",
    steps=20,
    classes=3,
    image_shape=(2, 1, 1),
)
DIRECT = replace(FREE, solver="dopri5", steps=None, rtol=1e-9, atol=1e-9, exits="none")
LABELS = jnp.array([0, 1, 2, 1])
HORIZON = 1.3


def setting(architecture):
    params = to_float64(random_variables(architecture)).params
    params = {**params, "ode": {**params["ode"], "horizon": jnp.asarray(HORIZON)}}
    return params, (jnp.asarray(random_images(architecture, batch=4), "float64"), LABELS)


@pytest.mark.parametrize("architecture", [FREE, DIRECT, replace(DIRECT, adjoint="backsolve")])
def test_its_gradient_is_the_slope_at_the_end(architecture):
    """dL/dT = Phi_x F(T, x(T)), and the difference quotient."""
    with jax.enable_x64(True):
        problem = Problem(architecture.system(execution=Execution(precision="float64")))
        params, batch = setting(architecture)

        def loss(params):
            return objective(problem, params, {}, *batch)

        value, gradient = quick_jit(loss), quick_jit(jax.grad(loss))(params)
        got = gradient["ode"]["horizon"]

        def moved(h):
            return value({**params, "ode": {**params["ode"], "horizon": HORIZON + h}})

        np.testing.assert_allclose(got, (moved(1e-4) - moved(-1e-4)) / 2e-4, rtol=1e-6)
        assert abs(got) > 1e-3

        system = problem.system
        ode, head = (
            replace(system, segments=part) for part in (system.segments[:-1], system.segments[-1:])
        )

        def last(x):
            logits = rollout(head, variables, x, train=False).state
            costs = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
            return jnp.mean(costs)

        variables = random_variables(architecture)._replace(params=params)
        x = quick_jit(
            lambda: rollout(ode, variables, system.initial_state(batch[0]), train=False).state
        )()
        slope = horizon_slope(
            architecture.field(), params["ode"]["residual"], HORIZON, x, jax.grad(last)(x)
        )
        np.testing.assert_allclose(got, slope, rtol=1e-5)


def test_the_rule_moves_it_and_the_optimizer_everything_else():
    """The optimizer sees no gradient of it; the rule is told what the optimizer's step predicts."""
    with jax.enable_x64(True):
        problem = Problem(FREE.system(execution=Execution(precision="float64")))
        params, batch = setting(FREE)
        gradient = quick_jit(jax.grad(lambda own: objective(problem, own, {}, *batch)))(params)
        rule = free_horizon(0.3, price=0.05, decay=0.0)
        own = optax.chain(optax.clip_by_global_norm(0.1), scale_by_snopt(problem), optax.scale(-1))
        tx = with_horizon_rule(own, rule, free_segments(problem.system))
        update = quick_jit(lambda: tx.update(gradient, tx.init(params), params, batch=batch)[0])
        got = update()
        zero = {**gradient, "ode": {**gradient["ode"], "horizon": jnp.zeros(())}}
        wanted = quick_jit(lambda: own.update(zero, own.init(params), params, batch=batch)[0])()
        change = optax.tree.vdot(zero, wanted)
        slope = gradient["ode"]["horizon"]
        moved = -0.3 * (slope + 0.05 * HORIZON + slope * change) / (slope**2 + 0.05)
        assert abs(change) > 1e-3 and abs(moved) > 1e-3
        np.testing.assert_allclose(got["ode"].pop("horizon"), moved, rtol=1e-9)
        wanted["ode"].pop("horizon")
        for ours, own in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, own, rtol=1e-9)


@pytest.mark.parametrize("architecture", [FREE, replace(DIRECT, rtol=1e-6, atol=1e-6)])
def test_a_fixed_one_is_the_same_network(architecture):
    network, images = random_network(architecture), random_images(architecture)
    ode = {**network.params["ode"], "horizon": np.float32(HORIZON)}
    network = Network(architecture, {**network.params, "ode": ode}, {})
    fixed = fix_horizon(network)
    assert fixed.architecture.horizon == pytest.approx(HORIZON)
    assert not fixed.architecture.free_horizon
    assert "horizon" not in fixed.params["ode"] and "horizon" in network.params["ode"]
    wanted, _ = apply(architecture, network.variables, images)
    got, _ = apply(fixed.architecture, fixed.variables, images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    at_start, _ = apply(replace(fixed.architecture, horizon=0.8), fixed.variables, images)
    assert np.abs(at_start[-1] - got[-1]).max() > 1e-2
    assert function_evaluations(network, images) == function_evaluations(fixed, images)
    if architecture is FREE:
        assert prune(fixed, 5).architecture.horizon == pytest.approx(HORIZON / 4)
        with pytest.raises(ValueError, match="the horizon .* is free, .*fix_horizon"):
            prune(network, 5)
    with pytest.raises(ValueError, match="this network has no free horizon"):
        fix_horizon(fixed)


def test_it_starts_at_the_architecture_s_horizon_and_stays_single_in_half_precision():
    variables = FREE.init(jax.random.key(0))
    assert variables.params["ode"]["horizon"] == np.float32(0.8)
    images = random_images(FREE)
    wanted, _ = apply(FREE, variables, images)
    got, _ = apply(FREE, variables, images, execution=Execution(precision="bfloat16"))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (OCNOpt(), "ocnopt's policy moves all parameters of a stage, and a free horizon"),
        (ScheduleFreeAdamW(), "schedule_free_adamw evaluates averages of the parameters"),
    ],
)
def test_who_cannot_leave_it_to_the_rule_is_refused(optimizer, message, toy_data):
    with pytest.raises(ValueError, match=message):
        train(FREE, optimizer, toy_data)


def train(architecture, optimizer, data):
    config = TrainingConfig(epochs=1, batch_size=16, optimizer=optimizer, stage_cost=0.0)
    architecture = replace(architecture, image_shape=(6, 6, 1), exits="none")
    return sweep(architecture, config, data, learning_rates=[0.1], weight_decays=[0.0], seeds=[0])


def test_settings_of_its_rule_need_a_free_horizon(toy_data):
    constant = replace(FREE, free_horizon=False)
    with pytest.raises(ValueError, match="horizon_every is 5, but this network has no free"):
        train(constant, SGD(horizon_every=5, schedule="constant"), toy_data)
    for fields, message in (
        ({"horizon_rate": 0.0}, "horizon_rate is 0.0, but must be a positive number"),
        ({"horizon_order": "third"}, "horizon_order is 'third', but must be one of first, second"),
        ({"horizon_price": -1.0}, "horizon_price is -1.0, but must be a number, at least 0"),
        ({"horizon_every": 0}, "horizon_every is 0, but must be a whole number, at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            AdamW(**fields)
    with pytest.raises(ValueError, match="free_horizon is 1, but must be True or False"):
        replace(FREE, free_horizon=1)
    with pytest.raises(ValueError, match="horizon is 0.05, but a free one must start at 0.1"):
        replace(FREE, horizon=0.05)


def test_snopt_of_a_run_is_refused_where_nothing_is_solved():
    architecture = MLPConfig(image_shape=(2, 2, 1))
    variables = random_variables(architecture)
    with pytest.raises(ValueError, match="SNOpt needs a differential equation, and this network"):
        SNOpt().check(architecture, Problem(architecture.system()), variables, 1, 16)
