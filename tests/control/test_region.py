"""The size of the terminal curvature: what it makes of a step, in closed form and in full matrices.

Notation: that of `ocresnet/control/region.py`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control import coupled, reference
from ocresnet.control.curvature import diagonal, ekfac, identity
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.settings import Settings
from ocresnet.control.value import clipped
from ocresnet.costs import Cost, cross_entropy, make_cost
from ocresnet.problem import Problem, objective, objective_of_outputs, per_sample_costs, run
from tests.control.dense import bellman, split, walk
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    Setting,
    assert_changes,
    flat,
    full_curvature,
    mlp_problem,
    of_sample,
    random_batch,
    random_params,
    setting,
    updates,
)
from tests.control.test_reference import NETWORKS
from tests.quick import quick_jit

FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "joint linear": {"feedback": "joint", "groups": 4, "rollout": "linear"},
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
    "per_sample linear": {"feedback": "per_sample", "rollout": "linear"},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cost_of(case: Setting) -> float:
    return float(objective(case.problem, case.params, {}, *case.batch))


def newton_step(case: Setting) -> tuple[np.ndarray, float]:
    """M^-1 g and g^T M^-1 g / (2 J)."""
    g = flat(case, case.gradient)
    step = np.linalg.solve(np.asarray(jax.scipy.linalg.block_diag(*case.M)), g)
    return step, g @ step / (2 * cost_of(case))


# In closed form


@pytest.mark.parametrize("network", ["mlp", "shared heads"])
def test_the_square_along_linear_dynamics_is_ngn(network):
    """gamma = eta / (1 + eta |g|^2 / (2 J)) for M = I."""
    case = setting(network)
    g, J = flat(case, case.gradient), cost_of(case)
    square = {"region": "square", "beta": 1.0, "rollout": "linear"}
    changes, _ = updates(case, curvature=identity(), **square)
    gamma = ETA / (1 + ETA / (2 * J) * g @ g)
    np.testing.assert_allclose(flat(case, changes), -gamma * g, rtol=0, atol=1e-14)
    assert abs(gamma - ETA / (1 + ETA * g @ g)) > 1e-2


def test_a_large_learning_rate_gives_twice_polyak_s_step():
    case = setting("own heads")
    direction, half = newton_step(case)
    square = {"region": "square", "beta": 1.0, "rollout": "linear"}
    changes, _ = updates(case, 1e13, **square)
    np.testing.assert_allclose(flat(case, changes), -direction / half, rtol=0, atol=1e-11)


@pytest.mark.parametrize("eta", [1e-2, 1.0, 1e3])
def test_the_root_of_the_cost_is_predicted_to_shrink(eta):
    """r becomes r / (1 + T / (2 J)), never less than 0."""
    case = setting("shared heads")
    _, half = newton_step(case)
    square = {"region": "square", "beta": 1.0, "rollout": "linear"}
    changes, info = updates(case, eta, **square)
    r = np.sqrt(2 * cost_of(case))
    change = flat(case, case.gradient) @ flat(case, changes) / r
    np.testing.assert_allclose(r + change, r / (1 + eta * half), rtol=1e-12)
    np.testing.assert_allclose(info.trust, eta * half * r**2, rtol=1e-6)
    np.testing.assert_allclose(info.weights[:-1], 1 / (1 + eta * half), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_smaller_region_is_the_smaller_one(scale):
    """Of a cost of more than one half it is that of the papers, else the square."""
    case = scaled_setting(scale)
    assert (cost_of(case) > 0.5) == (scale > 1)
    choices = [{"region": region} for region in ("fixed", "square", "smaller")]
    fixed, square, smaller = (flat(case, updates(case, ETA / scale, **own)[0]) for own in choices)
    same, other = (fixed, square) if scale > 1 else (square, fixed)
    np.testing.assert_allclose(smaller, same, rtol=0, atol=1e-14)
    assert np.abs(smaller - other).max() > 1e-3 * np.abs(smaller).max()


# Invariance to the scale of the loss


def scaled_setting(scale: float) -> Setting:
    """A network whose cost is multiplied by a number."""
    case = setting("own heads")
    cost = Cost(lambda logits, labels: scale * cross_entropy.value(logits, labels))
    problem = Problem(case.problem.system, cost, 0.6)
    gradient = jax.tree.map(lambda leaf: scale * leaf, case.gradient)
    return case._replace(problem=problem, gradient=gradient)


@pytest.mark.parametrize("form", FORMS)
def test_the_scale_of_the_loss_does_not_matter(form):
    """Where the learning rate counts against it: here it is divided by it, as a curvature that
    scales with the gradient divides it; in the limit of a large one it is nothing."""
    square = {"region": "square", **FORMS[form]}
    wanted, _ = updates(scaled_setting(1.0), ETA, **square)
    got, _ = updates(scaled_setting(1e-4), ETA / 1e-4, **square)
    case = setting("own heads")
    np.testing.assert_allclose(flat(case, got), flat(case, wanted), rtol=0, atol=1e-12)


def test_a_diagonal_curvature_takes_the_same_step_at_any_scale():
    choices = {"region": "square", "curvature": diagonal(0.9, 1e-30)}
    wanted, got = (updates(scaled_setting(scale), ETA, **choices)[0] for scale in (1.0, 1e-4))
    case = setting("own heads")
    np.testing.assert_allclose(flat(case, got), flat(case, wanted), rtol=0, atol=1e-10)


# In full matrices


def sizes_of(region: str, costs: jax.Array) -> jax.Array:
    square = 1 / (2 * costs)
    return square if region == "square" else jnp.maximum(1.0, square)


SHARED, NORMALISED = "shared parameters, stage costs", "batch norm"
QUICK = [
    (SHARED, "stacked", "square"),
    (SHARED, "joint", "smaller"),
    (NORMALISED, "stacked", "smaller"),
    (NORMALISED, "joint", "square"),
    ("convolutions", "joint", "square"),
    ("tied", "stacked", "square"),
]
SLOW = [
    (SHARED, "stacked", "smaller"),
    (SHARED, "joint", "square"),
    (NORMALISED, "stacked", "square"),
    (NORMALISED, "joint", "smaller"),
]


@pytest.mark.parametrize(
    ("network", "form", "region"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_step_is_that_of_the_reference(network, form, region):
    """With every factor at its own size; for groups, with M damped."""
    problem, variables = NETWORKS[network]()
    variables = jax.tree.map(jnp.asarray, variables)
    batch = random_batch(BATCH, 9 if network == "convolutions" else 4)
    curvature, M = full_curvature(problem, variables.params)
    groups = FORMS[form].get("groups", 1)
    parts = jnp.split(jnp.arange(BATCH), groups)

    def costs(params):
        outputs = run(problem, params, variables.batch_stats, batch[0]).all_outputs()
        each = [objective_of_outputs(problem, outputs[:, part], batch[1][part]) for part in parts]
        return jnp.stack(each)

    each, factors = (quick_jit(f)(variables.params) for f in (costs, jax.jacobian(costs)))
    bound = float(each.min()) - 0.2
    size, damping = sizes_of(region, each - bound), 1.0
    for group in range(groups if form == "joint" else 0):
        own = split(problem.system, jax.tree.map(lambda leaf, g=group: leaf[g], factors))
        along = sum(v @ np.linalg.solve(m, v) for m, v in zip(M, own, strict=True))
        damping += coupled.DAMPING * ETA * BETA / groups**2 * size[group] * along
    choices = {"beta": BETA, "curvature": curvature, "region": region, "lower_bound": bound}

    @quick_jit
    def fast(variables):
        params, stats = variables
        optimizer = ocnopt(problem, ETA, **choices, **FORMS[form])
        gradient = jax.grad(lambda params: objective(problem, params, stats, *batch))(params)
        return optimizer.update(
            gradient, optimizer.init(params), params, batch=batch, batch_stats=stats
        )[0]

    @quick_jit
    def dense_step(variables):
        chain = reference.make_chain(problem, variables, batch[0])
        last = reference.terminal(problem, chain, batch[1], BETA, groups=groups, sizes=size)
        still = [jnp.zeros_like(theta) for theta in chain.controls]
        policies, _ = reference.bellman(chain, last, [damping * own / ETA for own in M], still)
        return reference.roll_out(chain, policies, still)

    got, wanted = split(problem.system, fast(variables)), dense_step(variables)
    assert np.ptp(size) > 0.1 or groups == 1
    assert np.abs(size - 1).max() > 0.1
    for stage, (own, expected) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12, err_msg=f"stage {stage}")


@pytest.mark.parametrize("rollout", ["nonlinear", "linear"])
def test_every_sample_has_a_region_of_its_own(rollout):
    case = setting("own heads")
    outputs = run(case.problem, case.params, {}, case.batch[0]).all_outputs()
    each = per_sample_costs(case.problem, outputs, case.batch[1])
    costs = each[-1] + jnp.asarray(case.problem.stage_costs) @ each[:-1]
    bound = float(costs.min()) - 0.2
    size = sizes_of("square", costs - bound)
    assert np.ptp(size) > 0.1
    form = {"feedback": "per_sample", "rollout": rollout, "region": "square", "lower_bound": bound}
    changes, _ = updates(case, **form)
    A, policies = [M / ETA for M in case.M], []
    for sample in range(BATCH):
        g = case.dense.gradient(jnp.eye(BATCH)[sample])[case.dense.owners[-1] == sample]
        value = g, BETA * size[sample] * np.outer(g, g)
        policies.append(bellman(of_sample(case, sample), value, A).policies)

    def decide(stage, dx):
        own = [
            k + K @ dx[case.dense.owners[stage] == sample]
            for sample, (k, K) in enumerate(policy[stage] for policy in policies)
        ]
        return np.mean(own, axis=0)

    assert_changes(case, changes, walk(case.dense, decide, rollout))


# Where the cost is taken from


@pytest.mark.parametrize("form", ["linear", "stacked"])
def test_the_cost_is_that_of_the_batch_or_the_value_that_is_given(form):
    case, choices = setting("own heads"), {"region": "square", **FORMS[form]}
    optimizer = ocnopt(case.problem, 50 * ETA, curvature=case.curvature, **choices)
    keep = Settings(**choices).keep

    @quick_jit
    def steps(params):
        nominal = linearize(case.problem, params, {}, *case.batch, keep)
        given = [{}, {"nominal": nominal}, {"value": nominal.objective}]
        given.append({"value": 4 * nominal.objective})
        results = [
            optimizer.update(
                case.gradient, optimizer.init(params), params, batch=case.batch, **own
            )[0]
            for own in given
        ]
        return results

    own, *same, other = (flat(case, changes) for changes in steps(case.params))
    for changes in same:
        np.testing.assert_allclose(changes, own, rtol=0, atol=1e-11)
    assert np.abs(other).max() > 1.1 * np.abs(own).max()


def test_a_value_that_is_given_saves_the_forward_pass():
    case = setting("mlp")
    optimizer = ocnopt(case.problem, ETA, region="square", rollout="linear", curvature=identity())
    state = optimizer.init(case.params)

    def products(**given: Any) -> int:
        program = jax.make_jaxpr(
            lambda g: optimizer.update(g, state, case.params, batch=case.batch, **given)
        )(case.gradient)
        return str(program).count("dot_general")

    assert products(value=jnp.ones(())) < products()


def test_a_region_takes_no_more_products_of_matrices():
    """EKFAC's moments and M^-1 rotate the same gradient, which the compiler does once."""
    case = setting("mlp")

    def products(region: Any) -> int:
        optimizer = ocnopt(case.problem, ETA, region=region, rollout="linear", curvature=ekfac())
        update = jax.jit(partial(optimizer.update, batch=case.batch))
        state, value = optimizer.init(case.params), jnp.ones(())  # no constant, which would move
        compiled = update.lower(case.gradient, state, case.params, value=value).compile()
        return compiled.as_text().count(" dot(")

    assert products("smaller") == products("fixed") > 0


