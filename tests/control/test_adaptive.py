"""An alignment that a bandit chooses while training."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control import adaptive, bandit
from ocresnet.control.adaptive import Adaptive
from ocresnet.control.linearize import linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.settings import Settings
from ocresnet.problem import objective
from tests.control.aligned import aligned_case, dense_problem
from tests.control.networks import BETA, ETA, random_batch
from tests.quick import quick_jit

ARMS = Adaptive(("blocks", "layers_first", "layers_last"), hold=4)


@quick_jit
def played(costs):
    """The states of all updates, for the cost that each began with."""

    def turn(state, given):
        steps, cost = given
        key = jax.random.fold_in(jax.random.key(5), steps)
        state = adaptive.choose(ARMS, state, steps, key)
        state = adaptive.learn(ARMS, state, steps, cost)
        return state, state

    return jax.lax.scan(turn, adaptive.init(ARMS), (jnp.arange(len(costs)), costs))[1]


def test_an_arm_is_held_and_pays_for_the_decrease_that_was_measured():
    costs = np.asarray([4, 4, 2, 2, 2, 3, 3, 2, 2, 1, 1, 0.5, 1, 1, 5, 5], float)
    states = played(jnp.asarray(costs))
    blocks = np.asarray(states.arm).reshape(-1, 4)
    assert (blocks == blocks[:, :1]).all() and blocks[:3, 0].tolist() == [0, 1, 2]
    halves = costs.reshape(-1, 2, 2).sum(2)
    d = (halves[:, 0] - halves[:, 1]) / halves.sum(1)
    usual = np.sqrt(np.cumsum(d**2) / np.arange(1, 5))
    losses = np.clip(0.5 - d / (4 * usual), 0, 1)
    sums = np.zeros(3)
    for block, loss in enumerate(losses):
        sums[blocks[block, 0]] += loss
        np.testing.assert_allclose(states.bandit.losses[4 * block + 3], sums, rtol=1e-6)
    np.testing.assert_array_equal(states.bandit.rounds, np.arange(1, 17) // 4)


def test_the_arm_is_that_of_the_bandit():
    costs = jnp.ones(200)
    states = played(costs)
    for block in (5, 17, 40):
        before = jax.tree.map(lambda leaf, i=4 * block - 1: leaf[i], states.bandit)
        key = jax.random.fold_in(jax.random.key(5), 4 * block)
        assert states.arm[4 * block] == bandit.choose(before, key)
    assert len(set(np.asarray(states.arm[12:]).tolist())) == 3


def test_a_cost_that_is_not_finite_has_lost_all_and_spoils_nothing():
    costs = jnp.asarray([2.0, 2.0, 1.0, 1.0, 1.0, jnp.nan, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0])
    states = played(costs)
    np.testing.assert_allclose(states.bandit.losses[-1], [0.25, 1.0, 0.25], rtol=1e-6)
    assert states.blocks[-1] == 2


def test_costs_of_zero_lose_a_half():
    np.testing.assert_allclose(played(jnp.zeros(4)).bandit.losses[-1], [0.5, 0, 0])


@pytest.mark.parametrize("form", ["stacked", "linear", "per_sample", "trajectory"])
def test_a_step_is_that_of_the_alignment_that_is_held(form):
    """Three updates, each in another arm: parameters and diagnostics, with the nominal pass that
    the settings ask for, or with the trajectory of whole blocks, which no arm takes for its own."""
    choices = {
        "stacked": {"rollout": "nonlinear"},
        "trajectory": {"rollout": "nonlinear"},
        "linear": {"rollout": "linear", "value_beta": BETA},
        "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
    }[form]
    with jax.enable_x64(True):
        case, batch = aligned_case(*dense_problem(), "blocks"), random_batch()
        arms = ("layers_first", "blocks", "layers_last")
        choices |= {"beta": BETA, "curvature": case.curvature}
        made = partial(ocnopt, case.problem, ETA, **choices)
        changing = made(alignment=Adaptive(arms, hold=2))
        names = ("feedback", "rollout", "value_beta")
        settings = {name: choices[name] for name in names if name in choices}
        keep = Settings(alignment=Adaptive(arms, hold=2), **settings).keep
        if form == "trajectory":
            keep = replace(keep, trajectory=True)

        @quick_jit
        def run(params):
            def update(carry, _):
                params, state = carry
                nominal = linearize(case.problem, params, {}, *batch, keep)
                changes, state = changing.update(
                    nominal.gradient, state, params, batch=batch, nominal=nominal
                )
                done = params, changes, state[0].info
                return (optax.apply_updates(params, changes), state), done

            return jax.lax.scan(update, (params, changing.init(params)), length=6)[1]

        @quick_jit
        def fixed(params):
            results = []
            for arm in arms:
                optimizer = made(alignment=arm)
                gradient = jax.grad(lambda p: objective(case.problem, p, {}, *batch))(params)
                changes, state = optimizer.update(
                    gradient, optimizer.init(params), params, batch=batch
                )
                results.append((changes, state[0].info))
            return results

        steps = run(case.variables.params)
        for number in range(6):
            params, changes, info = jax.tree.map(lambda leaf, i=number: leaf[i], steps)
            wanted, info_wanted = fixed(params)[number // 2]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), changes, wanted)
            stages = len(info_wanted.weights)
            np.testing.assert_allclose(info.weights[:stages], info_wanted.weights, rtol=1e-5)
            assert not np.any(info.weights[stages:])


def test_it_needs_the_cost():
    problem, variables = dense_problem()
    optimizer = ocnopt(problem, ETA, alignment="adaptive", rollout="nonlinear")
    params, batch = variables.params, random_batch()
    with pytest.raises(ValueError, match="call update with value="):
        jax.eval_shape(
            lambda params: optimizer.update(params, optimizer.init(params), params, batch=batch),
            params,
        )


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"arms": ("blocks",)}, "at least two alignments"),
        ({"arms": ("blocks", "layers")}, "alignment is 'layers', but must be one of"),
        ({"arms": ("blocks", "adaptive")}, "alignment is 'adaptive', but must be one of"),
        ({"hold": 5}, "hold is 5, but must be an even number"),
        ({"hold": 0}, "hold is 0"),
    ],
)
def test_impossible_choices_are_refused(choices, said):
    with pytest.raises(ValueError, match=said):
        Adaptive(**choices)


def test_without_feedback_there_is_nothing_to_choose():
    settings = Settings(feedback="none", alignment="adaptive")
    assert settings.adaptive is None and settings.alignments == ("blocks",)
