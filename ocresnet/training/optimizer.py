"""The paper's optimizer (A.1): SGD with momentum, step-wise learning rate and weight decay."""

import optax

from ocresnet.stage_cost.objective import separate_exit_mask, weight_decay_mask
from ocresnet.systems.system import PyTree
from ocresnet.training.config import TrainingConfig


def learning_rate_schedule(config: TrainingConfig, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate alpha at a step: linear warm-up, then divided at the milestones.

    Args:
      config: `learning_rate`, `milestones`, `decay_factor` and `warmup_epochs`.
      steps_per_epoch: training steps in an epoch.

    Returns:
      A function from the step, counted from 0, to the learning rate.
    """
    boundaries = {
        milestone * steps_per_epoch: config.decay_factor for milestone in config.milestones
    }
    constant = optax.piecewise_constant_schedule(config.learning_rate, boundaries)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps == 0:
        return constant
    # The first step already learns, and step `warmup_steps` is the first at the full rate.
    warmup = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
    return lambda step: constant(step) * warmup(step)


def paper_optimizer(
    config: TrainingConfig, params: PyTree, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Clipping, weight decay, momentum, learning rate, and alpha/gamma for separate exit heads.

    A separate head sees its loss only through gamma L(yhat_k); at the learning rate alpha/gamma it
    moves as the output block does (A.1). As in the usual parameter groups, its weight decay is
    scaled with that rate too.

    Args:
      config: the training configuration.
      params: the parameters, for their structure.
      steps_per_epoch: training steps in an epoch.

    Returns:
      An optax transformation for exactly this tree of parameters.
    """
    transformations = []
    if config.gradient_clip > 0:
        transformations.append(optax.clip_by_global_norm(config.gradient_clip))
    if config.weight_decay > 0:
        mask = weight_decay_mask(params, config.weight_decay_on)
        transformations.append(optax.add_decayed_weights(config.weight_decay, mask))
    schedule = learning_rate_schedule(config, steps_per_epoch)
    transformations.append(optax.sgd(schedule, momentum=config.momentum or None))
    if config.stage_cost > 0:
        exits = separate_exit_mask(params)
        transformations.append(optax.masked(optax.scale(1 / config.stage_cost), exits))
    return optax.chain(*transformations)
