"""Equilibria of the players of a stage, against their definition and full matrices."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import diagonal, ekfac, identity, kfac
from ocresnet.control.games import nash
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.value import Value, applied_weights, joint_minimum
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.system import Segment, System
from tests.control.dense import bellman, split, terminal, walk
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
from tests.control.parallel_network import (
    divided,
    owners,
    parallel_params,
    parallel_problem,
    parallel_setting,
)
from tests.quick import quick_jit

DECISIONS = {"cooperative": joint_minimum, "nash": nash}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# One stage in the coordinates of its columns

PLAYERS, FACTORS, COLUMNS, KAPPA = 3, 2, 3, 0.6


def random_stage() -> tuple[Value, jax.Array, jax.Array]:
    """The value after a stage, Gamma of its players, and the drift of all columns."""
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(PLAYERS, 5, COLUMNS))
    root = rng.normal(size=(FACTORS, FACTORS))
    value = Value(jnp.asarray(rng.normal(size=COLUMNS)), jnp.asarray(root @ root.T))
    gram = jnp.einsum("nic,nid->ncd", columns, columns)
    return value, gram, jnp.asarray(rng.normal(size=COLUMNS))


def cost_of(value: Value, gram: jax.Array, drift: jax.Array, change: jax.Array, moves: jax.Array):
    """Q of changes of the columns before the stage, [C], and the players' moves, [players, C]."""
    after = change + drift - jnp.einsum("ncd,nd->c", gram, moves)
    own = jnp.einsum("nc,ncd,nd->", moves, gram, moves) / 2
    factors = after[-FACTORS:]
    return value.weights @ after + KAPPA / 2 * factors @ value.gains @ factors + own


@pytest.mark.parametrize("equilibrium", DECISIONS)
def test_a_decision_is_what_its_equilibrium_says(equilibrium):
    """Nash: no player gains by moving alone, the others at nominal. Cooperative: nor do all."""
    value, gram, drift = random_stage()
    change = jnp.asarray(np.random.default_rng(1).normal(size=COLUMNS))
    policy, _ = DECISIONS[equilibrium](value, gram, drift[-FACTORS:], KAPPA)
    moves = applied_weights(policy, change[-FACTORS:], KAPPA)
    cost = partial(cost_of, value, gram, drift, change)
    everyone = jnp.ones((1, PLAYERS, 1))
    whose = everyone if equilibrium == "cooperative" else jnp.eye(PLAYERS)[:, :, None]
    for own in whose:

        def others_still(moves, own=own):
            return cost(own * moves)

        gradient, hessian = quick_jit(
            lambda moves, f=others_still: (jax.grad(f)(moves), jax.hessian(f)(moves))
        )(moves)
        np.testing.assert_allclose(gradient, 0, rtol=0, atol=1e-12)
        hessian = hessian.reshape((PLAYERS * COLUMNS,) * 2)
        assert np.linalg.eigvalsh(hessian)[0] > -1e-12 * np.linalg.norm(hessian)
    together = np.abs(quick_jit(jax.grad(cost))(moves)).max()
    assert (together > 0.1) == (equilibrium == "nash")


@pytest.mark.parametrize("equilibrium", DECISIONS)
def test_the_value_left_behind_is_that_of_the_moves(equilibrium):
    """V(change) = Q under the policies, differentiated by jax."""
    value, gram, drift = random_stage()
    policy, left = DECISIONS[equilibrium](value, gram, drift[-FACTORS:], KAPPA)

    def left_by_policies(change):
        moves = applied_weights(policy, change[-FACTORS:], KAPPA)
        return cost_of(value, gram, drift, change, moves)

    gradient, hessian = quick_jit(
        lambda at: (jax.grad(left_by_policies)(at), jax.hessian(left_by_policies)(at))
    )(jnp.zeros(COLUMNS))
    np.testing.assert_allclose(left.weights, gradient, rtol=0, atol=1e-12)
    wanted = np.zeros((COLUMNS, COLUMNS))
    wanted[-FACTORS:, -FACTORS:] = KAPPA * left.gains
    np.testing.assert_allclose(hessian, wanted, rtol=0, atol=1e-12)


def test_damping_of_one_factor_is_that_of_the_papers():
    """Identity 15, with alpha the share of the gradient that is left after the stage."""
    alpha, tau = 0.8, np.array([0.3, 1.0, 2.5])
    value = Value(jnp.asarray([alpha]), jnp.asarray([[alpha]]))
    gram, still = jnp.asarray(tau)[:, None, None], jnp.zeros(1)
    shares = {
        name: np.asarray(decide(value, gram, still, BETA)[0].weights)[:, 0] / alpha
        for name, decide in DECISIONS.items()
    }
    np.testing.assert_allclose(shares["nash"], 1 / (1 + BETA * alpha * tau), rtol=1e-14)
    np.testing.assert_allclose(
        shares["cooperative"], 1 / (1 + BETA * alpha * tau.sum()), rtol=1e-14
    )


