"""A training step on a fixed batch, compiled, to be timed."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.data.batches import Batch
from ocresnet.systems.architecture import Architecture
from ocresnet.training.config import TrainingConfig
from ocresnet.training.step import init_state, make_train_step, training_problem

STEPS_PER_EPOCH = 100
"""For the schedule of the learning rate; any number."""


class TrainingStep:
    """The step of `fit` on one device, its own state and a fixed batch; calling it takes one.

    Attributes:
      variables: before the first step.
      first_objective: of the first step, which is taken at once.
      first_call_seconds: what compiling and that step took.
      taken: how many steps.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: TrainingConfig,
        images: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        """Compile the step, and take it once.

        Args:
          architecture, config: what is trained, and how.
          images, labels: the batch.
        """
        problem, optimizer = training_problem(architecture, config), config.optimizer
        schedule = optimizer.schedule_over(config.epochs, STEPS_PER_EPOCH)
        transformation = optimizer.build(problem, schedule, seed=config.seed)
        self.variables = jax.jit(architecture.init)(jax.random.key(config.seed))
        state = init_state(problem, config, self.variables, transformation)
        # Copies: every buffer of the state is given away with the first step.
        self._state = jax.tree.map(jnp.array, state)
        self._batch = Batch(jnp.asarray(images), jnp.asarray(labels))
        step = make_train_step(
            problem, config, transformation, optimizer.keep_on(devices=1), seed=config.seed
        )
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self._state, self._batch)
        self._compiled = lowered.compile()
        self.taken = 0
        self.first_objective = self()
        self.first_call_seconds = time.perf_counter() - start

    def __call__(self) -> float:
        """Take a step, and wait for it; returns the objective before it."""
        self._state, info = self._compiled(self._state, self._batch)
        jax.block_until_ready(self._state)
        self.taken += 1
        return float(info.objective)

    def seconds(self, steps: int) -> float:
        """Mean time of a step, over so many."""
        start = time.perf_counter()
        for _ in range(steps):
            self()
        return (time.perf_counter() - start) / steps

    @property
    def temporary_megabytes(self) -> float:
        """What XLA allocates for intermediate values."""
        analysis = self._compiled.memory_analysis()
        return float("nan") if analysis is None else analysis.temp_size_in_bytes / 1e6