# The lower bound


@pytest.mark.parametrize("classes", [2, 10])
def test_label_smoothing_has_the_entropy_of_its_target_as_bound(classes):
    cost = make_cost("cross_entropy", 0.1)
    target = np.full(classes, 0.1 / classes)
    target[1] += 0.9
    least = cost.value(jnp.log(target), jnp.asarray(1))
    np.testing.assert_allclose(cost.lower_bound(classes), least, rtol=1e-12)
    assert make_cost("cross_entropy").lower_bound is make_cost("l2", 0.1).lower_bound is None


@pytest.mark.parametrize(
    "form", ["linear", pytest.param("joint", marks=pytest.mark.slow), "per_sample"]
)
def test_the_bound_of_the_cost_counts_for_every_output(form):
    """(1 + sum of gamma) times that of one."""
    case = setting("own heads")
    problem = replace(case.problem, cost=make_cost("cross_entropy", 0.2))
    cost = quick_jit(jax.grad(lambda params: objective(problem, params, {}, *case.batch)))
    case = case._replace(problem=problem, gradient=cost(case.params))
    bound = (1 + sum(problem.stage_costs.tolist())) * problem.cost.lower_bound(3)
    assert bound > 0.5
    choices = {"region": "square", **FORMS[form]}
    own, given, without = (
        flat(case, updates(case, **choices, **bound)[0])
        for bound in ({}, {"lower_bound": bound}, {"lower_bound": 0.0})
    )
    np.testing.assert_allclose(own, given, rtol=0, atol=1e-13)
    assert np.abs(own - without).max() > 0.01 * np.abs(own).max()


