"""The alignment chosen while training, by a bandit.

Notation
    arm        an alignment; it is held for a block of H updates
    J_t        cost of the batch before update t, over all devices
    J', J''    means of it over the first and the second half of a block
    d          (J' - J'') / (J' + J''), the relative decrease that was measured; in [-1, 1]
    D          root of the mean of d^2 over all blocks so far, this one included
    l          loss of the arm:  1/2 - d / (4 D), cut to [0, 1]

An arm that changes nothing loses 1/2, one whose decrease is twice as large as usual loses nothing.
The scale D makes the loss see differences of any size, early and late in training alike; costs are
at least zero. A block whose cost is not finite has lost 1, and does not count for D.

Arms are drawn from the seed and the block's number, losses are means over all devices: so all
devices choose alike, and a resumed run chooses what it would have chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import bandit
from ocresnet.control.alignment import Alignment, check_alignment
from ocresnet.control.bandit import BanditState

Array = jax.Array
T = TypeVar("T")


@dataclass(frozen=True)
class Adaptive:
    """Alignments that a bandit (EXP3++) chooses from.

    Attributes:
      arms: the alignments.
      hold: updates that an arm is held for, H: an even number.

    Raises:
      ValueError: for fewer than two arms, what is no alignment, and an impossible number.
    """

    arms: tuple[Alignment, ...] = ("blocks", "layers_first", "layers_last")
    hold: int = 50

    def __post_init__(self) -> None:
        if not isinstance(self.arms, tuple) or len(self.arms) < 2:
            raise ValueError(
                f"arms is {self.arms!r}, but must be a tuple of at least two alignments."
            )
        for arm in self.arms:
            check_alignment(arm)
        whole = type(self.hold) is int and self.hold >= 2
        if not whole or self.hold % 2:
            raise ValueError(
                f"hold is {self.hold!r}, but must be an even number of updates, at least 2."
            )


class AdaptiveState(NamedTuple):
    """Attributes:
    bandit: what has been learnt of the arms.
    arm: that of the current block, int32.
    halves: sums of the cost over the halves of the current block, [2].
    squares: sum of d^2 over the blocks whose costs were finite.
    blocks: how many these are.
    """

    bandit: BanditState
    arm: Array
    halves: Array
    squares: Array
    blocks: Array


def init(choices: Adaptive) -> AdaptiveState:
    """The state before the first update."""
    zero = jnp.zeros((), jnp.float32)
    return AdaptiveState(
        bandit=bandit.init(len(choices.arms)),
        arm=jnp.zeros((), jnp.int32),
        halves=jnp.zeros(2, jnp.float32),
        squares=zero,
        blocks=jnp.copy(zero),
    )


def play(
    choices: Adaptive,
    state: AdaptiveState,
    steps: Array,
    key: Array,
    value: Array,
    arms: Sequence[Callable[[], T]],
) -> tuple[T, AdaptiveState]:
    """What the arm of this update gives, and the new state.

    Args:
      choices: arms, and how long they are held.
      state: before the update.
      steps: updates done.
      key: of this update, the same on all devices.
      value: J_t, the same on all devices, [].
      arms: one function for each; their results have the same structure.
    """
    state = choose(choices, state, steps, key)
    result = lax.switch(state.arm, arms)
    return result, learn(choices, state, steps, value)


def choose(choices: Adaptive, state: AdaptiveState, steps: Array, key: Array) -> AdaptiveState:
    """The state with the arm of this update: at the first of a block a new one.

    Args:
      choices: arms, and how long they are held.
      state: before the update.
      steps: updates done.
      key: of this update, the same on all devices.
    """
    begins = steps % choices.hold == 0
    arm = jnp.where(begins, bandit.choose(state.bandit, key), state.arm)
    return state._replace(arm=arm, halves=jnp.where(begins, 0.0, state.halves))


def learn(choices: Adaptive, state: AdaptiveState, steps: Array, value: Array) -> AdaptiveState:
    """Take in the cost that the update began with; at the last of a block, the arm's loss.

    Args:
      choices: arms, and how long they are held.
      state: as `choose` gave it.
      steps: updates done before this one.
      value: J_t, the same on all devices, [].
    """
    position = steps % choices.hold
    half = (position >= choices.hold // 2).astype(jnp.int32)
    halves = state.halves.at[half].add(value.astype(jnp.float32))
    total = jnp.sum(jnp.abs(halves))
    decrease = (halves[0] - halves[1]) / jnp.where(total > 0, total, 1.0)
    finite = jnp.isfinite(decrease)
    squares = state.squares + jnp.where(finite, jnp.square(decrease), 0.0)
    blocks = state.blocks + finite
    usual = jnp.sqrt(squares / jnp.maximum(blocks, 1.0))
    loss = 0.5 - decrease / (4 * jnp.where(usual > 0, usual, 1.0))
    loss = jnp.where(finite, jnp.clip(loss, 0.0, 1.0), 1.0)
    learnt = AdaptiveState(
        bandit.update(state.bandit, state.arm, loss), state.arm, halves, squares, blocks
    )
    ends = position == choices.hold - 1
    return jax.tree.map(
        lambda new, old: jnp.where(ends, new, old), learnt, state._replace(halves=halves)
    )