# Whole steps

FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "joint linear": {"feedback": "joint", "groups": BATCH, "rollout": "linear"},
    "joint exact": {
        "feedback": "joint",
        "groups": BATCH,
        "factor": "exact",
        "rollout": "nonlinear",
    },
    "weight decay": {
        "feedback": "joint",
        "groups": 2,
        "weight_decay": 0.3,
        "share": 1.0,
        "rollout": "nonlinear",
    },
    "value_beta": {"value_beta": 2.0, "rollout": "nonlinear"},
}


def dense_step(case: Setting, equilibrium: str, **choices: Any) -> list[np.ndarray]:
    groups, factor = choices.get("groups", 1), choices.get("factor", "gradient")
    value_beta = choices.get("value_beta", BETA)
    last = terminal(case.dense, BATCH, value_beta, factor, groups)
    decay = choices.get("weight_decay", 0.0)
    drift = [-ETA * decay * theta for theta in case.dense.controls]
    players = owners(case) if equilibrium == "nash" else None
    A = [M / ETA for M in case.M]
    policies = bellman(case.dense.jacobians, last, A, drift=drift, players=players).policies

    def decide(stage, dx):
        k, K = policies[stage]
        return drift[stage] + k + BETA / value_beta * K @ dx

    return walk(case.dense, decide, choices.get("rollout", "nonlinear"))


QUICK = [*((form, "nash") for form in FORMS), ("stacked", "cooperative")]
# What is solved together is checked in every form, too, where there are no players.
SLOW = [(form, "cooperative") for form in FORMS if form != "stacked"]


