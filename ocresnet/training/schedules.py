"""How the learning rate changes over a run, whatever its number of epochs."""

from collections.abc import Sequence
from typing import Literal

import jax
import optax

Array = jax.Array

ScheduleName = Literal["constant", "milestones", "cosine"]


def make_schedule(
    name: ScheduleName,
    learning_rate: float | Array,
    *,
    epochs: int,
    steps_per_epoch: int,
    milestones: Sequence[float] = (),
    decay_factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """Learning rate alpha at a step: a linear warm-up, times one of

    constant     alpha
    milestones   alpha, multiplied by the decay factor at every milestone
    cosine       alpha / 2 (1 + cos(pi t)), where t goes from 0 to 1 over the run

    Args:
      name: which.
      learning_rate: alpha.
      epochs: of the run.
      steps_per_epoch: training steps in an epoch.
      milestones: whole numbers of epochs, or shares of the run's epochs.
      decay_factor: see above.
      warmup_epochs: the learning rate rises linearly over so many epochs, in equal steps of which
        the first is the first step's.

    Returns:
      A function from the step, counted from 0, to the learning rate.
    """
    if name == "milestones":
        boundaries: dict[int, float] = {}
        for milestone in milestones:
            at = milestone if isinstance(milestone, int) else milestone * epochs
            step = round(at * steps_per_epoch)
            boundaries[step] = boundaries.get(step, 1.0) * decay_factor
        schedule = optax.piecewise_constant_schedule(learning_rate, boundaries)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps_per_epoch)
    else:
        schedule = optax.constant_schedule(learning_rate)
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_steps == 0:
        return schedule
    # The first step already learns, and step `warmup_steps` is the first at the full rate.
    warmup = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
    return lambda step: schedule(step) * warmup(step)