# A cost that is at its bound


def weighed(problem: Problem) -> Problem:
    """A cost whose targets say how much a sample counts."""
    cost = Cost(lambda logits, t: t["weight"] * cross_entropy.value(logits, t["label"]))
    return Problem(problem.system, cost)


def first_step(problem: Problem, params: Any, batch: Any, eta: Any, **choices: Any) -> Any:
    """As a training takes it, where the gradient is that of the nominal pass."""
    nominal = linearize(problem, params, {}, *batch, Settings(**choices).keep)
    optimizer = ocnopt(problem, eta, curvature=identity(), **choices)
    return optimizer.update(
        nominal.gradient, optimizer.init(params), params, batch=batch, nominal=nominal
    )


@pytest.mark.parametrize("form", FORMS)
def test_samples_without_cost_or_gradient_break_nothing(form):
    """In float32, at every learning rate: some, all, or nearly."""
    with jax.enable_x64(False):
        problem = weighed(mlp_problem())
        inputs, labels = random_batch()
        params = random_params(problem)

        @quick_jit
        def step(weight, eta):
            batch = inputs, {"label": labels, "weight": weight}
            return first_step(problem, params, batch, eta, region="square", **FORMS[form])

        for weight in ([0, 0, 1, 1], [0, 0, 0, 0], [1e-12, 0, 1e-6, 1], [1e-20] * 4):
            for eta in (1e-2, 1.0, 1e3, 1e6):
                changes, state = step(jnp.asarray(weight, jnp.float32), jnp.float32(eta))
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((changes, state)))
                largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(changes))
                assert largest < 10 and (max(weight) > 0 or largest == 0)


