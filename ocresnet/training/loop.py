"""The training loop: epochs of steps, evaluated, written down and saved, from any position."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ocresnet.continuous.trained_horizon import HORIZON, free_segments
from ocresnet.control.linearize import Keep
from ocresnet.costs import Cost
from ocresnet.data.batches import Batching, Feed
from ocresnet.data.training_data import TrainingData
from ocresnet.problem import Problem
from ocresnet.stage_cost.trajectory import Trajectory, parameter_norms
from ocresnet.systems.architecture import Architecture, ResidualArchitecture, residual
from ocresnet.systems.network import Network
from ocresnet.systems.system import Variables
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.evaluation import evaluate
from ocresnet.training.interruption import StopRequests
from ocresnet.training.progress import TrainingProgress
from ocresnet.training.shrinking import (
    check_memory,
    cut_state,
    cut_variables,
    depth_to_keep,
)
from ocresnet.training.step import (
    AXIS_NAME,
    StepInfo,
    TrainState,
    evaluated,
    init_state,
    make_train_step,
    map_over_devices,
    training_problem,
    zero_totals,
)

if TYPE_CHECKING:
    from ocresnet.training.checkpoints import Checkpoints

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run's workdir."""

STEPS_IN_FLIGHT = 8
"""Steps that may be dispatched before their loss is looked at."""

OptimizerOf = Callable[[Problem, optax.Schedule], optax.GradientTransformation]
"""(problem, learning rate over steps) -> any optax transformation."""


def qualified_name(function: Any) -> str:
    """What a function that was given instead of a configuration is recorded by."""
    return getattr(function, "__qualname__", repr(type(function)))


def open_checkpoints(folder: Path, keep: int = 2) -> "Checkpoints":
    """The checkpoints in a folder, as `Checkpoints` opens them."""
    from ocresnet.training.checkpoints import Checkpoints  # orbax is slow to import

    return Checkpoints(folder, keep)


class NonFiniteLossError(FloatingPointError):
    """Training met a loss or a parameter that is not finite."""


