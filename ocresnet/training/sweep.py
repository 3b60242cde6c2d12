"""Many small runs as one program: learning rates, weight decays and seeds side by side.

Every run takes the steps that `fit` would take with that learning rate, weight decay and seed, on
one device and without records.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ocresnet.data.batches import Batch, epoch_order, training_batch
from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.trajectory import Trajectory, trajectory_sums
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.system import PyTree, Variables
from ocresnet.training.compatibility import (
    check_fit,
    check_kinds,
    check_loss,
    check_optimizer,
)
from ocresnet.training.config import TrainingConfig
from ocresnet.training.evaluation import BATCH_SIZE
from ocresnet.training.step import (
    TrainState,
    evaluated,
    init_state,
    make_train_step,
    training_problem,
)

Array = jax.Array


class Sweep(NamedTuple):
    """What the runs of a grid come to: [weight_decays, learning_rates, seeds] each.

    Attributes:
      accuracies: share of the test set classified correctly, in [0, 1]; 0 for a run that diverged.
      losses: mean over the test set.
      train_losses: mean over the training set, without augmentation and in inference mode.
      objectives: of the batch of every training step, [..., steps].
      accuracies_on_the_way: those after each of the `measured_steps`, [..., points].
      measured_on_the_way: what else was asked for there, a tree [..., points, ...]; zeros if
        nothing was.
    """

    accuracies: Any
    losses: Any
    train_losses: Any
    objectives: Any
    accuracies_on_the_way: Any
    measured_on_the_way: Any


def measured_steps(steps: int, points: int) -> np.ndarray:
    """How many of a run's steps are done at each of so many points of it, about equally far apart;
    the last one is its end.

    Raises:
      ValueError: for more points than steps.
    """
    if points > steps:
        raise ValueError(f"{points} points need at least as many steps, but there are {steps}.")
    return np.round(np.arange(1, points + 1) * steps / max(points, 1)).astype(int)


def sweep(
    architecture: Architecture,
    config: TrainingConfig,
    data: Dataset,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    together: bool = True,
    points: int = 0,
    on_the_way: Callable[[Variables], PyTree] | None = None,
) -> Sweep:
    """Train a network with every learning rate, weight decay and seed; one program is compiled.

    Args:
      architecture: of any family.
      config: everything else; its own learning rate, weight decay and seed are not used.
      data: in memory; the test set is measured after the last step.
      learning_rates, weight_decays, seeds: the grid.
      together: all runs at once; else one after the other, which is faster where a network alone
        keeps the device busy, and takes less memory.
      points: of each run where the accuracy on the test set is measured, beside its end.
      on_the_way: of the network's variables, a tree of numbers that is measured there too.

    Returns:
      Accuracies and losses of the network's own output.

    Raises:
      ValueError: if architecture, configuration and data do not fit together, for an empty grid,
        for more points than steps, for a distillation, which has no teacher here, or for shrinking,
        after which runs would differ in depth.

    Example:
      >>> rates, decays = np.logspace(-3, 0, 7), [0.0, 1e-4]
      >>> found = sweep(
      ...     architecture, config, data, learning_rates=rates, weight_decays=decays, seeds=[0]
      ... )
      >>> rates[found.accuracies[0, :, 0].argmax()]
    """
    check_kinds(architecture, config, data)
    check_fit(architecture, config, data, devices=1)
    check_loss(architecture, config, None)
    if not architecture.classifies:
        raise ValueError(
            f"a sweep measures accuracies, and a {type(architecture).__name__} has none: use fit."
        )
    check_optimizer(architecture, config, devices=1)
    if config.distillation > 0:
        raise ValueError("a sweep has no teacher: set distillation to 0.")
    if config.shrink:
        raise ValueError("a sweep has networks of one depth: set shrink to ().")
    grid = np.meshgrid(
        np.asarray(weight_decays, np.float32),
        np.asarray(learning_rates, np.float32),
        np.asarray(seeds, np.int32),
        indexing="ij",
    )
    if grid[0].size == 0:
        raise ValueError("there is nothing to run: give learning_rates, weight_decays and seeds.")
    decays, rates, all_seeds = (jnp.asarray(values.reshape(-1)) for values in grid)
    runs = [rates, all_seeds, decays]
    arrays = {part: (data.images(part), data.labels(part)) for part in ("train", "test")}
    # Arguments, not constants of the program: these would be folded by the compiler, for minutes.
    arrays = jax.device_put(arrays)
    steps = config.epochs * (data.samples("train") // config.batch_size)
    run = partial(_run, architecture, config, measured_steps(steps, points), on_the_way)
    if len(set(weight_decays)) == 1:
        # A number that is known to the program: no decay then costs nothing.
        run = partial(run, weight_decay=float(weight_decays[0]))
        runs = runs[:2]
    if together:
        results = jax.jit(jax.vmap(run, in_axes=(None, *(0 for _ in runs))))(arrays, *runs)
    else:
        compiled = jax.jit(run)
        each = [jax.device_get(compiled(arrays, *one)) for one in zip(*runs, strict=True)]
        results = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    shape = grid[0].shape
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[1:]), results)


def _run(
    architecture: Architecture,
    config: TrainingConfig,
    ends: np.ndarray,
    on_the_way: Callable[[Variables], PyTree] | None,
    arrays: dict[str, tuple[Array, Array]],
    learning_rate: Array,
    seed: Array,
    weight_decay: Array | float,
) -> Sweep:
    """One run, from start to end."""
    problem = training_problem(architecture, config)
    images, labels = arrays["train"]
    samples, optimizer = len(labels), config.optimizer
    steps = samples // config.batch_size
    schedule = optimizer.schedule_over(config.epochs, steps, learning_rate)
    transformation = optimizer.build(problem, schedule, weight_decay=weight_decay, seed=seed)
    train_step = make_train_step(
        problem, config, transformation, optimizer.keep_on(devices=1), seed=seed
    )

    measure = partial(_measure, architecture, config, problem.cost.value)

    def measured(state: TrainState) -> tuple[Array, PyTree]:
        variables = evaluated(state)
        test = measure(variables, *arrays["test"])
        accuracy = jnp.where(jnp.isfinite(test.losses[-1]), test.accuracies[-1], 0.0)
        other = jnp.zeros(()) if on_the_way is None else on_the_way(variables)
        return accuracy, other

    def take_step(
        state: TrainState, position: tuple[Array, Array, Array, Array]
    ) -> tuple[TrainState, tuple[Array, PyTree]]:
        order, epoch, step, is_end = position
        batch = training_batch(
            images,
            labels,
            order,
            seed,
            epoch,
            step,
            batch_size=config.batch_size,
            devices=1,
            augmentation=config.augmentation,
            fill=jnp.asarray(architecture.pixel_mean),
        )
        state, info = train_step(state, Batch(batch.images[0], batch.labels[0]))
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(measured, state)
        )
        if len(ends) == 0:
            return state, (info.objective, nothing)
        return state, (info.objective, lax.cond(is_end, measured, lambda _: nothing, state))

    def train_epoch(
        state: TrainState, position: tuple[Array, Array]
    ) -> tuple[TrainState, tuple[Array, PyTree]]:
        epoch, are_ends = position
        order = epoch_order(seed, epoch, samples)
        return lax.scan(
            lambda state, step: take_step(state, (order, epoch, *step)),
            state,
            (jnp.arange(steps), are_ends),
        )

    # The same for all runs side by side: only where it is true anything is measured.
    are_ends = np.isin(np.arange(1, config.epochs * steps + 1), ends).reshape(-1, steps)
    state = init_state(problem, config, architecture.init(jax.random.key(seed)), transformation)
    epochs = (jnp.arange(config.epochs), jnp.asarray(are_ends))
    state, (objectives, measurements) = lax.scan(train_epoch, state, epochs)
    variables = evaluated(state)
    test, train = measure(variables, *arrays["test"]), measure(variables, *arrays["train"])
    loss, train_loss = test.losses[-1], train.losses[-1]
    accuracy = jnp.where(jnp.isfinite(loss), test.accuracies[-1], 0.0)
    accuracies, others = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[ends - 1], measurements
    )
    return Sweep(accuracy, loss, train_loss, objectives.reshape(-1), accuracies, others)


def _measure(
    architecture: Architecture,
    config: TrainingConfig,
    loss: Any,
    variables: Variables,
    images: Array,
    labels: Array,
) -> Trajectory:
    """The means over the samples of the network's own output."""
    samples = len(labels)
    size = min(BATCH_SIZE, samples)
    index = np.arange(-(-samples // size) * size).reshape(-1, size)

    def sums(index: Array) -> Trajectory:
        inside = jnp.minimum(index, samples - 1)
        return trajectory_sums(
            architecture,
            variables,
            images[inside],
            labels[inside],
            index < samples,
            own_output=True,
            loss=loss,
            train=False,
            execution=config.execution,
        )

    parts = lax.map(sums, jnp.asarray(index))
    return jax.tree.map(lambda part: jnp.sum(part, axis=0) / samples, parts)
