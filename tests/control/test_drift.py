"""Momentum and weight decay: the policy counts on the step that is really taken.

s = -eta (mu m + rho lambda theta) is what they change anyway, m the accumulator and rho the share
of the base optimizer's step before this one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control import reference
from ocresnet.control.curvature import ekfac, identity
from ocresnet.control.optimizer import ocnopt, scale_by_curvature
from ocresnet.problem import objective
from ocresnet.systems.system import Variables
from tests.control.dense import bellman, split, terminal, total_jacobian, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    flat,
    of_sample,
    random_params,
    setting,
)
from tests.quick import quick_jit

MOMENTUM, DECAY, SHARE = 0.9, 0.5, 0.6
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "joint exact": {
        "feedback": "joint",
        "groups": BATCH,
        "factor": "exact",
        "rollout": "nonlinear",
    },
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
    "per_sample linear": {"feedback": "per_sample", "rollout": "linear"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def stepper(case: Setting, **choices: Any) -> Callable:
    """An update and its diagnostics, as a function of the accumulator, after a share of SHARE."""
    fixed = {"beta": BETA, "curvature": case.curvature, "region": "fixed"}
    choices = {**fixed, "rollout": "nonlinear", **choices}

    @quick_jit
    def step(accumulator):
        optimizer = ocnopt(case.problem, ETA, momentum=MOMENTUM, weight_decay=DECAY, **choices)
        own, rate = optimizer.init(case.params)
        trace, *rest = own.drift
        drift = trace._replace(trace=accumulator), *rest
        own = own._replace(drift=drift, share=jnp.asarray(SHARE))
        changes, (own, _) = optimizer.update(
            case.gradient, (own, rate), case.params, batch=case.batch
        )
        return changes, own.info

    return step


def with_drift(network: str, scale: float = 0.5) -> tuple[Setting, Any, list[np.ndarray]]:
    """A setting, an accumulator of momentum, and s of every stage."""
    case = setting(network)
    accumulator = jax.tree.map(lambda leaf: scale * leaf, random_params(case.problem, seed=9))
    drift = jax.tree.map(
        lambda m, theta: -ETA * (MOMENTUM * m + SHARE * DECAY * theta), accumulator, case.params
    )
    return case, accumulator, split(case.problem.system, drift)


# Every form and every kind of heads; the other pairs are slow.
QUICK = [("stacked", "shared heads"), ("joint", "own heads"), ("joint exact", "shared heads")]
SLOW = [("stacked", "own heads"), ("joint", "shared heads"), ("joint exact", "own heads")]


@pytest.mark.parametrize(
    ("form", "network"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_step_is_that_of_the_reference(network, form):
    case, accumulator, drift = with_drift(network)
    changes, _ = stepper(case, **FORMS[form])(accumulator)
    groups, factor = FORMS[form].get("groups", 1), FORMS[form].get("factor", "gradient")

    @quick_jit
    def dense_step(params, drift):
        chain = reference.make_chain(case.problem, Variables(params, {}), case.batch[0])
        last = reference.terminal(case.problem, chain, case.batch[1], BETA, factor, groups)
        policies, _ = reference.bellman(chain, last, [M / ETA for M in case.M], drift)
        return reference.roll_out(chain, policies, drift)

    assert_changes(case, changes, dense_step(case.params, drift))


@pytest.mark.parametrize("form", ["per_sample", "per_sample linear"])
def test_every_sample_counts_on_it(form):
    case, accumulator, drift = with_drift("own heads")
    changes, _ = stepper(case, **FORMS[form])(accumulator)
    A, policies = [M / ETA for M in case.M], []
    for sample in range(BATCH):
        g = case.dense.gradient(jnp.eye(BATCH)[sample])[case.dense.owners[-1] == sample]
        value = g, BETA * np.outer(g, g)
        policies.append(bellman(of_sample(case, sample), value, A, drift=drift).policies)

    def decide(stage, dx):
        own = [
            k + K @ dx[case.dense.owners[stage] == sample]
            for sample, (k, K) in enumerate(policy[stage] for policy in policies)
        ]
        return drift[stage] + np.mean(own, axis=0)

    assert_changes(case, changes, walk(case.dense, decide, FORMS[form].get("rollout", "nonlinear")))


@pytest.mark.parametrize(("groups", "factor"), [(1, "gradient"), (2, "gradient"), (4, "exact")])
def test_along_linear_dynamics_all_stages_act_as_one(groups, factor):
    """u = -(M / eta + kappa P P^T)^-1 (g + kappa P P^T s)."""
    case, accumulator, drift = with_drift("shared heads")
    form = {"feedback": "joint", "groups": groups, "factor": factor, "rollout": "linear"}
    changes, _ = stepper(case, **form)(accumulator)
    _, curvature = terminal(case.dense, BATCH, BETA, factor, groups)
    jacobian = total_jacobian(case.dense.jacobians)
    gauss_newton, s = jacobian.T @ curvature @ jacobian, np.concatenate(drift)
    A = np.asarray(jax.scipy.linalg.block_diag(*case.M)) / ETA
    u = -np.linalg.solve(A + gauss_newton, flat(case, case.gradient) + gauss_newton @ s)
    assert np.abs(gauss_newton @ s).max() > 0.1
    np.testing.assert_allclose(flat(case, changes), s + u, rtol=0, atol=1e-12)

    stage_by_stage, _ = stepper(case, **form, value_beta=BETA)(accumulator)
    np.testing.assert_allclose(flat(case, stage_by_stage), s + u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_predicted_change_is_that_of_the_step_really_taken(form):
    """From the first step on, where the accumulator is zero."""
    case, accumulator, _ = with_drift("own heads")
    step = stepper(case, **FORMS[form])
    for scale in (0.0, 1.0):
        changes, info = step(jax.tree.map(lambda leaf, s=scale: s * leaf, accumulator))
        predicted = flat(case, case.gradient) @ flat(case, changes)
        np.testing.assert_allclose(info.predicted_change, predicted, rtol=1e-6)
        if form == "linear":
            g, own = (split(case.problem.system, tree) for tree in (case.gradient, changes))
            so_far = np.cumsum([0, *(a @ b for a, b in zip(g, own, strict=True))])[:-1]
            np.testing.assert_allclose(info.deviations, so_far, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [ETA, 1e6])
def test_weights_decay_by_the_step_that_was_taken(eta):
    """eta rho, the learning rate that the policy really had, stays finite; at first it is 0."""
    case = setting("own heads")
    choices = {"rollout": "linear", "region": "fixed", "beta": BETA, "curvature": case.curvature}

    @quick_jit
    def two_steps(params):
        optimizer = ocnopt(case.problem, eta, weight_decay=DECAY, **choices)
        state, results = optimizer.init(params), []
        for _ in range(2):
            changes, state = optimizer.update(case.gradient, state, params, batch=case.batch)
            results.append((changes, state[0].share))
        return results

    (first, share), (second, _) = two_steps(case.params)
    g, theta = flat(case, case.gradient), flat(case, case.params)
    A = np.asarray(jax.scipy.linalg.block_diag(*case.M)) / eta
    rho = 1 / (1 + BETA * g @ np.linalg.solve(A, g))
    np.testing.assert_allclose(share, rho, rtol=1e-6)
    Q = A + BETA * np.outer(g, g)
    for changes, s in ((first, 0.0 * theta), (second, -eta * float(share) * DECAY * theta)):
        u = -np.linalg.solve(Q, g + BETA * g * (g @ s))
        np.testing.assert_allclose(flat(case, changes), s + u, rtol=0, atol=1e-9)
    assert np.abs(s).max() > 0.01 * np.abs(u).max()


@pytest.mark.parametrize("region", ["square", "smaller"])
def test_a_region_that_follows_the_cost_is_kept_with_all_repetitions_of_momentum(region):
    """eta_l = eta / (1 - mu) in the policy, which knows of s the decay alone:
    u = -(M / eta_l + beta c g g^T)^-1 (g + beta c g g^T s), of which a share 1 - mu is done now."""
    case, accumulator, _ = with_drift("own heads")
    changes, _ = stepper(case, region=region, rollout="linear")(accumulator)
    cost = objective(case.problem, case.params, {}, *case.batch)
    size = 1 / (2 * cost) if region == "square" else max(1.0, 1 / (2 * cost))
    M = np.asarray(jax.scipy.linalg.block_diag(*case.M))
    g, m, theta = (flat(case, tree) for tree in (case.gradient, accumulator, case.params))
    decay = -ETA * SHARE * DECAY * theta
    outer = BETA * float(size) * np.outer(g, g)
    u = -np.linalg.solve(M * (1 - MOMENTUM) / ETA + outer, g + outer @ decay)
    wanted = (1 - MOMENTUM) * u - ETA * MOMENTUM * m + decay
    np.testing.assert_allclose(flat(case, changes), wanted, rtol=0, atol=1e-12)
    assert np.abs(outer @ decay).max() > 1e-3 and np.abs(m).max() > 0.1


def test_a_second_forward_pass_follows_all_repetitions_of_momentum():
    """The reference with eta / (1 - mu), the terminal curvature of the square and the decay alone
    for a drift; of what its policy does a share 1 - mu is done now."""
    case, accumulator, _ = with_drift("own heads")
    changes, _ = stepper(case, region="square")(accumulator)
    cost = objective(case.problem, case.params, {}, *case.batch)
    decay = jax.tree.map(lambda theta: -ETA * SHARE * DECAY * theta, case.params)
    drift = split(case.problem.system, decay)

    @quick_jit
    def dense_step(params, drift):
        chain = reference.make_chain(case.problem, Variables(params, {}), case.batch[0])
        size = BETA / (2 * cost)
        last = reference.terminal(case.problem, chain, case.batch[1], size, "gradient", 1)
        A = [M * (1 - MOMENTUM) / ETA for M in case.M]
        policies, _ = reference.bellman(chain, last, A, drift)
        return reference.roll_out(chain, policies, drift)

    walked = [np.asarray(own) for own in dense_step(case.params, drift)]
    gathered = split(case.problem.system, accumulator)
    wanted = [
        (1 - MOMENTUM) * (own - s) + s - ETA * MOMENTUM * m
        for own, s, m in zip(walked, drift, gathered, strict=True)
    ]
    assert_changes(case, changes, wanted)


def test_the_cost_changes_as_predicted():
    """Up to second order in the step; momentum without a history changes nothing."""
    case, eta = setting("own heads"), 1e-3

    @quick_jit
    def ratio(params):
        choices = {"rollout": "nonlinear", "momentum": MOMENTUM, "weight_decay": DECAY}
        optimizer = ocnopt(case.problem, eta, **choices)
        state = optimizer.init(params)
        changes, state = optimizer.update(case.gradient, state, params, batch=case.batch)
        before, after = (
            objective(case.problem, own, {}, *case.batch)
            for own in (params, optax.apply_updates(params, changes))
        )
        return (after - before) / state[0].info.predicted_change

    np.testing.assert_allclose(ratio(case.params), 1, rtol=0.01)


@pytest.mark.parametrize("feedback", ["stacked", "joint", "per_sample"])
def test_beta_0_is_the_chain_of_optax_to_the_bit(feedback):
    case, schedule = setting("own heads"), optax.linear_schedule(ETA, 0.1, 3)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, case.params)
    own = ocnopt(
        case.problem,
        schedule,
        beta=0.0,
        feedback=feedback,
        rollout="nonlinear",
        curvature=ekfac(),
        momentum=MOMENTUM,
        weight_decay=DECAY,
        weight_decay_mask=mask,
    )
    base = optax.chain(
        scale_by_curvature(ekfac(), case.problem),
        optax.trace(MOMENTUM),
        optax.add_decayed_weights(DECAY, mask),
        optax.scale_by_learning_rate(schedule),
    )

    @quick_jit
    def two_steps(gradients):
        results = []
        for optimizer in (base, own):
            state = optimizer.init(case.params)
            for gradient in gradients:
                changes, state = optimizer.update(gradient, state, case.params, batch=case.batch)
            results.append(changes)
        return results

    wanted, got = two_steps([case.gradient, jax.tree.map(jnp.sin, case.gradient)])
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_beta_0_is_sgd_with_momentum_to_the_bit():
    case = setting("mlp")
    own = ocnopt(case.problem, ETA, curvature=identity(), beta=0.0, momentum=0.9)
    optimizers = own, optax.sgd(ETA, 0.9)
    results = []
    for optimizer in optimizers:
        state = optimizer.init(case.params)
        for scale in (1.0, -0.3):
            gradient = jax.tree.map(lambda leaf, s=scale: s * leaf, case.gradient)
            changes, state = optimizer.update(gradient, state, case.params)
        results.append(changes)
    jax.tree.map(np.testing.assert_array_equal, *results)