class TrainingLoop:
    """A run in progress: its constants, its state, its position, and what it writes.

    Attributes:
      architecture: as it is now: that of the run, or after a cut (`config.shrink`) a smaller one.
      metrics: the rows of the epochs that are done.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: TrainingConfig,
        data: TrainingData,
        cost: Cost,
        devices: list[jax.Device],
        *,
        optimizer: OptimizerOf | None = None,
        description: dict[str, Any],
        folder: Path | None,
        keep_checkpoints: int,
        initial: Network | None = None,
        teacher: Network | None = None,
    ) -> None:
        """Set up the run, at its start or where the newest checkpoint in `folder` left it.

        Args:
          architecture, config, data, cost: what determines the numbers.
          devices: local devices to use.
          optimizer: makes the optimizer, instead of `config`.
          description: the same as JSON values, to recognise the run's own checkpoints.
          folder: of the run; None keeps nothing on disk.
          keep_checkpoints: how many of the last checkpoints to keep.
          initial: the network to start from; None draws one.
          teacher: the network to learn from, or None.

        Raises:
          ValueError: if what is in the folder is damaged or of another run.
        """
        self.whole, self.config, self.data = architecture, config, data
        self.devices, self.folder = devices, folder
        self.steps_per_epoch = data.samples("train") // config.batch_size
        self.cost, self.description = cost, description
        self.schedule = config.optimizer.schedule_over(config.epochs, self.steps_per_epoch)
        self.optimizer = optimizer
        # Replicated from the start: a state that moves after the first step would compile it twice.
        mesh = jax.sharding.Mesh(np.array(devices), (AXIS_NAME,))
        self.replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.teacher = jax.device_put(teacher, self.replicated)
        if initial is None:
            variables = architecture.init(jax.random.key(config.seed))
        else:
            # A copy: the first step gives the buffers of its state away.
            variables = jax.tree.map(jnp.array, initial.variables)
        self.epoch = self.step_in_epoch = 0
        self._start(architecture, variables)
        if optimizer is not None and config.shrink:
            after = training_problem(architecture, config.after(config.epochs), cost=cost)
            before = optimizer(self.problem, self.schedule)
            check_memory(before, optimizer(after, self.schedule), variables.params)
        self.metrics: list[dict[str, Any]] = []
        self.checkpoints: Checkpoints | None = None
        self.metrics_file: records.MetricsFile | None = None
        if folder is not None:
            self.checkpoints = open_checkpoints(folder / CHECKPOINTS, keep_checkpoints)
            self._resume(self.checkpoints, folder)
            if jax.process_index() == 0:
                self.metrics_file = records.MetricsFile(folder, self.metrics)

    def _start(self, architecture: Architecture, variables: Variables) -> None:
        """Make problem, optimizer and step of an architecture, and the state before a first step.

        The run's own at its start; a cut makes those of the smaller network.
        """
        self.architecture = architecture
        config = self.config.after(self.epoch)
        self.problem = training_problem(architecture, config, cost=self.cost, axis_name=AXIS_NAME)
        total_devices = len(self.devices) * jax.process_count()
        keep: Keep | None = None
        if self.optimizer is not None:
            transformation = self.optimizer(self.problem, self.schedule)
        else:
            keep = self.config.optimizer.keep_on(total_devices)
            transformation = self.config.optimizer.build(
                self.problem,
                self.schedule,
                devices=total_devices,
                axis_name=AXIS_NAME,
                seed=self.config.seed,
            )
        self.state: TrainState = jax.device_put(
            init_state(self.problem, config, variables, transformation), self.replicated
        )
        self.train_step = map_over_devices(
            make_train_step(
                self.problem,
                config,
                transformation,
                keep,
                axis_name=AXIS_NAME,
                seed=self.config.seed,
            ),
            self.devices if jax.process_count() == 1 else jax.devices(),
        )

    def _cut(self, blocks: int) -> None:
        """Go on with the first blocks, trained for what the epochs from here on are."""
        whole, state = residual(self.architecture), self.state
        ends = self.config.after(self.epoch) != self.config  # of stage costs
        if blocks == whole.depth and not ends:
            return
        # From the whole one, as a resumed run takes it.
        kept = residual(self.whole).subresnet(blocks)
        self._start(kept, cut_variables(whole, state.variables, blocks))
        self.state = jax.device_put(cut_state(state, whole, blocks, self.state), self.replicated)

    def _resume(self, checkpoints: "Checkpoints", folder: Path) -> None:
        step = checkpoints.latest_step()
        if step is None:
            if checkpoints.damaged:
                raise ValueError(
                    f"no checkpoint in {folder} can be read ({'; '.join(self._left_out())}): "
                    "restore one, or start in another workdir."
                )
            return
        where = f"checkpoint {step} in {folder}"
        position = checkpoints.position(step)
        records.refuse_other_config(position["config"], self.description, where)
        self.epoch, self.step_in_epoch = position["epoch"], position["step_in_epoch"]
        if self.epoch * self.steps_per_epoch + self.step_in_epoch != step:
            raise ValueError(
                f"{where} says that it is that of step {self.step_in_epoch} after {self.epoch} "
                f"epochs of {self.steps_per_epoch} steps: start in another workdir."
            )
        self.metrics = records.rows_of_epochs(folder, self.epoch, position["metrics"])
        if "blocks" in position:
            self._cut(position["blocks"])
        self.state = jax.device_put(checkpoints.restore(step, self.state), self.replicated)

    def _left_out(self) -> list[str]:
        """What is wrong with the checkpoints that were not used, the newest first."""
        damaged = self.checkpoints.damaged if self.checkpoints else {}
        return [damaged[step] for step in sorted(damaged, reverse=True)]

    def progress(self, show: bool) -> TrainingProgress:
        """A progress display that starts where the run is."""
        done = self.epoch * self.steps_per_epoch + self.step_in_epoch
        show = show and jax.process_index() == 0
        return TrainingProgress(
            self.config.epochs, self.steps_per_epoch, self.config.batch_size, done, show
        )

    def train(
        self, stop: StopRequests, bar: TrainingProgress, board: Callable[[dict], None]
    ) -> bool:
        """Run the epochs that are left; True if a signal stopped it."""
        for damage in self._left_out():
            bar.note(damage)
        if self.epoch or self.step_in_epoch:
            bar.note(f"continuing after epoch {self.epoch}, step {self.step_in_epoch} of the next")
        feed = self.data.feed(
            Batching(
                seed=self.config.seed,
                batch_size=self.config.batch_size,
                devices=len(self.devices),
                augmentation=self.config.augmentation,
                fill=self.architecture.pixel_mean,
                process=jax.process_index(),
                processes=jax.process_count(),
            )
        )
        while self.epoch < self.config.epochs:
            start, first_step = time.perf_counter(), self.step_in_epoch
            self._train_epoch(feed, stop, bar)
            if self.step_in_epoch < self.steps_per_epoch:
                self._save(score=None)
                bar.note(f"stopped by a signal in epoch {self.epoch + 1}; the run can be continued")
                return True
            seconds = time.perf_counter() - start
            steps = self.steps_per_epoch - first_step
            row = self._finish_epoch(seconds, steps)
            bar.epoch(row)
            board(row)
            if self._stops(stop) and self.epoch < self.config.epochs:
                bar.note(f"stopped by a signal after epoch {self.epoch}; the run can be continued")
                return True
        return False

    def _train_epoch(self, feed: Feed, stop: StopRequests, bar: TrainingProgress) -> None:
        in_flight: deque[StepInfo] = deque()

        def look_at_oldest() -> None:
            info = in_flight.popleft()
            objective = float(info.objective)
            if not np.isfinite(objective):
                done = self.epoch * self.steps_per_epoch + self.step_in_epoch
                step = done - len(in_flight)
                raise NonFiniteLossError(self._diverged(f"the loss is {objective} at step {step}"))
            accuracy = None if info.accuracy is None else float(info.accuracy)
            bar.step(self.epoch + 1, objective, accuracy)

        # Several processes stop together, after the epoch: one that stopped alone would leave the
        # others waiting for its part of the gradient.
        alone = jax.process_count() == 1
        with closing(feed(self.epoch, self.step_in_epoch)) as batches:
            while self.step_in_epoch < self.steps_per_epoch and not (alone and stop.requested):
                self.state, info = self.train_step(self.state, next(batches), self.teacher)
                self.step_in_epoch += 1
                in_flight.append(info)
                if len(in_flight) == STEPS_IN_FLIGHT:
                    look_at_oldest()
        while in_flight:
            look_at_oldest()
        if not bool(_all_finite(self.state)):
            raise NonFiniteLossError(self._diverged("a parameter or statistic is not finite"))

    def _stops(self, stop: StopRequests) -> bool:
        """Whether a signal has reached this process, or any other."""
        if jax.process_count() == 1:
            return stop.requested
        from jax.experimental import multihost_utils  # slow to import

        return bool(np.any(multihost_utils.process_allgather(np.array(stop.requested))))

    def _diverged(self, what: str) -> str:
        saved = self.checkpoints.latest_step() if self.checkpoints else None
        if saved is None:
            where = "there is no checkpoint yet"
        else:
            where = f"the last good checkpoint is {self.folder}/{CHECKPOINTS}/{saved}"
        known = self.architecture.not_finite
        reason = f"; perhaps {known}" if known else ""
        return (
            f"{what} (epoch {self.epoch + 1}){reason}; {where}; a lower learning_rate, "
            "warmup_epochs=1 or gradient_clip=1 may help."
        )

    def _finish_epoch(self, seconds: float, steps: int) -> dict[str, Any]:
        """Evaluate, write the epoch's metrics, then its checkpoint."""
        last_step = (self.epoch + 1) * self.steps_per_epoch - 1
        means = jax.tree.map(
            lambda total: np.asarray(total, np.float64) / self.steps_per_epoch, self.state.totals
        )
        network = self.trained_network()
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": last_step + 1,
            "learning_rate": float(self.schedule(last_step)),
            "objective": means.objective,
            "gradient_norm": means.gradient_norm,
            "train": {
                "losses": means.losses,
                "accuracies": [] if means.accuracies is None else means.accuracies,
            },
        }
        evaluated = self.evaluate(
            network, self.data.parts[1:], own_output=self.problem.system.outputs == 0
        )
        row |= evaluated
        if isinstance(self.architecture, ResidualArchitecture):
            row["parameter_norms"] = parameter_norms(self.architecture, network.params)
        for name in free_segments(self.problem.system):
            row.setdefault("horizons", {})[name] = float(network.params[name][HORIZON])
        row["seconds"] = seconds
        row["images_per_second"] = steps * self.config.batch_size / seconds

        self.state = self.state._replace(
            totals=jax.device_put(zero_totals(self.problem), self.replicated)
        )
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        output = -1
        if self.epoch in self.config.shrink:
            part = self.data.choosing_part
            chosen_on = evaluated.get(part) or self.evaluate(network, [part])[part]
            self._cut(depth_to_keep(chosen_on, self.config.shrink_tolerance))
            output = row["kept_blocks"] = residual(self.architecture).depth
        row = records.plain(row)
        self.metrics.append(row)
        # The row first: whenever a checkpoint says that an epoch is done, its row is there.
        if self.metrics_file is not None:
            self.metrics_file.append(row)
        validation = evaluated.get("validation")
        self._save(score=None if validation is None else _score(validation, output))
        return row

    def _save(self, score: float | None) -> None:
        if self.checkpoints is not None:
            step = self.epoch * self.steps_per_epoch + self.step_in_epoch
            position = {
                "epoch": self.epoch,
                "step_in_epoch": self.step_in_epoch,
                "metrics": records.digest_of_rows(self.metrics),
                "config": self.description,
            }
            if self.config.shrink:
                position["blocks"] = residual(self.architecture).depth
            if step != self.checkpoints.latest_step():
                self.checkpoints.save(step, self.state, position, score)

    def trained_network(self) -> Network:
        """The network as it is now (its moving average, if one is kept, by us or the optimizer)."""
        return Network(self.architecture, *jax.device_put(evaluated(self.state), self.devices[0]))

    def evaluate(
        self, network: Network, parts: Sequence[str], own_output: bool = False
    ) -> dict[str, Trajectory]:
        """Trajectories of a network over depth, on the named parts of the data."""
        return {
            part: evaluate(
                network,
                self.data.images(part),
                self.data.labels(part),
                own_output=own_output,
                loss=self.cost.value,
                devices=self.devices,
                execution=self.config.execution,
            )
            for part in parts
        }

    def close(self) -> None:
        """Release the checkpoints."""
        if self.checkpoints is not None:
            self.checkpoints.close()


def _score(measured: Trajectory, output: int) -> float:
    """What the best checkpoint has most of: accuracy, or where there is none, the least loss, of
    the output that is the checkpoint's own: after a cut the exit that it was cut at."""
    scores = measured.accuracies if len(measured.accuracies) else -np.asarray(measured.losses)
    return float(scores[output])


@jax.jit
def _all_finite(state: TrainState) -> jax.Array:
    leaves = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(leaves))
