"""One training step, as a pure function of state and batch, mapped over devices.

It is the same for every architecture and every optimizer: the problem is linearised around the
current parameters, and the optimizer makes of that what it can.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.control.linearize import Keep, linearize
from ocresnet.costs import Cost, make_cost
from ocresnet.data.batches import Batch
from ocresnet.problem import Problem, per_sample_costs, stage_costs
from ocresnet.systems import network
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.network import Network
from ocresnet.systems.system import PyTree, Variables
from ocresnet.training.adaptive_optimizers import evaluation_params
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import distillation_cost

Array = jax.Array

AXIS_NAME = "batch"


class EpochTotals(NamedTuple):
    """Sums over the steps of the current epoch, part of the state so that a resumed epoch is whole.

    Attributes:
      objective: of equation (3), without weight decay, [].
      losses: training loss of each output, [outputs].
      accuracies: training accuracy of each output, [outputs]; None where the cost is not of
        classes.
      gradient_norm: norm of the gradient before clipping, [].
    """

    objective: Array
    losses: Array
    accuracies: Array | None
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
      accuracy: of the network's own output, in [0, 1]; None where the cost is not of classes.
    """

    objective: Array
    accuracy: Array | None


class TrainStep(Protocol):
    """A training step; `teacher` is the network to learn from, where there is one."""

    def __call__(
        self, state: TrainState, batch: Batch, teacher: Network | None = None
    ) -> tuple[TrainState, StepInfo]: ...


def training_problem(
    architecture: Architecture,
    config: TrainingConfig,
    *,
    cost: Cost | None = None,
    axis_name: str | None = None,
) -> Problem:
    """What a training minimises: equation (3), without weight decay.

    With gamma = 0 the exits are not computed at all: the program is that of standard training.

    Args:
      architecture: of the network.
      config: gives the stage costs, distillation and execution, and the cost unless that is given.
      cost: of an output, without distillation; None means the loss of `config`.
      axis_name: the mapped axis that batches are split over, or None on a single device.
    """
    if cost is None:
        cost = make_cost(config.loss, config.label_smoothing)
    if config.distillation > 0:
        cost = distillation_cost(cost, config.distillation, config.temperature)
    exits = architecture.outputs - 1
    return Problem(
        architecture.system(axis_name=axis_name, execution=config.execution),
        cost,
        stage_costs(config.stage_cost, exits, config.stage_cost_schedule),
    )


def init_state(
    problem: Problem,
    config: TrainingConfig,
    variables: Variables,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """The state before the first step."""
    # Copies: the step gives its argument's buffers away, and one buffer must not be two of them.
    average = jax.tree.map(jnp.copy, variables) if config.average_decay > 0 else None
    opt_state = jax.tree.map(jnp.copy, optimizer.init(variables.params))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=opt_state,
        average=average,
        totals=zero_totals(problem),
    )


def evaluated(state: TrainState) -> Variables:
    """What a state is evaluated with, and what is kept of it in the end: the moving average, if
    there is one, else the variables with the parameters that the optimizer means."""
    if state.average is not None:
        return state.average
    return _to_evaluate(state.variables, state.opt_state)


def _to_evaluate(variables: Variables, opt_state: PyTree) -> Variables:
    return variables._replace(params=evaluation_params(variables.params, opt_state))


def zero_totals(problem: Problem) -> EpochTotals:
    """The totals at the start of an epoch."""
    outputs = problem.system.outputs + 1
    zero = jnp.zeros(())
    accuracies = jnp.zeros(outputs) if problem.cost.classifies else None
    return EpochTotals(zero, jnp.zeros(outputs), accuracies, jnp.copy(zero))


def make_train_step(
    problem: Problem,
    config: TrainingConfig,
    optimizer: optax.GradientTransformation,
    keep: Keep | None = None,
    *,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> TrainStep:
    """The step of one device: the problem linearised, averaged over devices, and the update.

    The optimizer's `update` is given, beside gradient, state and parameters: `batch`, the images
    and targets of this device, the batch statistics before the step, the objective as `value`, and
    the `nominal` trajectory that the gradient comes from, if it was said what to keep of it.

    A step that is given a teacher hands its own output for the same augmented images, in inference
    mode, to the cost as a target beside the labels.

    Args:
      problem: what is minimised, as `training_problem` makes it for the same axis.
      config: the training configuration.
      optimizer: applied to the mean gradient.
      keep: what the optimizer needs of the linearised trajectory, on one device; None: of an
        optimizer that did not say so, which then has to linearise for itself what it needs.
      axis_name: the mapped axis that the batch is split over, or None on a single device.
      seed: of random factors.

    Returns:
      A function (state, batch, teacher or None) -> (state, info), where the batch has no device
      axis.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def mean_over_devices(tree: PyTree) -> PyTree:
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def random_key(step: Array) -> Array | None:
        """For random factors: another one every step, on every device."""
        if keep is None or keep.factor == "gradient":
            return None
        key = jax.random.fold_in(jax.random.key(seed), step)
        return key if axis_name is None else jax.random.fold_in(key, lax.axis_index(axis_name))

    def train_step(
        state: TrainState, batch: Batch, teacher: Network | None = None
    ) -> tuple[TrainState, StepInfo]:
        params, batch_stats = state.variables
        images = batch.images
        targets: PyTree = batch.labels
        if teacher is not None:
            targets = (batch.labels, _own_output(teacher, images, config))
        nominal = linearize(
            problem, params, batch_stats, images, targets, keep or Keep(), random_key(state.step)
        )
        losses = jnp.mean(per_sample_costs(problem, nominal.outputs, targets), axis=-1)
        right = None
        if problem.cost.classifies:
            right = jnp.mean(jnp.argmax(nominal.outputs, axis=-1) == batch.labels, axis=-1)
        value, losses, accuracies, gradient = mean_over_devices(
            (nominal.objective, losses, right, nominal.gradient)
        )
        offered = {}
        if keep is not None:
            # On a single device the mean is the gradient itself: OCNOpt sees it, and solves less.
            alone = axis_name is not None and lax.axis_size(axis_name) == 1
            offered["nominal"] = nominal._replace(gradient=gradient) if alone else nominal
        updates, opt_state = optimizer.update(
            gradient,
            state.opt_state,
            params,
            batch=(images, targets),
            batch_stats=batch_stats,
            value=value,
            **offered,
        )
        variables = Variables(optax.apply_updates(params, updates), nominal.batch_stats)
        average = state.average
        if average is not None:
            warm = (1.0 + state.step) / (10.0 + state.step)
            decay = jnp.minimum(config.average_decay, warm)
            reached = _to_evaluate(variables, opt_state)
            average = optax.incremental_update(reached, average, 1 - decay)
        metrics = EpochTotals(value, losses, accuracies, optax.tree.norm(gradient))
        totals = jax.tree.map(jnp.add, state.totals, metrics)
        state = TrainState(state.step + 1, variables, opt_state, average, totals)
        return state, StepInfo(value, None if accuracies is None else accuracies[-1])

    return train_step


def _own_output(teacher: Network, images: Array, config: TrainingConfig) -> Array:
    """What a teacher says of the images: logits [batch, classes]."""
    logits, _ = network.apply(
        teacher.architecture,
        teacher.variables,
        images,
        own_output=True,
        execution=config.execution,
    )
    return logits[-1]


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
