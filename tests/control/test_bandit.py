"""EXP3++ on problems whose answer is known."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control import bandit

ROUNDS, SEEDS = 20_000, 8
MEANS = jnp.asarray([0.5, 0.3, 0.5, 0.6])


@partial(jax.jit, static_argnames="uniform")
def play(losses, seed, uniform=False):
    """The arms of every round, for losses [rounds, arms]."""

    def turn(state, given):
        number, loss = given
        key = jax.random.fold_in(jax.random.key(seed), number)
        arm = bandit.choose(state, key)
        if uniform:
            arm = jax.random.randint(key, (), 0, len(loss))
        return bandit.update(state, arm, loss[arm]), arm

    rounds, arms = losses.shape
    state, played = jax.lax.scan(turn, bandit.init(arms), (jnp.arange(rounds), losses))
    return state, played


def drawn(seed):
    """Bernoulli losses with these means."""
    return (jax.random.uniform(jax.random.key(100 + seed), (ROUNDS, 4)) < MEANS).astype(float)


def regret(losses, arms):
    """Of every round so far, against the best arm of them all: [rounds]."""
    paid = np.take_along_axis(np.asarray(losses), np.asarray(arms)[:, None], 1)[:, 0]
    best = np.asarray(losses)[:, np.asarray(losses).sum(0).argmin()]
    return np.cumsum(paid - best)


def test_losses_drawn_at_random_teach_it_the_best_arm():
    """The regret grows more slowly than the rounds, is far below that of a player who does not
    learn, and the best arm is played nearly always in the end."""
    regrets, uniform, ends = [], [], []
    for seed in range(SEEDS):
        losses = drawn(seed)
        _, arms = play(losses, seed)
        regrets.append(regret(losses, arms))
        uniform.append(regret(losses, play(losses, seed, uniform=True)[1]))
        ends.append(np.mean(np.asarray(arms)[-ROUNDS // 10 :] == 1))
    mean = np.mean(regrets, axis=0)
    assert mean[-1] < 4 * mean[ROUNDS // 16]
    assert mean[-1] < 0.15 * np.mean(uniform, axis=0)[-1]
    assert np.mean(ends) > 0.9


def test_an_adversary_gains_no_more_than_the_bound():
    """The best arm changes places, in runs that grow, and is the first one over all of them."""
    arms = 4
    length = np.arange(ROUNDS)
    turn = (np.log2(length + 1).astype(int)) % arms
    losses = np.ones((ROUNDS, arms), np.float32)
    losses[length, turn] = 0.0
    losses[:, 0] = np.where(turn == 0, 0.0, np.where(length % 3 == 0, 0.0, 1.0))
    found = [regret(losses, play(jnp.asarray(losses), seed)[1])[-1] for seed in range(SEEDS)]
    bound = 4 * math.sqrt(arms * ROUNDS * math.log(arms)) + arms
    assert np.mean(found) < bound
    uniform = regret(losses, play(jnp.asarray(losses), 0, uniform=True)[1])[-1]
    assert uniform > bound


def test_every_arm_is_played_first():
    _, arms = play(drawn(0), 3)
    np.testing.assert_array_equal(arms[:4], np.arange(4))


def test_the_seed_alone_decides():
    _, first = play(drawn(0), 3)
    _, again = play(drawn(0), 3)
    _, other = play(drawn(0), 4)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.parametrize("rounds", [3, 40, 10**9])
def test_the_formulas_in_plain_numbers(rounds):
    """Written out in float64; after very many rounds the gaps say how much is explored."""
    plays = np.asarray([0.2, 0.5, 0.3]) * rounds
    sums, estimates = plays * [0.9, 0.1, 0.3], np.asarray([0.7, 0.1, 0.4]) * rounds**0.5
    state = bandit.BanditState(*map(jnp.asarray, (rounds, estimates, sums, plays)))
    t = rounds + 1
    rate = 0.5 * math.sqrt(math.log(3) / (t * 3))
    rho = np.exp(-rate * estimates)
    radius = np.sqrt(3 * math.log(t * 3 ** (1 / 3)) / (2 * plays))
    low, high = np.clip(sums / plays - radius, 0, 1), np.clip(sums / plays + radius, 0, 1)
    gap = np.maximum(0, low - high.min())
    with np.errstate(divide="ignore"):
        xi = 256 * math.log(t) / (t * gap**2)
    explored = np.minimum(np.minimum(1 / 6, rate), xi)
    assert (explored[0] == xi[0]) == (rounds == 10**9)
    expected = (1 - explored.sum()) * rho / rho.sum() + explored
    np.testing.assert_allclose(bandit.probabilities(state), expected, rtol=1e-4)

    new = bandit.update(state, jnp.asarray(2), jnp.asarray(0.5))
    assert new.rounds == t
    np.testing.assert_allclose(new.estimates - state.estimates, [0, 0, 0.5 / expected[2]], 1e-2)
    np.testing.assert_allclose(new.losses[2], sums[2] + 0.5, rtol=1e-6)
    np.testing.assert_allclose(new.plays[2], plays[2] + 1, rtol=1e-6)


def test_one_arm_is_played_always():
    state, arms = play(jnp.ones((10, 1)), 0)
    assert not np.any(np.asarray(arms))
    assert np.isfinite(np.asarray(state.estimates)).all()


def test_no_arm_is_refused():
    with pytest.raises(ValueError, match="needs at least one"):
        bandit.init(0)
