"""Where OCNOpt must agree with something simpler: beta = 0, one sample, small steps, no scan."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.curvature import diagonal, ekfac, identity
from ocresnet.control.optimizer import ocnopt, scale_by_curvature
from ocresnet.problem import Problem, objective
from ocresnet.systems.system import Execution
from tests.control.dense import split
from tests.control.networks import BETA, ETA, flat, setting, stepper, updates
from tests.quick import quick_jit

FEEDBACKS = {
    "none": {"feedback": "none"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 4, "rollout": "nonlinear"},
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
}
COUPLINGS = ["stacked", "joint", "per_sample"]
CURVATURES = {"identity": identity(), "diagonal": diagonal(), "ekfac": ekfac()}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def assert_close(got, wanted) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), got, wanted)


# Without curvature of the cost


@pytest.mark.parametrize("name", CURVATURES)
def test_beta_0_is_the_base_optimizer_to_the_bit(name):
    case, curvature = setting("own heads"), CURVATURES[name]
    optimizers = [
        ocnopt(case.problem, ETA, beta=0.0, curvature=curvature, **choices)
        for choices in FEEDBACKS.values()
    ]
    rate = optax.scale_by_learning_rate(ETA)
    base = optax.chain(scale_by_curvature(curvature, case.problem), rate)

    @quick_jit
    def two_steps(gradients):
        results = []
        for optimizer in (base, *optimizers):
            state = optimizer.init(case.params)
            for gradient in gradients:
                changes, state = optimizer.update(gradient, state, case.params, batch=case.batch)
            results.append(changes)
        return results

    wanted, *results = two_steps([case.gradient, jax.tree.map(jnp.sin, case.gradient)])
    for got in results:
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize(
    ("curvature", "base"),
    [
        (identity(), optax.sgd(ETA)),
        (diagonal(0.9, 1e-3), optax.rmsprop(ETA, 0.9, 1e-3, eps_in_sqrt=False)),
    ],
)
def test_the_base_optimizers_are_those_of_optax(curvature, base):
    case = setting("mlp")
    own = ocnopt(case.problem, ETA, curvature=curvature, feedback="none")
    states = own.init(case.params), base.init(case.params)
    for scale in (1.0, -0.3):
        gradient = jax.tree.map(lambda leaf, s=scale: s * leaf, case.gradient)
        got, ours = own.update(gradient, states[0], case.params)
        wanted, theirs = base.update(gradient, states[1], case.params)
        states = ours, theirs
        assert_close(got, wanted)


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_beta_that_is_traced_tends_to_the_base_optimizer(name):
    case = setting("own heads")

    @quick_jit
    def step(beta):
        optimizer = ocnopt(
            case.problem,
            ETA,
            beta=beta,
            curvature=case.curvature,
            region="fixed",
            **FEEDBACKS[name],
        )
        state = optimizer.init(case.params)
        return optimizer.update(case.gradient, state, case.params, batch=case.batch)[0]

    base, _ = updates(case, feedback="none")
    assert_close(step(jnp.asarray(0.0)), base)
    assert np.abs(flat(case, step(jnp.asarray(1.0))) - flat(case, base)).max() > 1e-2


# One sample


@pytest.mark.parametrize("factor", ["gradient", "exact"])
def test_for_one_sample_all_couplings_are_the_same(factor):
    case = setting("own heads", batch=1)
    choices = [{}, {"feedback": "joint"}, {"feedback": "per_sample"}]
    stacked, joint, per_sample = (updates(case, factor=factor, **own)[0] for own in choices)
    assert_close(joint, stacked)
    assert_close(per_sample, stacked)


# Small steps


@pytest.mark.parametrize("name", COUPLINGS)
def test_small_steps(name):
    """The first stage has no feedback, that of the others is O(eta^2) while the step is O(eta), and
    the predicted change of the cost is the actual one up to O(eta^2)."""
    case = setting("own heads")
    step = stepper(case, **FEEDBACKS[name])
    open_loop = stepper(case, **{**FEEDBACKS[name], "beta": 0.0, "value_beta": BETA})
    base, _ = updates(case, 1.0, feedback="none")
    J = quick_jit(lambda params: objective(case.problem, params, {}, *case.batch))

    feedback, step_errors, prediction_errors = [], [], []
    for eta in (2e-3, 1e-3):
        changes, info = step(jnp.asarray(eta))
        without, _ = open_loop(jnp.asarray(eta))
        own, fixed = (split(case.problem.system, tree) for tree in (changes, without))
        np.testing.assert_allclose(own[0], fixed[0], rtol=0, atol=1e-15)
        feedback.append([np.linalg.norm(a - b) for a, b in zip(own[1:], fixed[1:], strict=True)])
        step_errors.append(np.linalg.norm(flat(case, changes) - eta * flat(case, base)))
        predicted = flat(case, case.gradient) @ flat(case, changes)
        np.testing.assert_allclose(info.predicted_change, predicted, rtol=1e-6)
        actual = J(optax.apply_updates(case.params, changes)) - J(case.params)
        assert predicted < 0
        prediction_errors.append(abs(actual - predicted))
    for errors in (np.asarray(feedback), step_errors, prediction_errors):
        assert np.all(np.asarray(errors[0]) > 1e-8)
        np.testing.assert_allclose(np.divide(*errors), 4, rtol=0.1)


# How a segment is run


@pytest.mark.parametrize("name", COUPLINGS)
def test_how_a_segment_is_run_changes_nothing(name):
    case = setting("own heads" if name == "per_sample" else "shared heads")
    execution = Execution(remat="everything", unroll=True)
    problem = Problem(
        replace(case.problem.system, execution=execution), stage_cost=case.problem.stage_cost
    )
    scanned = updates(case, **FEEDBACKS[name])
    other = updates(case._replace(problem=problem), **FEEDBACKS[name])
    assert_close(other, scanned)
