"""One training step, as a pure function of state and batch, mapped over devices."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.data.batches import Batch
from ocresnet.stage_cost.objective import (
    PerSampleLoss,
    objective,
    output_losses,
    per_sample_loss,
    stage_costs,
)
from ocresnet.systems import resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.systems.system import PyTree, Variables
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import distillation_loss

Array = jax.Array

AXIS_NAME = "batch"


class EpochTotals(NamedTuple):
    """Sums over the steps of the current epoch, part of the state so that a resumed epoch is whole.

    Attributes:
      objective: of equation (3), without weight decay, [].
      losses: training loss of each output, [outputs].
      accuracies: training accuracy of each output, [outputs].
      gradient_norm: norm of the gradient before clipping, [].
    """

    objective: Array
    losses: Array
    accuracies: Array
    gradient_norm: Array


class TrainState(NamedTuple):
    """All that a run needs to continue.

    Attributes:
      step: training steps done, int32.
      variables: parameters and batch statistics.
      opt_state: state of the optimizer.
      average: moving average of `variables`, or None.
      totals: sums of the epoch's metrics.
    """

    step: Array
    variables: Variables
    opt_state: PyTree
    average: Variables | None
    totals: EpochTotals


class StepInfo(NamedTuple):
    """Diagnostics of one step, means over the global batch.

    Attributes:
      objective: of equation (3), without weight decay.
      accuracy: of the network's own output, in [0, 1].
    """

    objective: Array
    accuracy: Array


class TrainStep(Protocol):
    """A training step; `teacher` is the network to learn from, where there is one."""

    def __call__(
        self, state: TrainState, batch: Batch, teacher: Network | None = None
    ) -> tuple[TrainState, StepInfo]: ...


def training_outputs(network: ResNetConfig, config: TrainingConfig) -> int:
    """How many outputs a training step computes: all, or without stage cost only the last."""
    return network.outputs if config.stage_cost > 0 else 1


def init_state(
    network: ResNetConfig,
    config: TrainingConfig,
    variables: Variables,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    # A copy of its own: the step gives its argument's buffers away, one buffer must not be two.
    average = jax.tree.map(jnp.copy, variables) if config.average_decay > 0 else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        average=average,
        totals=zero_totals(training_outputs(network, config)),
    )


def zero_totals(outputs: int) -> EpochTotals:
    """The totals at the start of an epoch."""
    zero = jnp.zeros(())
    return EpochTotals(zero, jnp.zeros(outputs), jnp.zeros(outputs), jnp.copy(zero))


def make_train_step(
    network: ResNetConfig,
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    loss: PerSampleLoss | None = None,
) -> TrainStep:
    """The step of one device: gradient of equation (3), averaged over devices, and the update.

    With gamma = 0 the exits are not computed at all: the program is that of standard training.
    A step that is given a teacher takes the loss of `distillation` for every output, towards the
    teacher's own output for the same augmented images, in inference mode.

    Args:
      network: the architecture.
      config: the training configuration.
      optimizer: applied to the mean gradient.
      axis_name: the mapped axis that the batch is split over, or None on a single device.
      loss: any per-sample loss; None means that of `config`.

    Returns:
      A function (state, batch, teacher or None) -> (state, info), where the batch has no device
      axis.
    """
    if config.stage_cost == 0:
        network = replace(network, exits="none")
    per_sample = loss or per_sample_loss(config.loss, config.label_smoothing)
    gammas = stage_costs(config.stage_cost, network.outputs - 1, config.stage_cost_schedule)

    def mean_over_devices(tree: PyTree) -> PyTree:
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def loss_and_aux(
        params: PyTree, batch_stats: PyTree, batch: Batch, teacher_logits: Array | None
    ) -> tuple[Array, tuple[Array, Array, PyTree]]:
        logits, batch_stats = resnet.apply(
            network,
            Variables(params, batch_stats),
            batch.images,
            train=True,
            axis_name=axis_name,
            execution=config.execution,
        )
        losses = output_losses(per_sample, logits, batch.labels)
        if teacher_logits is not None:
            divergences = distillation_loss(logits, teacher_logits, config.temperature)
            weight = config.distillation
            losses = (1 - weight) * losses + weight * jnp.mean(divergences, axis=-1)
        accuracies = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels, axis=-1)
        return objective(losses, gammas), (losses, accuracies, batch_stats)

    def train_step(
        state: TrainState, batch: Batch, teacher: Network | None = None
    ) -> tuple[TrainState, StepInfo]:
        params, batch_stats = state.variables
        teacher_logits = None
        if teacher is not None:
            own_output = replace(teacher.config, exits="none")
            teacher_logits = resnet.apply(
                own_output, teacher.variables, batch.images, execution=config.execution
            )[0][-1]
        (value, (losses, accuracies, batch_stats)), gradient = jax.value_and_grad(
            loss_and_aux, has_aux=True
        )(params, batch_stats, batch, teacher_logits)
        value, losses, accuracies, gradient = mean_over_devices(
            (value, losses, accuracies, gradient)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        variables = Variables(optax.apply_updates(params, updates), batch_stats)
        average = state.average
        if average is not None:
            warm = (1.0 + state.step) / (10.0 + state.step)
            decay = jnp.minimum(config.average_decay, warm)
            average = optax.incremental_update(variables, average, 1 - decay)
        metrics = EpochTotals(value, losses, accuracies, optax.tree.norm(gradient))
        totals = jax.tree.map(jnp.add, state.totals, metrics)
        state = TrainState(state.step + 1, variables, opt_state, average, totals)
        return state, StepInfo(value, accuracies[-1])

    return train_step


def map_over_devices(train_step: TrainStep, devices: Sequence[jax.Device]) -> TrainStep:
    """Map a step made with `axis_name=AXIS_NAME` over devices.

    The state carries no device axis: one device and many have the same checkpoint. The buffers of
    the state that is passed in are reused; those of the teacher are not.

    Args:
      train_step: (state, batch, teacher or None) -> (state, info).
      devices: the devices to run on.

    Returns:
      The same function, for batches with a leading device axis.
    """
    mapped = jax.pmap(
        train_step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )

    def step(
        state: TrainState, batch: Batch, teacher: Network | None = None
    ) -> tuple[TrainState, StepInfo]:
        return mapped(state, batch, teacher)

    return step
