"""Many short training runs of one small network: what the optimizer experiments share.

A method is a base optimizer and what OCNOpt adds to it. All runs of a method (learning rates,
weight decays, seeds) are one compiled program.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ocresnet.control.curvature import Curvature, diagonal, ekfac, identity
from ocresnet.control.nominal import linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.problem import ControlProblem, outputs_of
from ocresnet.control.settings import Feedback, RolloutKind
from ocresnet.systems.system import Variables, rollout

Array = jax.Array

Base = Literal["sgd", "rmsprop", "adam", "ekfac"]


@dataclass(frozen=True)
class Method:
    """A base optimizer and what is added to it; the fields are those of `ocnopt`.

    Attributes:
      clip: largest norm of the gradient (0: not clipped).
      refresh: updates between two estimates of EKFAC's factors, and of its eigenvectors.
    """

    base: Base
    feedback: Feedback = "none"
    rollout: RolloutKind = "nonlinear"
    groups: int = 1
    beta: float = 1.0
    value_beta: float | None = None
    value_update: Literal["exact", "clipped", "none"] = "exact"
    forward_feedback: bool = True
    momentum: float = 0.0
    clip: float = 0.0
    refresh: tuple[int, int] = (5, 20)

    @property
    def curvature(self) -> Curvature:
        """The curvature that the base optimizer stands for."""
        if self.base == "ekfac":
            return ekfac(factor_every=self.refresh[0], eigen_every=self.refresh[1])
        return diagonal() if self.base == "rmsprop" else identity()

    @property
    def needs_trajectory(self) -> bool:
        """Whether its second forward pass needs states and costates."""
        walks = self.rollout == "nonlinear" and self.forward_feedback
        return self.feedback == "per_sample" or (self.feedback != "none" and walks)

    def transformation(
        self,
        problem: ControlProblem,
        learning_rate: float | Array | optax.Schedule,
        weight_decay: float | Array,
    ) -> optax.GradientTransformationExtraArgs:
        """The method as an optax transformation with decoupled weight decay."""
        if self.base == "adam":
            return optax.chain(
                optax.scale_by_adam(),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(learning_rate),
            )
        control = ocnopt(
            problem,
            learning_rate,
            momentum=self.momentum or None,
            weight_decay=weight_decay,
            curvature=self.curvature,
            feedback=self.feedback,
            rollout=self.rollout,
            groups=self.groups,
            beta=self.beta,
            value_beta=self.value_beta,
            value_update=self.value_update,
            forward_feedback=self.forward_feedback,
        )
        if self.clip:
            return optax.chain(optax.clip_by_global_norm(self.clip), control)
        return control


class Task(NamedTuple):
    """A network and its data.

    Attributes:
      problem: system and costs.
      init: key -> variables.
      train_images, train_labels, test_images, test_labels: arrays, images as the system takes
        them.
    """

    problem: ControlProblem
    init: Callable[[Array], Variables]
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


class Result(NamedTuple):
    """Of one run (or of many, stacked).

    Attributes:
      accuracy: on the test set after the last step, percent.
      train_loss: mean over the training set after the last step, in inference mode.
    """

    accuracy: Any
    train_loss: Any


class Run(NamedTuple):
    """The pieces of a training run, as pure functions.

    Attributes:
      start: (learning rate, weight decay, seed) -> state and batches [steps, batch] of indices.
      advance: (state, learning rate, weight decay, indices [steps, batch]) -> state and the mean
        training loss.
    """

    start: Callable[[Array, Array, Array], tuple[Any, Array]]
    advance: Callable[[Any, Array, Array, Array], tuple[Any, Array]]


def make_run(
    task: Task,
    method: Method,
    epochs: int,
    batch_size: int,
    schedule: Callable[[Array], Array] | None = None,
) -> Run:
    """Training of one network with one method.

    Args:
      task: network and data.
      method: the optimizer.
      epochs: passes over the training set.
      batch_size: samples a step.
      schedule: factor of the learning rate over steps; None: constant.
    """
    problem = task.problem

    def optimizer(
        learning_rate: Array, weight_decay: Array
    ) -> optax.GradientTransformationExtraArgs:
        if schedule is None:
            return method.transformation(problem, learning_rate, weight_decay)
        return method.transformation(
            problem, lambda step: learning_rate * schedule(step), weight_decay
        )

    def start(learning_rate: Array, weight_decay: Array, seed: Array) -> tuple[Any, Array]:
        key = jax.random.key(seed)
        variables = task.init(key)
        tx = optimizer(learning_rate, weight_decay)
        order = _orders(key, len(task.train_labels), epochs, batch_size)
        return (variables, tx.init(variables.params)), order

    def advance(
        state: Any, learning_rate: Array, weight_decay: Array, order: Array
    ) -> tuple[Any, Array]:
        tx = optimizer(learning_rate, weight_decay)

        def step(state: Any, indices: Array) -> tuple[Any, Array]:
            variables, opt_state = state
            images, labels = task.train_images[indices], task.train_labels[indices]
            nominal = linearize(
                problem,
                variables.params,
                variables.batch_stats,
                images,
                labels,
                groups=method.groups,
                keep_trajectory=method.needs_trajectory,
                keep_layers=method.feedback == "per_sample",
            )
            updates, opt_state = tx.update(
                nominal.gradient,
                opt_state,
                variables.params,
                batch=(images, labels),
                batch_stats=variables.batch_stats,
                nominal=nominal,
            )
            params = optax.apply_updates(variables.params, updates)
            return (Variables(params, nominal.batch_stats), opt_state), nominal.objective

        state, losses = lax.scan(step, state, order)
        return state, jnp.mean(losses)

    return Run(start, advance)


def run_whole(
    task: Task, run: Run, learning_rate: Array, weight_decay: Array, seed: Array
) -> Result:
    """One run from start to end."""
    state, order = run.start(learning_rate, weight_decay, seed)
    state, _ = run.advance(state, learning_rate, weight_decay, order)
    accuracy = evaluate(task, state[0], task.test_images, task.test_labels)[0]
    train_loss = evaluate(task, state[0], task.train_images, task.train_labels)[1]
    return Result(accuracy, train_loss)


def evaluate(task: Task, variables: Variables, images: Array, labels: Array) -> tuple[Array, Array]:
    """Accuracy in percent (0 for outputs that are not finite) and mean cost, in inference mode."""
    problem = task.problem
    chunk = max(size for size in range(1, 513) if len(labels) % size == 0)

    def of_chunk(part: tuple[Array, Array]) -> tuple[Array, Array]:
        state = problem.system.initial_state(part[0])
        logits = outputs_of(rollout(problem.system, variables, state, train=False))[-1]
        right = jnp.argmax(logits, axis=-1) == part[1]
        right &= jnp.all(jnp.isfinite(logits), axis=-1)
        return jnp.mean(right), jnp.mean(problem.cost.value(logits, part[1]))

    shape = (-1, chunk)
    parts = (images.reshape(*shape, *images.shape[1:]), labels.reshape(shape))
    right, cost = lax.map(of_chunk, parts)
    return 100 * jnp.mean(right), jnp.mean(cost)


def run_grid(
    task: Task,
    run: Run,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    seeds: Sequence[int],
    together: bool,
) -> Result:
    """All runs of a grid: arrays with leading axes [weight_decays, learning_rates, seeds].

    Args:
      task, run: see `make_run`.
      learning_rates, weight_decays, seeds: the grid.
      together: run all at once (small dense networks) instead of one after the other.
    """
    grid = jnp.meshgrid(
        jnp.asarray(weight_decays), jnp.asarray(learning_rates), jnp.asarray(seeds), indexing="ij"
    )
    decay, rate, seed = (leaf.reshape(-1) for leaf in grid)
    if together:
        result = jax.jit(jax.vmap(partial(run_whole, task, run)))(rate, decay, seed)
    else:
        compiled = jax.jit(partial(run_whole, task, run))
        results = [compiled(*one) for one in zip(rate, decay, seed, strict=True)]
        result = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    shape = grid[0].shape
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[1:]), result)


def decades_within(
    learning_rates: Sequence[float], accuracies: np.ndarray, best: float, points: float = 1.0
) -> float:
    """log10 of the largest contiguous range of learning rates within `points` of `best`."""
    good = accuracies >= best - points
    longest, start = 0.0, None
    for index, ok in enumerate(good):
        if not ok:
            start = None
            continue
        start = index if start is None else start
        longest = max(longest, float(np.log10(learning_rates[index] / learning_rates[start])))
    return longest


def describe(method: Method) -> dict[str, Any]:
    """The method's fields that are not at their defaults."""
    default = asdict(Method(method.base))
    return {
        name: value
        for name, value in asdict(method).items()
        if name == "base" or value != default[name]
    }


def _orders(key: Array, samples: int, epochs: int, batch_size: int) -> Array:
    """Indices of every batch, [steps, batch]: a new permutation every epoch."""
    keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
    whole = samples // batch_size * batch_size
    orders = jax.vmap(lambda key: jax.random.permutation(key, samples)[:whole])(keys)
    return orders.reshape(-1, batch_size)