@pytest.mark.parametrize("form", FORMS)
def test_a_cost_below_its_bound_takes_no_step(form):
    with jax.enable_x64(False):
        problem = mlp_problem()
        below = {"lower_bound": 100.0, "region": "smaller", **FORMS[form]}
        step = quick_jit(
            lambda params: first_step(problem, params, random_batch(), jnp.float32(1e6), **below)
        )
        changes, _ = step(random_params(problem))
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(changes)) < 1e-6


@pytest.mark.parametrize(
    ("region", "curvature"),
    [
        ("fixed", identity()),
        ("square", diagonal()),
        ("smaller", ekfac()),
        *(
            pytest.param(region, own, marks=pytest.mark.slow)
            for region, own in (
                ("fixed", diagonal()),
                ("fixed", ekfac()),
                ("square", identity()),
                ("square", ekfac()),
                ("smaller", identity()),
                ("smaller", diagonal()),
            )
        ),
    ],
)
def test_groups_that_are_alike_break_nothing(region, curvature):
    """Copies of a sample, with and without a cost of their own, in float32."""
    with jax.enable_x64(False):
        problem = weighed(mlp_problem())
        inputs, labels = random_batch(8)
        inputs = jnp.concatenate([inputs[:1], inputs[:1], inputs[:1] * (1 + 1e-4), inputs[3:]])
        weight = jnp.asarray([1, 0, 1, 1, 1e-6, 1, 1, 0.0])
        batch = inputs, {"label": labels, "weight": weight}
        params = random_params(problem)
        form = {"feedback": "joint", "groups": 8, "rollout": "linear", "region": region}

        @quick_jit
        def step(eta):
            optimizer = ocnopt(problem, eta, curvature=curvature, **form)
            nominal = linearize(problem, params, {}, *batch, Keep(groups=8))
            return optimizer.update(
                nominal.gradient, optimizer.init(params), params, batch=batch, nominal=nominal
            )[0]

        for eta in (1.0, 1e3, 1e6):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step(jnp.float32(eta))))


# Refusals


@pytest.mark.parametrize("factor", ["sampled", "exact"])
def test_other_factors_have_the_size_of_the_hessian(factor):
    assert Settings(factor=factor).region == "fixed"
    with pytest.raises(ValueError, match=f"with factor '{factor}', which has the size"):
        Settings(factor=factor, region="square")


def test_a_region_is_measured_where_it_bounds_every_step():
    """Where the recursion takes a stage's step whole, no caution makes it shorter."""
    assert Settings().region == Settings(equilibrium="nash").region == "measured"
    assert Settings(value_beta=0.5).region == "measured"
    for own in ({"value_beta": 0.0}, {"value_update": "clipped"}, {"value_update": clipped}):
        assert Settings(**own).region == "smaller"


def test_what_is_no_region_is_refused():
    with pytest.raises(ValueError, match="one of fixed, square, smaller, measured"):
        Settings(region="round")
    with pytest.raises(ValueError, match="lower_bound is nan, but must be a number"):
        Settings(lower_bound=float("nan"))
