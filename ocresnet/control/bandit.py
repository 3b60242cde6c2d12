"""EXP3++: a bandit for stochastic and for adversarial losses alike.

Notation (Seldin and Slivkins 2014; Seldin and Lugosi 2017)
    K, a       number of arms; one of them
    t          rounds, that to come included;  l in [0, 1] the loss of the arm that was played
    p_t(a)     probability that arm a is played
    L(a)       sum of the losses l / p of the arm, an unbiased estimate of what it would have lost
    N(a)       how often it was played, and its mean loss over these rounds
    Delta(a)   estimated gap: how much worse than the best arm it is for certain

    u_t     = 1/2 sqrt(ln K / (t K)),   rho(a) ~ exp(-u_t L(a))
    xi(a)   = 256 ln t / (t Delta(a)^2)
    eps(a)  = min{1 / (2 K), u_t, xi(a)},   p_t(a) = (1 - sum eps) rho(a) + eps(a)
    Delta(a) = max{0, lcb(a) - min ucb},  bounds: mean -+ sqrt(3 ln(t K^(1/3)) / (2 N)), in [0, 1]

In the first K rounds each arm is played once. Against any sequence of losses the expected regret
after t rounds is at most 4 sqrt(K t ln K) (more by the K first rounds); where losses are drawn from
fixed distributions it grows with the logarithm of t alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

CONFIDENCE = 3.0
EXPLORATION = 256.0


class BanditState(NamedTuple):
    """Attributes:
    rounds: played so far, int32.
    estimates: L, [K].
    losses: sums of the losses of every arm as they were, [K].
    plays: N, [K].
    """

    rounds: Array
    estimates: Array
    losses: Array
    plays: Array


def init(arms: int) -> BanditState:
    """The state before the first round.

    Raises:
      ValueError: for no arms.
    """
    if arms < 1:
        raise ValueError(f"a bandit has {arms} arms, but needs at least one.")
    zeros = jnp.zeros(arms, jnp.float32)
    return BanditState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)


def probabilities(state: BanditState) -> Array:
    """p_t of every arm in the round to come, [K]."""
    arms = state.plays.shape[0]
    time = state.rounds.astype(jnp.float32) + 1
    rate = 0.5 * jnp.sqrt(math.log(arms) / (time * arms))
    explored = jnp.minimum(_gap_exploration(state, time), jnp.minimum(1 / (2 * arms), rate))
    exploited = jax.nn.softmax(-rate * state.estimates)
    drawn = (1 - jnp.sum(explored)) * exploited + explored
    return jnp.where(
        state.rounds < arms, jax.nn.one_hot(state.rounds, arms, dtype=jnp.float32), drawn
    )


def choose(state: BanditState, key: Array) -> Array:
    """The arm that is played in the round to come, int32."""
    return jax.random.categorical(key, jnp.log(probabilities(state))).astype(jnp.int32)


def update(state: BanditState, arm: Array, loss: Array) -> BanditState:
    """Take in the loss of the arm that `choose` chose in this state.

    Args:
      state: before the round.
      arm: that was played, int32.
      loss: of that arm, in [0, 1].
    """
    loss = loss.astype(jnp.float32)
    played = jax.nn.one_hot(arm, state.plays.shape[0], dtype=jnp.float32)
    return BanditState(
        rounds=state.rounds + 1,
        estimates=state.estimates + played * loss / probabilities(state)[arm],
        losses=state.losses + played * loss,
        plays=state.plays + played,
    )


def _gap_exploration(state: BanditState, time: Array) -> Array:
    """xi: the less an arm is played, the surer it is that another one is better."""
    arms, plays = state.plays.shape[0], jnp.maximum(state.plays, 1.0)
    mean = state.losses / plays
    logarithm = jnp.log(time) + math.log(arms) / CONFIDENCE
    width = jnp.sqrt(CONFIDENCE * logarithm / (2 * plays))
    lower, upper = (jnp.clip(mean + side * width, 0.0, 1.0) for side in (-1, 1))
    gap = jnp.maximum(lower - jnp.min(upper), 0.0)
    sure = EXPLORATION * jnp.log(time) / (time * jnp.square(jnp.where(gap > 0, gap, 1.0)))
    return jnp.where(gap > 0, sure, jnp.inf)
