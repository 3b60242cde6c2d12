"""The region that is measured: what a step has promised, and what caution makes of what it kept.

Notation: that of `ocresnet/control/region.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import ekfac, identity
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.region import GROWTH, MEASURED_EVERY, MOST_CAUTION
from ocresnet.problem import Problem, objective
from ocresnet.systems.resnet import ResNetConfig
from tests.control.networks import (
    BETA,
    Setting,
    flat,
    mlp_problem,
    random_batch,
    random_params,
    setting,
    updates,
)
from tests.quick import quick_jit


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def step_with(case: Setting, eta: float, caution: float, **choices: Any) -> tuple[Any, float]:
    """The first update from a given caution, and the caution after it."""
    optimizer = ocnopt(case.problem, eta, curvature=case.curvature, **choices)

    @quick_jit
    def update(params):
        first, *others = optimizer.init(params)
        state = first._replace(caution=jnp.float32(caution)), *others
        return optimizer.update(case.gradient, state, params, batch=case.batch)

    changes, state = update(case.params)
    return changes, float(state[0].caution)


@pytest.mark.parametrize(
    "form",
    [{}, {"feedback": "joint", "groups": 2}, {"feedback": "per_sample"}, {"rollout": "nonlinear"}],
    ids=["stacked", "joint", "per_sample", "nonlinear"],
)
def test_caution_divides_the_first_region(form):
    """Far from the lower bound it rules, and k times the size is beta times it."""
    case, far = setting("own heads"), {"lower_bound": -10.0, **form}
    got, _ = step_with(case, 2.0, 4.0, beta=BETA, region="measured", **far)
    wanted, _ = step_with(case, 2.0, 4.0, beta=4 * BETA, region="smaller", **far)
    np.testing.assert_allclose(flat(case, got), flat(case, wanted), rtol=0, atol=1e-13)
    without, _ = step_with(case, 2.0, 4.0, beta=BETA, region="smaller", **far)
    assert np.abs(flat(case, got) - flat(case, without)).max() > 1e-3


def test_a_step_promises_half_of_what_the_gradient_predicts():
    """q = g d + d (M / eta + beta c g g^T) d / 2, in full matrices."""
    case, eta = setting("own heads"), 3.0
    g, cost = (
        flat(case, case.gradient),
        float(objective(case.problem, case.params, {}, *case.batch)),
    )
    size = max(1, 1 / (2 * cost))
    H = np.asarray(jax.scipy.linalg.block_diag(*case.M)) / eta + BETA * size * np.outer(g, g)
    choices = {"beta": BETA, "curvature": case.curvature, "region": "measured", "rollout": "linear"}
    changes, info = updates(case, eta, **choices)
    d = flat(case, changes)
    np.testing.assert_allclose(H @ d, -g, rtol=0, atol=1e-12)
    np.testing.assert_allclose(g @ d + d @ H @ d / 2, info.predicted_change / 2, rtol=1e-6)


@pytest.mark.parametrize("eta", [1e-3, 1e4])
def test_caution_grows_where_less_is_kept(eta):
    """A short step keeps what it promises; in a long one the network bends."""
    case = setting("own heads")
    choices = {"beta": 0.05, "region": "measured"}
    changes, caution = step_with(case, eta, 2.0, **choices)
    moved = jax.tree.map(jnp.add, case.params, changes)
    before, after = (
        float(objective(case.problem, params, {}, *case.batch)) for params in (case.params, moved)
    )
    promised = flat(case, case.gradient) @ flat(case, changes) / 2
    kept = after - before <= promised
    assert kept == (eta < 1)
    np.testing.assert_allclose(caution, 2 / GROWTH if kept else 2 * GROWTH, rtol=1e-6)


def test_what_is_not_a_number_was_not_kept():
    case = setting("own heads")
    broken = case._replace(gradient=jax.tree.map(lambda leaf: leaf * jnp.nan, case.gradient))
    for before, after in ((2.0, 2 * GROWTH), (MOST_CAUTION, MOST_CAUTION)):
        _, caution = step_with(broken, 1.0, before, region="measured")
        np.testing.assert_allclose(caution, after, rtol=1e-6)


def test_every_fifth_step_is_compared():
    """Caution over a training, and what each comparison should have said of the same parameters."""
    problem = mlp_problem()
    batch = random_batch()
    choices = {"curvature": ekfac(factor_every=2, eigen_every=4), "region": "measured"}
    optimizer = ocnopt(problem, 30.0, beta=0.05, **choices)
    cost = quick_jit(lambda params: objective(problem, params, {}, *batch))

    @quick_jit
    def step(params, state):
        gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
        changes, state = optimizer.update(gradient, state, params, batch=batch)
        return jax.tree.map(jnp.add, params, changes), state

    params = random_params(problem)
    state, caution, seen = optimizer.init(params), 1.0, []
    for number in range(3 * MEASURED_EVERY + 1):
        moved, state = step(params, state)
        if number % MEASURED_EVERY == 0 and 2 * caution * cost(params) >= 1:
            kept = cost(moved) - cost(params) <= float(state[0].info.predicted_change) / 2
            caution = max(1.0, caution / GROWTH if kept else caution * GROWTH)
        seen.append(caution)
        np.testing.assert_allclose(state[0].caution, caution, rtol=1e-6)
        params = moved
    assert max(seen) > 1


def test_what_rounding_decides_is_not_judged():
    """A step of nothing, and one whose promise the cost cannot resolve: caution stays."""
    case = setting("own heads")
    for scale in (0.0, 1e-12):
        tiny = case._replace(gradient=jax.tree.map(lambda leaf, s=scale: s * leaf, case.gradient))
        _, caution = step_with(tiny, 1.0, 2.0, region="measured")
        assert caution == 2.0


def test_a_step_that_the_square_bounds_is_not_judged():
    """A cost that is nearly right: the second region is the smaller one, whatever k is."""
    case = setting("own heads")
    cost = float(objective(case.problem, case.params, {}, *case.batch))
    for caution in (2.0, 4.0):
        choices = {"region": "measured", "lower_bound": cost - 0.1}
        changes, after = step_with(case, 1e4, caution, **choices)
        square, _ = step_with(case, 1e4, caution, **{**choices, "region": "square"})
        np.testing.assert_allclose(flat(case, changes), flat(case, square), rtol=0, atol=1e-13)
        assert after == caution
    _, after = step_with(case, 1e4, 6.0, **choices)
    assert after != 6.0


@pytest.mark.parametrize("region", [None, "measured"])
def test_with_batch_norm_there_is_caution_only_if_it_is_asked_for(region):
    """Two comparisons of long steps, which keep less than they promise."""
    architecture = ResNetConfig.homogeneous(1, 2, image_shape=(4, 4, 1), classes=3, exits="none")
    problem = Problem(architecture.system())
    params, stats = architecture.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (8, 4, 4, 1))
    batch = images, jnp.arange(8) % 3
    optimizer = ocnopt(problem, 100.0, curvature=identity(), beta=0.01, region=region)

    @quick_jit
    def step(params, state):
        gradient = jax.grad(lambda params: objective(problem, params, stats, *batch))(params)
        changes, state = optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)
        return jax.tree.map(jnp.add, params, changes), state

    state = optimizer.init(params)
    for _ in range(MEASURED_EVERY + 1):
        params, state = step(params, state)
    assert (float(state[0].caution) > 1) == (region == "measured")
