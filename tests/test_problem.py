"""Training as an optimal control problem: equation (3), against numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.costs import Cost, squared_error
from ocresnet.problem import (
    Problem,
    objective,
    objective_of_outputs,
    per_sample_costs,
    run,
    stage_costs,
    weighted_sum,
)
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.system import Segment, System
from tests.conftest import SMALL, apply, random_images, random_variables
from tests.quick import quick_jit

CONFIG = ResidualMLPConfig(blocks=3, width=4, classes=3, image_shape=(2, 2, 1))
LABELS = np.array([0, 2, 1, 1, 0])
GAMMAS = (0.5, 0.0, 0.25)


def log_probabilities(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropies(logits):
    """Of every output and sample, [outputs, batch]."""
    return -np.take_along_axis(log_probabilities(logits), LABELS[None, :, None], -1)[..., 0]


@pytest.mark.parametrize("stage_cost", [0.0, 0.02, GAMMAS])
def test_the_objective_is_equation_3(stage_cost):
    problem = Problem(CONFIG.system(), stage_cost=stage_cost)
    variables, images = random_variables(CONFIG), random_images(CONFIG)
    logits, _ = apply(CONFIG, variables, images)
    losses = cross_entropies(np.asarray(logits)).mean(-1)
    gammas = np.broadcast_to(stage_cost, 3)
    wanted = losses[3] + sum(gamma * loss for gamma, loss in zip(gammas, losses[:3], strict=True))
    got = quick_jit(lambda params: objective(problem, params, {}, images, LABELS))(variables.params)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_objective_is_that_of_the_training_pass():
    """With the statistics of the batch, which the pass returns updated."""
    config = SMALL["homogeneous"]
    problem = Problem(config.system(), stage_cost=0.1)
    variables, images = random_variables(config), random_images(config)
    logits, stats = apply(config, variables, images, train=True)
    result = jax.jit(lambda variables: run(problem, *variables, images))(variables)
    np.testing.assert_allclose(result.all_outputs(), logits, rtol=1e-5, atol=1e-5)
    for got, wanted in zip(
        jax.tree.leaves(result.batch_stats), jax.tree.leaves(stats), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    losses = cross_entropies(np.asarray(logits)).mean(-1)
    got = objective_of_outputs(problem, logits, LABELS)
    np.testing.assert_allclose(got, losses[-1] + 0.1 * losses[:-1].sum(), rtol=1e-5)


def test_targets_can_be_trees():
    def towards_teacher(logits, targets):
        labels, teacher = targets
        return squared_error.value(logits, labels) + jnp.sum((logits - teacher) ** 2, axis=-1)

    problem = Problem(CONFIG.system(), Cost(towards_teacher), 0.1)
    rng = np.random.default_rng(0)
    outputs, teacher = rng.normal(size=(4, 5, 3)), rng.normal(size=(5, 3))
    got = per_sample_costs(problem, outputs.astype("float32"), (LABELS, teacher.astype("float32")))
    half = np.sum((outputs - np.eye(3)[LABELS]) ** 2, -1) / 2
    wanted = half + np.sum((outputs - teacher) ** 2, -1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_outputs_that_cost_nothing_are_not_computed():
    system = CONFIG.system()
    free, paid = Problem(system), Problem(system, stage_cost=(0.0, 0.0, 0.1))
    assert free.system.outputs == 0 and paid.system.outputs == 3
    assert free.stage_costs.shape == (0,)
    np.testing.assert_allclose(paid.stage_costs, [0, 0, 0.1])
    np.testing.assert_allclose(Problem(system, stage_cost=0.1).stage_costs, [0.1] * 3)
    alone = replace(CONFIG, exits="none").system()

    def program(problem):
        variables = random_variables(CONFIG)
        return str(
            jax.make_jaxpr(lambda p: objective(problem, p, {}, random_images(CONFIG), LABELS))(
                variables.params
            )
        )

    assert program(free) == program(Problem(alone)) != program(paid)


def test_stages_are_those_of_the_system_and_one_for_what_is_shared():
    assert Problem(CONFIG.system()).stages == 1 + 1 + 3 + 1
    still = lambda stage, x: (x, {})  # noqa: E731
    segments = (Segment("run", still, length=3), Segment("tied", still, length=4, tied=True))
    assert Problem(System(segments)).stages == 3 + 1


def test_weighted_sums_are_taken_in_the_precision_of_the_costs():
    costs = np.random.default_rng(0).normal(size=(4, 5))
    wanted = costs[3] + 0.02 * (costs[0] + costs[1] + costs[2])
    got = weighted_sum(costs, 0.02)
    assert isinstance(got, np.ndarray) and got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    np.testing.assert_allclose(
        weighted_sum(costs, np.array([1, 0, 2])), costs[3] + costs[0] + 2 * costs[2]
    )
    assert weighted_sum(costs[:, 0], 0.0) == costs[3, 0]
    np.testing.assert_array_equal(weighted_sum(costs[3:], np.zeros(0)), costs[3])
    assert weighted_sum(jnp.asarray(costs, "float32"), np.float32([1, 0, 2])).dtype == jnp.float32


def test_stage_costs_over_depth_have_the_same_mean():
    expected = {
        "constant": [0.1, 0.1, 0.1, 0.1],
        "linear": [0.04, 0.08, 0.12, 0.16],
        "terminal": [0.0, 0.0, 0.0, 0.4],
    }
    for schedule, wanted in expected.items():
        np.testing.assert_allclose(stage_costs(0.1, 4, schedule), wanted, rtol=1e-6)
    np.testing.assert_allclose(stage_costs(0.1, 8, "terminal"), [0] * 6 + [0.4] * 2, rtol=1e-6)
    for schedule in expected:
        assert stage_costs(0.1, 0, schedule) == ()
    losses = np.array([4.0, 3.0, 2.0, 1.0, 0.5])
    wanted = 0.5 + 0.04 * 4 + 0.08 * 3 + 0.12 * 2 + 0.16 * 1
    assert weighted_sum(losses, stage_costs(0.1, 4, "linear")) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="must be one of constant, linear, terminal"):
        stage_costs(0.1, 4, "quadratic")


@pytest.mark.parametrize(
    ("stage_cost", "message"),
    [
        (-0.1, "stage_cost is -0.1, but must be at least 0."),
        (float("nan"), "stage_cost is nan, but must be at least 0."),
        (float("inf"), "stage_cost is inf, but must be at least 0."),
        ("0.1", "stage_cost is '0.1', but must be at least 0."),
        (True, "stage_cost is True, but must be at least 0."),
        (None, "stage_cost is None, but must be at least 0."),
        ((0.1, -0.1, 0.1), "stage_cost is (0.1, -0.1, 0.1), but must be at least 0."),
        ((0.1, 0.1), "stage_cost has shape (2,), but must be one number, or one for each of the 3"),
        (((0.1,) * 3,), "stage_cost has shape (1, 3), but must be one number"),
    ],
)
def test_impossible_stage_costs_are_refused(stage_cost, message):
    with pytest.raises(ValueError) as refusal:
        Problem(CONFIG.system(), stage_cost=stage_cost)
    assert message in str(refusal.value)


def test_stage_costs_need_exits():
    with pytest.raises(ValueError, match="stage_cost is 0.1, but the network has no exits to pay"):
        Problem(replace(CONFIG, exits="none").system(), stage_cost=0.1)


def test_what_is_no_cost_is_refused():
    with pytest.raises(ValueError, match="cost is 'l2', but must be a Cost, as Cost.value. makes"):
        Problem(CONFIG.system(), "l2")
