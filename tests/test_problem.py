"""Equation (3) and its losses, against numpy."""

import numpy as np
import pytest

from ocresnet.costs import Cost, make_cost
from ocresnet.problem import Problem, objective_of_outputs, stage_costs, weighted_sum
from ocresnet.systems.residual_mlp import ResidualMLPConfig

LOGITS = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def smoothed(smoothing):
    return np.eye(3)[LABELS] * (1 - smoothing) + smoothing / 3


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy(smoothing):
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    wanted = -np.sum(smoothed(smoothing) * log_probabilities, -1)
    got = make_cost("cross_entropy", smoothing).value(LOGITS, LABELS)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_l2(smoothing):
    wanted = 0.5 * np.sum((LOGITS - smoothed(smoothing)) ** 2, -1)
    np.testing.assert_allclose(make_cost("l2", smoothing).value(LOGITS, LABELS), wanted, rtol=1e-5)


def test_objective_is_equation_3():
    losses = make_cost().value(LOGITS, LABELS).mean(-1)
    assert losses.shape == (4,)
    wanted = losses[3] + 0.02 * (losses[0] + losses[1] + losses[2])
    np.testing.assert_allclose(weighted_sum(losses, 0.02), wanted, rtol=1e-6)
    assert weighted_sum(losses, 0.0) == losses[3]
    system = ResidualMLPConfig(blocks=3, classes=3).system()
    problem = Problem(system, stage_cost=0.02)
    np.testing.assert_allclose(objective_of_outputs(problem, LOGITS, LABELS), wanted, rtol=1e-6)


def test_any_per_sample_loss_can_be_used():
    cost = Cost(lambda logits, labels: logits[..., 0] * labels)
    problem = Problem(ResidualMLPConfig(blocks=3, classes=3).system(), cost, stage_cost=0.5)
    losses = (LOGITS[..., 0] * LABELS).mean(-1)
    wanted = losses[3] + 0.5 * losses[:3].sum()
    got = objective_of_outputs(problem, LOGITS, LABELS)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("hinge", 0.0), "cross_entropy, l2"), (("l2", 1.0), "label_smoothing is 1.0")],
)
def test_unknown_losses_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_cost(*arguments)


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
