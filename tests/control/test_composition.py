"""OCNOpt inside and behind other transformations of optax: right, or refused in a sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.curvature import diagonal, ekfac
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt, scale_by_curvature
from ocresnet.problem import objective
from tests.control.dense import bellman, split, terminal, total_jacobian, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    flat,
    of_sample,
    random_batch,
    setting,
)
from tests.quick import quick_jit

CLIP, DECAY = 0.05, 0.3
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), got, wanted)


def own(case: Setting, **choices: Any) -> optax.GradientTransformationExtraArgs:
    fixed = {"beta": BETA, "curvature": case.curvature, "region": "fixed"}
    return ocnopt(case.problem, ETA, **{**fixed, "rollout": "nonlinear", **choices})


# Before it


@pytest.mark.parametrize("form", FORMS)
def test_what_a_clip_and_a_decay_before_it_make_is_minimised(form):
    """The gradient that comes in is c g + r: r is followed as it is, and the policy counts on that
    as on every drift, s = -eta M^-1 r. In the coupled forms it is the same for every c."""
    case = setting("own heads")

    @quick_jit
    def step(gradient):
        before = optax.chain(optax.clip_by_global_norm(CLIP), optax.add_decayed_weights(DECAY))
        chained = optax.chain(before, own(case, **FORMS[form]))
        state = chained.init(case.params)
        given, _ = before.update(gradient, state[0], case.params)
        changes, _ = chained.update(gradient, state, case.params, batch=case.batch)
        return given, changes

    given, changes = step(case.gradient)
    g, came = flat(case, case.gradient), flat(case, given)
    assert np.linalg.norm(g) > 2 * CLIP
    A = [M / ETA for M in case.M]
    c = came @ g / (g @ g) if form == "per_sample" else 1.0
    rest = split(case.problem.system, jax.tree.map(lambda a, b: a - c * b, given, case.gradient))
    drift = [-np.linalg.solve(own, r) for own, r in zip(A, rest, strict=True)]
    owners = case.dense.owners
    if form == "linear":
        base = np.concatenate(
            [np.linalg.solve(own, g) for own, g in zip(A, split_flat(case, came), strict=True)]
        )
        expected = split_flat(case, -base / (1 + BETA * came @ base))
    elif form == "per_sample":
        policies = []
        for sample in range(BATCH):
            g = case.dense.gradient(jnp.eye(BATCH)[sample])[owners[-1] == sample]
            value = c * g, BETA * np.outer(g, g)
            policies.append(bellman(of_sample(case, sample), value, A, drift=drift).policies)

        def decide(stage, dx):
            mean = [
                policy[stage][0] + policy[stage][1] @ dx[owners[stage] == sample]
                for sample, policy in enumerate(policies)
            ]
            return drift[stage] + np.mean(mean, axis=0)

        expected = walk(case.dense, decide, "nonlinear")
    else:
        value = terminal(case.dense, BATCH, BETA, groups=FORMS[form].get("groups", 1))
        policies = bellman(case.dense.jacobians, value, A, drift=drift).policies
        expected = walk(
            case.dense,
            lambda k, dx: drift[k] + policies[k][0] + policies[k][1] @ dx,
            "nonlinear",
        )
    assert_changes(case, changes, expected)


def split_flat(case: Setting, vector: np.ndarray) -> list[np.ndarray]:
    """A vector as one part a stage."""
    return np.split(vector, np.cumsum([len(M) for M in case.M])[:-1])


@pytest.mark.parametrize("form", FORMS)
def test_the_very_gradient_of_the_nominal_pass_saves_a_column_and_changes_nothing(form):
    case = setting("own heads")
    optimizer = own(case, **FORMS[form])

    @quick_jit
    def both(params):
        keep = Keep(groups=FORMS[form].get("groups", 1), trajectory=True)
        nominal = linearize(case.problem, params, {}, *case.batch, keep)
        results = []
        for gradient in (nominal.gradient, jax.tree.map(lambda g: 1.0 * g, nominal.gradient)):
            state = optimizer.init(params)
            results.append(
                optimizer.update(gradient, state, params, batch=case.batch, nominal=nominal)[0]
            )
        return results

    assert_close(*both(case.params))


@pytest.mark.parametrize("how", ["MultiSteps", "apply_every"])
def test_the_gradients_of_several_batches(how):
    """All of them are minimised; the terminal curvature is that of the last one."""
    case = setting("own heads")
    batches = [random_batch(seed=5), case.batch]
    form = {"feedback": "joint", "groups": BATCH, "rollout": "linear"}
    if how == "MultiSteps":
        optimizer = optax.MultiSteps(own(case, **form), 2).gradient_transformation()
    else:
        optimizer = optax.chain(optax.apply_every(2), own(case, **form))

    @quick_jit
    def two_steps(params):
        state, results, seen = optimizer.init(params), [], []
        for batch in batches:
            g = jax.grad(lambda p, batch=batch: objective(case.problem, p, {}, *batch))(params)
            changes, state = optimizer.update(g, state, params, batch=batch)
            results.append(changes)
            seen.append(g)
        return results, seen

    (nothing, changes), gradients = two_steps(case.params)
    np.testing.assert_array_equal(flat(case, nothing), 0)
    total = sum(flat(case, g) for g in gradients) / (2 if how == "MultiSteps" else 1)
    _, curvature = terminal(case.dense, BATCH, BETA, groups=BATCH)
    jacobian = total_jacobian(case.dense.jacobians)
    A = np.asarray(jax.scipy.linalg.block_diag(*case.M)) / ETA
    expected = -np.linalg.solve(A + jacobian.T @ curvature @ jacobian, total)
    # MultiSteps accumulates in single precision.
    tolerance = 1e-8 if how == "MultiSteps" else 1e-12
    np.testing.assert_allclose(flat(case, changes), expected, rtol=0, atol=tolerance)


# Around it


@pytest.mark.parametrize("form", FORMS)
def test_hyperparameters_that_are_injected(form):
    case = setting("own heads")
    choices = {"curvature": case.curvature, **FORMS[form]}
    # A power of two: its product with the share, in float32, is the same when it is injected.
    numbers = {"learning_rate": ETA, "beta": BETA, "momentum": 0.5, "weight_decay": 0.25}
    static = ("groups",) if "groups" in FORMS[form] else ()
    injected = optax.inject_hyperparams(ocnopt, static_args=static)

    @quick_jit
    def two_steps(params):
        results = []
        for optimizer in (
            ocnopt(case.problem, **numbers, **choices),
            injected(case.problem, **numbers, **choices),
        ):
            state = optimizer.init(params)
            for _ in range(2):
                changes, state = optimizer.update(case.gradient, state, params, batch=case.batch)
            results.append(changes)
        return results, state

    (wanted, got), state = two_steps(case.params)
    assert_close(got, wanted)
    assert {"learning_rate", "beta", "weight_decay"} <= set(state.hyperparams)


def test_groups_that_are_injected_are_refused():
    case = setting("own heads")
    optimizer = optax.inject_hyperparams(ocnopt)(
        case.problem, learning_rate=ETA, feedback="joint", groups=2
    )
    with pytest.raises(ValueError, match=r"groups is an array, .* static_args=\('groups',\)\.$"):
        optimizer.init(case.params)


def test_a_mask_around_it_is_refused_where_the_system_is_run():
    case = setting("own heads")
    mask = {name: name != "first" for name in case.params}
    for curvature, feedback in ((case.curvature, "stacked"), (ekfac(), "none")):
        masked = optax.masked(
            ocnopt(case.problem, ETA, curvature=curvature, feedback=feedback), mask
        )
        with pytest.raises(ValueError, match=r"hides some of its parameters: .* around it\.$"):
            masked.init(case.params)


def test_a_mask_around_the_base_optimizer():
    case = setting("own heads")
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, case.params)
    masked = optax.masked(scale_by_curvature(diagonal(), case.problem), mask)
    whole = scale_by_curvature(diagonal(), case.problem)
    got, _ = masked.update(case.gradient, masked.init(case.params), case.params)
    wanted, _ = whole.update(case.gradient, whole.init(case.params), case.params)
    expected = jax.tree.map(lambda m, a, b: a if m else b, mask, wanted, case.gradient)
    assert_close(got, expected)
