"""Feedback "stacked" and "joint" through the public interface, against full matrices.

M is a random symmetric positive definite matrix for every stage. With exits, a shared head is
decided before the first stage, and one layer has no controls at all.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.linearize import Keep, linearize, output_factors
from tests.control.dense import bellman, split, terminal, total_jacobian, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    exits_problem,
    flat,
    setting,
    updates,
)
from tests.quick import quick_jit

NETWORKS = ["mlp", "shared heads", "own heads"]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def recursion(case: Setting, value: tuple[np.ndarray, np.ndarray], value_update: str = "exact"):
    return bellman(case.dense.jacobians, value, [M / ETA for M in case.M], value_update).policies


def dense_step(
    case: Setting,
    rollout: str = "nonlinear",
    *,
    groups: int = 1,
    factor: str = "gradient",
    value_update: str = "exact",
    value_beta: float = BETA,
) -> list[np.ndarray]:
    """The recursion and the walk with full matrices."""
    value = terminal(case.dense, BATCH, value_beta or BETA, factor, groups)
    update = value_update if value_beta else "none"
    policies, ratio = recursion(case, value, update), BETA / (value_beta or BETA)
    return walk(case.dense, lambda k, dx: policies[k][0] + ratio * policies[k][1] @ dx, rollout)


# One step over all stages at once


@pytest.mark.parametrize("network", NETWORKS)
def test_linear_stacked_step_is_the_base_step_over_one_plus_beta_trust(network):
    case = setting(network)
    changes, info = updates(case, rollout="linear")
    g = split(case.problem.system, case.gradient)
    base = [ETA * np.linalg.solve(M, part) for M, part in zip(case.M, g, strict=True)]
    shares = [a @ b for a, b in zip(g, base, strict=True)]
    T = sum(shares)
    assert_changes(case, changes, [-step / (1 + BETA * T) for step in base])
    predicted = flat(case, case.gradient) @ flat(case, changes)
    np.testing.assert_allclose(predicted, -T / (1 + BETA * T), rtol=1e-12)

    # Diagnostics are float32.
    np.testing.assert_allclose(info.trust, T, rtol=1e-6)
    np.testing.assert_allclose(info.predicted_change, predicted, rtol=1e-6)
    used = [(part.size > 0) / (1 + BETA * T) for part in g]
    np.testing.assert_allclose(info.weights, used, rtol=1e-6)
    before = -np.cumsum([0, *shares])[:-1] / (1 + BETA * T)
    np.testing.assert_allclose(info.deviations, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", ["gradient", "exact"])
@pytest.mark.parametrize("cost", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("network", ["mlp", "shared heads"])
def test_linear_joint_step_with_a_group_a_sample_is_levenberg_marquardt(network, cost, factor):
    case = setting(network, cost)
    changes, _ = updates(case, feedback="joint", groups=BATCH, factor=factor, rollout="linear")
    _, curvature = terminal(case.dense, BATCH, BETA, factor, groups=BATCH)
    jacobian = total_jacobian(case.dense.jacobians)
    A = np.asarray(jax.scipy.linalg.block_diag(*case.M)) / ETA
    matrix = A + jacobian.T @ curvature @ jacobian
    expected = -np.linalg.solve(matrix, flat(case, case.gradient))
    np.testing.assert_allclose(flat(case, changes), expected, rtol=0, atol=1e-12)


# Stage by stage

STEPS = {
    "stacked": {},
    "stacked clipped": {"value_update": "clipped"},
    "stacked none": {"value_beta": 0.0},
    "stacked value_beta": {"value_beta": 2.0},
    "joint 1": {"feedback": "joint"},
    "joint 2": {"feedback": "joint", "groups": 2},
    "joint 4": {"feedback": "joint", "groups": 4},
    "joint 4 none": {"feedback": "joint", "groups": 4, "value_beta": 0.0},
    "joint 4 exact": {"feedback": "joint", "groups": 4, "factor": "exact"},
    "joint 4 exact value_beta": {
        "feedback": "joint",
        "groups": 4,
        "factor": "exact",
        "value_beta": 2.0,
    },
}
# "stacked" and "joint 2" are checked for every network in `test_reference.py`.
NONLINEAR = [
    *(
        ("shared heads", "cross_entropy", name)
        for name in STEPS
        if name not in ("stacked", "joint 2")
    ),
    ("own heads", "cross_entropy", "joint 4 exact"),
    ("shared heads", "squared_error", "stacked"),
    ("shared heads", "squared_error", "joint 4 exact"),
]


def without_feedback(choices: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choices.items() if name != "feedback"}


@pytest.mark.parametrize(("network", "cost", "name"), NONLINEAR)
def test_step_is_the_recursion_and_the_walk_with_full_matrices(network, cost, name):
    case = setting(network, cost)
    changes, _ = updates(case, **STEPS[name])
    assert_changes(case, changes, dense_step(case, **without_feedback(STEPS[name])))


@pytest.mark.parametrize("name", [name for name in STEPS if name != "joint 1"])
def test_linear_step_is_that_along_the_linear_dynamics(name):
    case = setting("shared heads")
    changes, _ = updates(case, rollout="linear", **STEPS[name])
    assert_changes(case, changes, dense_step(case, "linear", **without_feedback(STEPS[name])))


@pytest.mark.parametrize("rollout", ["nonlinear", "linear"])
@pytest.mark.parametrize("name", ["stacked", "joint 4 exact"])
def test_without_forward_feedback_the_open_loop_is_left(name, rollout):
    case, own = setting("shared heads"), without_feedback(STEPS[name])
    changes, _ = updates(case, beta=0.0, value_beta=BETA, rollout=rollout, **STEPS[name])
    value = terminal(case.dense, BATCH, BETA, own.get("factor", "gradient"), own.get("groups", 1))
    assert_changes(case, changes, [k for k, _ in recursion(case, value)])


def test_diagnostics_of_the_nonlinear_step_are_what_the_new_states_changed():
    """deviations: the predicted change of the cost so far, counting all that crosses a cut."""
    case = setting("shared heads")
    changes, info = updates(case)
    slopes = [case.dense.gradient(jnp.full(BATCH, 1 / BATCH))]
    for _, f_x in reversed(case.dense.jacobians):
        slopes.append(f_x.T @ slopes[-1])
    policies, deviations = recursion(case, terminal(case.dense, BATCH, BETA)), []

    def decide(stage, dx):
        deviations.append(slopes[::-1][stage] @ dx)
        return policies[stage][0] + policies[stage][1] @ dx

    walk(case.dense, decide, "nonlinear")
    assert np.abs(deviations[1:]).min() > 1e-3
    np.testing.assert_allclose(info.deviations, deviations, rtol=0, atol=1e-6)
    g = split(case.problem.system, case.gradient)
    for own, M, part, share in zip(
        split(case.problem.system, changes), case.M, g, info.weights, strict=True
    ):
        np.testing.assert_allclose(own, -ETA * share * np.linalg.solve(M, part), atol=1e-6)


# Random factors


@pytest.mark.parametrize(("factor", "groups"), [("sampled", 1), ("exact", 2)])
def test_random_factors_that_are_handed_in_are_those_of_the_recursion(factor, groups):
    case = setting("own heads")
    keep = Keep(factor, groups, trajectory=True)
    nominal = quick_jit(
        lambda params, batch: linearize(
            case.problem, params, {}, *batch, keep, key=jax.random.key(5)
        )
    )(case.params, case.batch)
    changes, _ = updates(
        case,
        feedback="joint" if groups > 1 else "stacked",
        groups=groups,
        factor=factor,
        nominal=nominal,
    )
    # [groups, factors, outputs, batch of a group, classes], zero at the samples of other groups
    own = np.asarray(nominal.trajectory.output_costates)
    placed = np.einsum("gfonc,gh->gfohnc", own, np.eye(groups))
    factors = placed.reshape(-1, placed[0, 0].size)
    value = terminal(case.dense, BATCH, BETA)[0], BETA / groups * factors.T @ factors
    policies = recursion(case, value)
    expected = walk(case.dense, lambda k, dx: policies[k][0] + policies[k][1] @ dx, "nonlinear")
    assert_changes(case, changes, expected)


@pytest.mark.parametrize("factor", ["sampled", "exact"])
@pytest.mark.parametrize("cost", ["cross_entropy", "squared_error"])
def test_random_factors_give_the_hessian_on_average(cost, factor):
    problem, draws = exits_problem("own", cost), 20000
    y = np.random.default_rng(2).normal(size=(4, 3, 3))  # [outputs, batch, classes]
    one = jax.vmap(lambda key: output_factors(problem, jnp.asarray(y), factor, key))
    drawn = np.asarray(jax.jit(one)(jax.random.split(jax.random.key(0), draws)))
    drawn = drawn.reshape(draws, -1, y.size)
    expected = np.zeros((*y.shape, *y.shape))
    for output, weight in enumerate([*problem.stage_costs, 1.0]):
        for sample in range(3):
            p = np.exp(y[output, sample]) / np.exp(y[output, sample]).sum()
            hessian = np.diag(p) - np.outer(p, p) if cost == "cross_entropy" else np.eye(3)
            expected[output, sample, :, output, sample] = weight / 3 * hessian
    got = np.einsum("dfa,dfb->ab", drawn, drawn) / draws
    np.testing.assert_allclose(got, expected.reshape(got.shape), rtol=0, atol=0.02)
