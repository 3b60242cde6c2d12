"""Flows as systems: their log-determinant, gradients, draws, and what they refuse."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.costs import make_cost, negative_log_likelihood
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution, Variables
from tests.conftest import apply, random_images, random_variables, to_float64
from tests.quick import quick_jit

FLOW = FlowConfig(
    hidden=(5,),
    horizon=1.3,
    solver="rk4",
    steps=3,
    image_shape=(1, 1, 3),
    pixel_mean=(0.5, 0.0, -1.0),
    pixel_deviation=(2.0, 0.5, 1.5),
)
ADAPTIVE = replace(FLOW, solver="dopri5", steps=None, rtol=1e-9, atol=1e-9)
ESTIMATED = replace(FLOW, trace="rademacher")
EXACTLY = Execution(precision="float64")


@pytest.mark.parametrize("architecture", [replace(FLOW, steps=40), ADAPTIVE], ids=["rk4", "dopri5"])
def test_the_log_determinant_is_that_of_the_whole_map(architecture):
    """Normalisation included: that of the Jacobian dz/d(data)."""
    images = random_images(architecture, batch=4)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(architecture))

        def outputs(images):
            return apply(architecture, variables, images, execution=EXACTLY)[0][-1]

        def z(data):
            return outputs(data.reshape(1, 1, 1, 3))[0, :-1]

        got = np.asarray(quick_jit(outputs)(images))
        jacobians = quick_jit(jax.vmap(jax.jacrev(z)))(jnp.float64(images.reshape(4, 3)))
        signs, wanted = np.linalg.slogdet(np.asarray(jacobians))
    assert (signs == 1).all()
    np.testing.assert_allclose(got[:, -1], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "architecture",
    [FLOW, ESTIMATED, ADAPTIVE, replace(ADAPTIVE, solver="tsit5", adjoint="backsolve")],
    ids=["rk4", "rademacher", "direct", "backsolve"],
)
def test_gradients_are_finite_differences(architecture):
    images = random_images(architecture, batch=3)
    with jax.enable_x64(True):
        params = to_float64(random_variables(architecture).params)
        stats = architecture.statistics(jax.random.key(4))

        def cost(params):
            variables = Variables(params, stats)
            outputs, _ = apply(architecture, variables, images, train=True, execution=EXACTLY)
            return jnp.mean(negative_log_likelihood.value(outputs[-1], None))

        value, gradient = quick_jit(cost), quick_jit(jax.grad(cost))(params)
        rng = np.random.default_rng(2)
        ray = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)

        def moved(h):
            return value(jax.tree.map(lambda leaf, d: leaf + h * d, params, ray))

        wanted = float(moved(1e-4) - moved(-1e-4)) / 2e-4
        got = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradient, ray)))
    assert abs(wanted) > 1e-2
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_training_pass_draws_what_its_statistics_say():
    images = random_images(ESTIMATED)
    variables = random_variables(ESTIMATED)
    stats = ESTIMATED.statistics(jax.random.key(0))
    assert stats["flow"]["draws"].shape == (3,)
    variables = variables._replace(batch_stats=stats)
    first, after = apply(ESTIMATED, variables, images, train=True)
    again, _ = apply(ESTIMATED, variables, images, train=True)
    second, _ = apply(ESTIMATED, variables._replace(batch_stats=after), images, train=True)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(after["flow"]["draws"], stats["flow"]["draws"] + 1)
    np.testing.assert_array_equal(first[..., :-1], second[..., :-1])
    assert np.abs(first - second)[..., -1].min() > 1e-4
    exact, unchanged = apply(ESTIMATED, variables, images)
    np.testing.assert_array_equal(unchanged["flow"]["draws"], stats["flow"]["draws"])
    plain, _ = apply(FLOW, variables._replace(batch_stats={}), images)
    np.testing.assert_array_equal(exact, plain)


def test_devices_draw_differently():
    images = np.broadcast_to(random_images(ESTIMATED, batch=2), (2, 2, 1, 1, 3))
    variables = random_variables(ESTIMATED)
    variables = variables._replace(batch_stats=ESTIMATED.statistics(jax.random.key(0)))

    def outputs(images):
        system = ESTIMATED.system(axis_name="batch")
        return rollout(system, variables, system.initial_state(images), train=True).state

    first, second = jax.vmap(outputs, axis_name="batch")(images)
    np.testing.assert_array_equal(first[:, :-1], second[:, :-1])
    assert np.abs(first - second)[:, -1].min() > 1e-4


def test_half_precision_reads_its_data_in_it_and_computes_in_float32():
    images, variables = random_images(FLOW), random_variables(FLOW)
    half, _ = apply(FLOW, variables, images, execution=Execution(precision="bfloat16"))
    whole, _ = apply(FLOW, variables, images)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - whole).max() < 0.05


def test_the_curvature_of_the_likelihood_is_its_hessian_but_for_the_flow():
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4,)))
    cost = negative_log_likelihood
    hessian = jax.hessian(lambda y: cost.value(y, None))(outputs)
    columns = cost.exact(outputs)
    assert columns.shape == (3, 4)
    np.testing.assert_allclose(columns.T @ columns, hessian, atol=1e-6)
    drawn = cost.sampled(jax.random.key(0), jnp.zeros((50_000, 4)))
    np.testing.assert_allclose(drawn.T @ drawn / 50_000, hessian, atol=0.03)


def test_labels_of_a_likelihood_are_not_smoothed():
    with pytest.raises(ValueError, match="label_smoothing is 0.1, but a likelihood has no labels"):
        make_cost("negative_log_likelihood", 0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0}, "horizon is 0.0, but must be positive."),
        ({"horizon": float("nan")}, "horizon is (nan,), but must be finite numbers."),
        ({"steps": None}, "solver is 'rk4', which needs steps: how many equal steps it takes."),
        ({"solver": "heun"}, "solver is 'heun', but must be one of euler, midpoint, rk4, dopri5"),
        ({"rtol": 1e-3}, "rtol is 0.001, but belongs to the solvers dopri5 and tsit5"),
        ({"trace": "cauchy"}, "trace is 'cauchy', but must be one of exact, rademacher, gaussian."),
        ({"hidden": (0,)}, "hidden is (0,), but must be whole numbers of at least 1."),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, tanh, sigmoid."),
    ],
)
def test_impossible_flows_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(FLOW, **fields)
    assert message in str(refusal.value)
