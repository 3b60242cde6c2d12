"""Stages with several players, and decisions other than the joint minimum."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from ocresnet.control.curvature import ekfac, identity
from ocresnet.control.value import Policy, joint_minimum
from ocresnet.problem import Problem
from tests.control.dense import split, terminal, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    setting,
    updates,
)

FORMS: dict[str, dict[str, Any]] = {
    "stacked": {"rollout": "nonlinear"},
    "linear": {"rollout": "linear", "value_beta": BETA},
    "joint": {"feedback": "joint", "groups": BATCH, "rollout": "nonlinear"},
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
    "per_sample exact": {"feedback": "per_sample", "factor": "exact", "rollout": "nonlinear"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def game(batch: int = BATCH) -> Setting:
    """A network whose inner stages have two players: the layer, and the head of the exit."""
    case = setting("own heads", batch=batch)
    system = case.problem.system
    segments = tuple(
        replace(segment, players=("head",) if segment.name in ("run", "single") else ())
        for segment in system.segments
    )
    problem = Problem(replace(system, segments=segments), stage_cost=case.problem.stage_cost)
    return case._replace(problem=problem, curvature=identity())


def each_alone(value, gram, drift, kappa):
    """A `Decision`: every player takes the minimum as if nobody else moved, and the value function
    does not count on any of them."""

    def alone(own):
        policy, _ = joint_minimum(value, own[None], drift, kappa)
        return policy.weights[0], policy.gains[0]

    return Policy(*jax.vmap(alone)(gram)), value


@pytest.mark.parametrize("form", FORMS)
def test_the_joint_minimum_does_not_care_who_decides(form):
    case = game()
    curvature = ekfac() if form == "per_sample" else identity()
    changes, info = updates(case, **FORMS[form], curvature=curvature)
    one_player = case._replace(problem=setting("own heads").problem)
    wanted, info_wanted = updates(one_player, **FORMS[form], curvature=curvature)
    assert_changes(case, changes, split(case.problem.system, wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), info, info_wanted)


@pytest.mark.parametrize("form", ["stacked", "linear", "joint"])
def test_another_decision_is_played(form):
    """Against full matrices: the control of an inner stage is the head's, then the layer's."""
    case, choices = game(), FORMS[form]
    changes, _ = updates(case, **choices, value_update=each_alone)
    V_x, V_xx = terminal(case.dense, BATCH, BETA, groups=choices.get("groups", 1))
    policies = []
    for f_theta, f_x in reversed(case.dense.jacobians):
        Q_theta, Q_theta_x = f_theta.T @ V_x, f_theta.T @ V_xx @ f_x
        Q_theta_theta = np.eye(len(Q_theta)) / ETA + f_theta.T @ V_xx @ f_theta
        if len(Q_theta) == 24:
            Q_theta_theta[:12, 12:] = Q_theta_theta[12:, :12] = 0
        policies.append([-np.linalg.solve(Q_theta_theta, part) for part in (Q_theta, Q_theta_x)])
        V_x, V_xx = f_x.T @ V_x, f_x.T @ V_xx @ f_x

    def decide(stage, dx):
        k, K = policies[::-1][stage]
        return k + K @ dx

    rollout = choices.get("rollout", "nonlinear")
    assert_changes(case, changes, walk(case.dense, decide, rollout))
    joint, _ = updates(case, **choices)
    difference = np.concatenate(split(case.problem.system, joint)) - np.concatenate(
        split(case.problem.system, changes)
    )
    assert np.abs(difference).max() > 1e-3


def test_for_one_sample_another_decision_is_the_same_in_all_couplings():
    case = game(batch=1)
    forms = [{}, {"feedback": "joint"}, {"feedback": "per_sample"}]
    stacked, *others = (updates(case, value_update=each_alone, **form)[0] for form in forms)
    for other in others:
        assert_changes(case, other, split(case.problem.system, stacked))
