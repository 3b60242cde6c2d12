"""Feedback "per_sample" against a loop over samples, each with full matrices of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import diagonal, ekfac, identity, kfac
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective, per_sample_costs, run, weighted_sum
from ocresnet.systems import layers
from ocresnet.systems.system import Segment, System
from tests.control.dense import bellman, chain, split, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    dense_curvature,
    of_sample,
    setting,
    updates,
)
from tests.quick import quick_jit


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense_step(
    case: Setting,
    rollout: str,
    *,
    factor: str = "gradient",
    value_update: str = "exact",
    value_beta: float = BETA,
    beta: float = BETA,
) -> list[np.ndarray]:
    """Solve the problem of every sample, and walk with the mean of their policies."""
    policies = []
    for sample in range(BATCH):
        weights = jnp.eye(BATCH)[sample]
        rows = case.dense.owners[-1] == sample
        gradient = case.dense.gradient(weights)[rows]
        hessian = case.dense.hessian(weights)[np.ix_(rows, rows)]
        curvature = hessian if factor == "exact" else np.outer(gradient, gradient)
        A = [M / ETA for M in case.M]
        value = gradient, (value_beta or beta) * curvature
        update = value_update if value_beta else "none"
        policies.append(bellman(of_sample(case, sample), value, A, update).policies)
    ratio = beta / (value_beta or beta)

    def decide(stage, dx):
        changes = []
        for sample, own in enumerate(policies):
            k, K = own[stage]
            changes.append(k + ratio * K @ dx[case.dense.owners[stage] == sample])
        return np.mean(changes, axis=0)

    return walk(case.dense, decide, rollout)


CASES = {
    "exact": {},
    "none": {"value_beta": 0.0},
    "clipped": {"value_update": "clipped", "value_beta": 0.05},
    "value_beta": {"value_beta": 2.0},
    "open loop": {"beta": 0.0, "value_beta": BETA},
    "exact factor": {"factor": "exact"},
    "exact factor none": {"factor": "exact", "value_beta": 0.0},
}


LINEAR = ["exact", "clipped", "exact factor"]


@pytest.mark.parametrize(
    ("name", "rollout"),
    [(name, "nonlinear") for name in CASES] + [(name, "linear") for name in LINEAR],
)
def test_step_is_the_mean_policy_of_the_samples(name, rollout):
    case, choices = setting("own heads"), CASES[name]
    changes, _ = updates(case, feedback="per_sample", rollout=rollout, **choices)
    assert_changes(case, changes, dense_step(case, rollout, **choices))


@pytest.mark.parametrize("factor", ["gradient", "exact"])
def test_without_exits_and_with_squared_errors(factor):
    case = setting("mlp", "squared_error")
    changes, _ = updates(case, feedback="per_sample", factor=factor)
    assert_changes(case, changes, dense_step(case, "nonlinear", factor=factor))


# What the curvature is made of


def step_and_entries(case: Setting) -> Any:
    @quick_jit
    def step():
        optimizer = ocnopt(
            case.problem,
            ETA,
            beta=BETA,
            curvature=case.curvature,
            feedback="per_sample",
            rollout="nonlinear",
            region="fixed",
        )
        state = optimizer.init(case.params)
        changes, state = optimizer.update(case.gradient, state, case.params, batch=case.batch)
        return changes, state[0].curvature.entries

    return step()


CURVATURES = {
    "identity": identity(),
    "diagonal": diagonal(0.5, 0.3),
    "kfac": kfac(0.1),
    "ekfac": ekfac(0.1, 0.5),
}


@pytest.mark.parametrize("network", ["own heads", "convolutions"])
@pytest.mark.parametrize("name", CURVATURES)
def test_layers_need_no_gradients_of_samples(name, network):
    case = setting(network)._replace(curvature=CURVATURES[name])
    changes, entries = step_and_entries(case)
    case = case._replace(M=dense_curvature(case, entries))
    assert_changes(case, changes, dense_step(case, "nonlinear"))


def test_a_layer_may_be_read_twice_by_a_stage():
    def twice(stage, x):
        x = jnp.tanh(layers.dense(stage.params["layer"], x))
        return jnp.tanh(layers.dense(stage.params["layer"], x)), {}

    case = setting("own heads")
    system = System((Segment("first", twice), Segment("single", twice)))
    problem = Problem(system)
    params = {name: {"layer": case.params["single"]["layer"]} for name in ("first", "single")}
    batch = case.batch[0][:, :3], case.batch[1]
    gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
    dense = chain(problem, params, batch)
    case = Setting(problem, params, batch, gradient, dense, identity(), [np.eye(12)] * 2)
    changes, _ = step_and_entries(case)
    assert_changes(case, changes, dense_step(case, "nonlinear"))


# Other ways to the same step


@pytest.mark.parametrize(
    ("factor", "rollout"),
    [("gradient", "nonlinear"), ("gradient", "linear"), ("exact", "nonlinear")],
)
def test_without_value_correction_samples_are_coupled_as_in_the_joint_form(factor, rollout):
    case = setting("own heads")
    choices = {"value_beta": 0.0, "factor": factor, "rollout": rollout}
    per_sample, _ = updates(case, feedback="per_sample", **choices)
    joint, _ = updates(case, feedback="joint", groups=BATCH, **choices)
    assert_changes(case, per_sample, split(case.problem.system, joint))


@pytest.mark.parametrize("value_update", ["exact", "clipped"])
def test_every_stage_descends_the_cost_with_the_samples_weighed_anew(value_update):
    """d_k = grad sum_i w_i J_i / B,  w_i = alpha_i (1 + beta e_i): one scalar a stage and sample,
    with e_i the predicted change of J_i. Clipping is at work here."""
    case = setting("own heads")
    system, A = case.problem.system, [M / ETA for M in case.M]

    @quick_jit
    @jax.jacobian
    def gradients(params):
        outputs = run(case.problem, params, {}, case.batch[0]).all_outputs()
        costs = per_sample_costs(case.problem, outputs, case.batch[1])
        return weighted_sum(costs, case.problem.stage_costs)

    g = gradients(case.params)
    g = [split(system, jax.tree.map(lambda leaf, i=i: leaf[i], g)) for i in range(BATCH)]
    used = np.zeros((len(A), BATCH))
    for sample in range(BATCH):
        alpha = 1.0
        for stage in reversed(range(len(A))):
            tau = g[sample][stage] @ np.linalg.solve(A[stage], g[sample][stage])
            used[stage, sample] = alpha
            if value_update == "exact":
                used[stage, sample] = alpha = alpha / (1 + BETA * alpha * tau)
            else:
                alpha *= max(0.0, 1 - BETA * alpha * tau)
    assert value_update == "exact" or (used == 0).any()

    costates = []
    for sample in range(BATCH):
        slopes = [case.dense.gradient(jnp.eye(BATCH)[sample])]
        for _, f_x in reversed(case.dense.jacobians):
            slopes.append(f_x.T @ slopes[-1])
        costates.append(slopes[::-1])

    def decide(stage, dx):
        e = np.asarray([own[stage] @ dx for own in costates])
        w = used[stage] * (1 + BETA * e)
        weighed = sum(w[i] * g[i][stage] for i in range(BATCH)) / BATCH
        return -np.linalg.solve(A[stage], weighed)

    expected = walk(case.dense, decide, "nonlinear")
    changes, info = updates(case, feedback="per_sample", value_update=value_update)
    assert_changes(case, changes, expected)
    trust = [sum(a @ np.linalg.solve(M, a) for a, M in zip(own, A, strict=True)) for own in g]
    np.testing.assert_allclose(info.trust, np.mean(trust), rtol=1e-6)