@pytest.mark.parametrize(
    ("form", "equilibrium"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_step_is_that_of_full_matrices(form, equilibrium):
    case = parallel_setting()
    case = divided(case) if equilibrium == "nash" else case
    changes, _ = updates(case, equilibrium=equilibrium, **FORMS[form])
    assert_changes(case, changes, dense_step(case, equilibrium, **FORMS[form]))


def test_players_move_otherwise_than_together():
    case = divided(parallel_setting())
    steps = [np.concatenate(dense_step(case, equilibrium)) for equilibrium in DECISIONS]
    assert np.abs(steps[0] - steps[1]).max() > 1e-2


CURVATURES = {
    "identity": identity(),
    "diagonal": diagonal(epsilon=0.1),
    "kfac": kfac(0.1),
    "ekfac": ekfac(0.1),
    "kfac schur": kfac(0.1, coupling="schur"),
    "ekfac schur": ekfac(0.1, coupling="schur"),
}
PLAYED = [
    *((name, "nash") for name in CURVATURES if "schur" not in name),
    ("kfac", "cooperative"),
    ("ekfac schur", "cooperative"),
    *(
        pytest.param(name, "cooperative", marks=pytest.mark.slow)
        for name in ("identity", "diagonal", "ekfac", "kfac schur")
    ),
]


def played(name: str, equilibrium: str, **choices: Any) -> tuple[Setting, Any]:
    """The updates of a step with one of the `CURVATURES`, around a setting whose M is what the
    curvature's M^-1 makes of every unit vector."""
    case = parallel_setting()._replace(curvature=CURVATURES[name])
    fixed = {"curvature": case.curvature, "beta": BETA, "region": "fixed"}
    choices = {**fixed, "rollout": "nonlinear", **choices}
    optimizer = ocnopt(case.problem, ETA, equilibrium=equilibrium, **choices)
    changes, (state, _) = quick_jit(optimizer.update)(
        case.gradient, optimizer.init(case.params), case.params, batch=case.batch
    )
    return case._replace(M=dense_curvature(case, state.curvature.entries)), changes


@pytest.mark.parametrize(("name", "equilibrium"), PLAYED)
def test_every_curvature(name, equilibrium):
    case, changes = played(name, equilibrium)
    assert_changes(case, changes, dense_step(case, equilibrium))


def mean_of_samples(case: Setting, equilibrium: str, rollout: str) -> list[np.ndarray]:
    """Solve the problem of every sample, and walk with the mean of their policies."""
    players = owners(case) if equilibrium == "nash" else None
    A, policies = [M / ETA for M in case.M], []
    for sample in range(BATCH):
        rows = case.dense.owners[-1] == sample
        gradient = case.dense.gradient(jnp.eye(BATCH)[sample])[rows]
        last = gradient, BETA * np.outer(gradient, gradient)
        policies.append(bellman(of_sample(case, sample), last, A, players=players).policies)

    def decide(stage, dx):
        own = case.dense.owners[stage]
        return np.mean(
            [k + K @ dx[own == i] for i, (k, K) in enumerate(p[stage] for p in policies)], axis=0
        )

    return walk(case.dense, decide, rollout)


@pytest.mark.parametrize("rollout", ["nonlinear", "linear"])
def test_per_sample_is_the_mean_of_the_samples_equilibria(rollout):
    case = divided(parallel_setting())
    changes, _ = updates(case, feedback="per_sample", rollout=rollout, equilibrium="nash")
    assert_changes(case, changes, mean_of_samples(case, "nash", rollout))


@pytest.mark.parametrize(
    ("name", "equilibrium"),
    [
        ("identity", "nash"),
        ("diagonal", "cooperative"),
        ("ekfac", "nash"),
        pytest.param("ekfac", "cooperative", marks=pytest.mark.slow),
        ("kfac schur", "cooperative"),
    ],
)
def test_per_sample_with_curvatures_of_layers(name, equilibrium):
    """Squares of the samples' gradients from layers of their own, and what coupled ones need."""
    case, changes = played(name, equilibrium, feedback="per_sample")
    assert_changes(case, changes, mean_of_samples(case, equilibrium, "nonlinear"))


def test_without_players_both_equilibria_are_the_same():
    case = setting("own heads")
    nash_changes, _ = updates(case, equilibrium="nash")
    changes, _ = updates(case)
    assert_changes(case, nash_changes, split(case.problem.system, changes))


def single_stage() -> tuple[Problem, Any, Any, Any]:
    """Two players, and nothing else: y = x W_a + sin(x) W_b."""

    def both(stage, x):
        a, b = stage.params["a"], stage.params["b"]
        return layers.dense(a, x) + layers.dense(b, jnp.sin(x)), {}

    problem = Problem(System((Segment("only", both, players=("a",)),)))
    rng = np.random.default_rng(2)
    params = {"only": {name: {"kernel": jnp.asarray(rng.normal(size=(4, 3)))} for name in "ab"}}
    batch = jnp.asarray(rng.normal(size=(BATCH, 4))), jnp.asarray([0, 1, 2, 0])
    gradient = quick_jit(jax.grad(lambda params: objective(problem, params, {}, *batch)))(params)
    return problem, params, batch, gradient


def test_nash_can_exceed_the_cap_that_cooperative_cannot():
    """The predicted decrease of one stage: sum_n T_n / (1 + beta T_n), T / (1 + beta T)."""
    problem, params, batch, gradient = single_stage()
    eta = 100.0
    T = {name: eta * np.sum(np.square(g["kernel"])) for name, g in gradient["only"].items()}
    wanted = {
        "nash": sum(own / (1 + BETA * own) for own in T.values()),
        "cooperative": sum(T.values()) / (1 + BETA * sum(T.values())),
    }
    for equilibrium, decrease in wanted.items():
        choices = {"curvature": identity(), "region": "fixed", "equilibrium": equilibrium}
        optimizer = ocnopt(problem, eta, beta=BETA, **choices)
        start, update = optimizer.init(params), quick_jit(optimizer.update)
        _, (state, _) = update(gradient, start, params, batch=batch)
        np.testing.assert_allclose(state.info.predicted_change, -decrease, rtol=1e-6)
    assert wanted["cooperative"] < 1 / BETA < wanted["nash"]


@pytest.mark.parametrize("value_update", ["clipped", joint_minimum])
def test_nash_has_one_value_update(value_update):
    with pytest.raises(ValueError, match="equilibrium 'nash' needs value_update 'exact'"):
        ocnopt(parallel_problem(), ETA, equilibrium="nash", value_update=value_update)


def test_unknown_equilibria_are_refused():
    with pytest.raises(ValueError, match=r"equilibrium is 'stackelberg', but must be one of coop"):
        ocnopt(parallel_problem(), ETA, equilibrium="stackelberg")


def test_players_that_do_not_share_a_stage_are_refused():
    problem = parallel_problem()
    params = parallel_params()
    del params["single"]["left"]
    with pytest.raises(ValueError, match=r"player 'left'.*'single'.*bent, right"):
        ocnopt(problem, ETA, equilibrium="nash").init(params)


def test_a_player_is_named_once():
    segment = parallel_problem().system.segments[1]
    with pytest.raises(ValueError, match="segment 'run' names a player twice"):
        replace(segment, players=("left", "left"))
