"""How a network that was cut is trained on: the run's own settings, for a few epochs."""

import math
from dataclasses import replace

from ocresnet.training.config import TrainingConfig


def finetuning_config(
    training: TrainingConfig,
    *,
    epochs: int,
    learning_rate: float,
    distillation: float = 0.0,
    temperature: float = TrainingConfig.temperature,
) -> TrainingConfig:
    """The training configuration of a run, for a few epochs after the cut.

    Without stage cost, cuts on the way and warm-up; the last third of the epochs at a tenth of the
    learning rate.

    Args:
      training: how the whole network was trained.
      epochs: passes over the training set.
      learning_rate: of the run's optimizer, before the schedule.
      distillation: weight of a teacher's outputs in the loss, in [0, 1].
      temperature: of the softmax that distillation compares.

    Raises:
      ValueError: for an impossible value, saying what is allowed.

    Example:
      >>> config = finetuning_config(training, epochs=5, learning_rate=0.01, distillation=0.5)
      >>> fit(small.architecture, config, data, initial=small, teacher=whole)
    """
    milestone = math.ceil(2 * epochs / 3)
    optimizer = replace(
        training.optimizer,
        learning_rate=learning_rate,
        schedule="milestones",
        milestones=(milestone,) if 0 < milestone < epochs else (),
        decay_factor=0.1,
        warmup_epochs=0.0,
    )
    return replace(
        training,
        epochs=epochs,
        optimizer=optimizer,
        stage_cost=0.0,
        shrink=(),
        distillation=distillation,
        temperature=temperature,
    )
