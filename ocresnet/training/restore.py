"""Getting the network of a run back from its workdir."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.systems import families
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture, residual
from ocresnet.systems.network import Network
from ocresnet.training import config as configs
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.loop import CHECKPOINTS, OptimizerOf, open_checkpoints, qualified_name
from ocresnet.training.step import TrainState, evaluated, init_state, training_problem

Checkpoint = Literal["last", "best"]


def load_configs(workdir: str | os.PathLike) -> tuple[Architecture, TrainingConfig, dict[str, Any]]:
    """Architecture, training configuration and data description of a run.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if its configuration is damaged.
    """
    config = records.read_json(Path(workdir) / records.CONFIG)
    try:
        data = config["data"]
        if not (isinstance(data["samples"], dict) and isinstance(data["fingerprint"], str)):
            raise ValueError("it does not say what the data is")
        architecture = families.from_description(config["architecture"])
        return architecture, configs.from_description(config["training"]), data
    except Exception as error:  # a configuration of wrong types fails in many ways
        raise ValueError(f"{records.CONFIG} in {workdir} is damaged: {error}.") from error


class Restored(NamedTuple):
    """A network as a checkpoint has it.

    Attributes:
      network: its moving average, if the run keeps one.
      training: what it was trained for at that time; after the last cut of a run that shrinks,
        without stage cost.
    """

    network: Network
    training: TrainingConfig


def restore_network(
    workdir: str | os.PathLike, which: Checkpoint = "last", optimizer: OptimizerOf | None = None
) -> Network:
    """The network alone of what `restore` restores."""
    return restore(workdir, which, optimizer).network


def restore(
    workdir: str | os.PathLike, which: Checkpoint = "last", optimizer: OptimizerOf | None = None
) -> Restored:
    """The last checkpoint, or the one that was best on the validation split.

    Args:
      workdir: folder of a run, finished or not.
      which: "last" or "best".
      optimizer: what `fit` was given, if it was given one.

    Returns:
      The network as it was trained: where no stage cost was paid its exits are not calibrated. A
      finished run that gave up its checkpoints still has its last network, with calibrated exits.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint, or no best one.
      ValueError: if the configuration or the checkpoint is damaged.
    """
    architecture, config, _ = load_configs(workdir)
    if not _has_checkpoints(Path(workdir)):
        if which == "last" and (Path(workdir) / records.NETWORK).is_dir():
            network = networks.load(Path(workdir) / records.NETWORK)
            return Restored(network, config.after(config.epochs))
        raise FileNotFoundError(f"there are no checkpoints in {workdir}.")
    _check_optimizer(Path(workdir), optimizer)
    checkpoints = open_checkpoints(Path(workdir) / CHECKPOINTS)
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        # One in place of that which was asked for would be taken for it.
        for other, damage in checkpoints.damaged.items():
            if which == "best" or step is None or other > step:
                raise ValueError(
                    f"a checkpoint cannot be read: {damage} Training can go on from the one before."
                )
        if step is None:
            hint = " (a run without validation split has none)" if which == "best" else ""
            raise FileNotFoundError(f"there is no {which} checkpoint in {workdir}{hint}.")
        if config.shrink:
            position = checkpoints.position(step)
            architecture = residual(architecture).subresnet(position["blocks"])
            config = config.after(position["epoch"])
        state = checkpoints.restore(step, _state_shapes(architecture, config, optimizer))
    finally:
        checkpoints.close()
    return Restored(Network(architecture, *evaluated(state)), config)


class FinishedRun(NamedTuple):
    """What a finished run left.

    Attributes:
      network: the finished network.
      metrics: one dictionary an epoch.
      trajectories: of the finished network on every part of the data.
    """

    network: Network
    metrics: list[dict[str, Any]]
    trajectories: dict[str, Trajectory]


def finished_without_checkpoints(
    workdir: Path, description: dict[str, Any], epochs: int
) -> FinishedRun | None:
    """A finished run that gave up its checkpoints; None for one that is to be begun or continued.

    Args:
      workdir: folder of the run.
      description: what determines the numbers of the run that is wanted.
      epochs: how many it has.

    Raises:
      ValueError: if epochs were done that neither a checkpoint nor a finished network has, so that
        a start would write over them; or if what was left is damaged or of another run.
    """
    if _has_checkpoints(workdir):
        return None
    rows = records.read_metrics(workdir)
    trajectory_file, network = workdir / records.TRAJECTORY, workdir / records.NETWORK
    finished = trajectory_file.exists() and network.is_dir()
    if not rows and not finished:
        return None
    # The row of an epoch is written before its checkpoint: a run may be killed between the two.
    if len(rows) == 1 and not finished and (workdir / CHECKPOINTS).is_dir():
        return None
    records.refuse_other_config(
        records.read_json(workdir / records.CONFIG), description, str(workdir)
    )
    if not (finished and [row["epoch"] for row in rows] == list(range(1, epochs + 1))):
        raise ValueError(
            f"{workdir} holds a run of which {len(rows)} of {epochs} epochs are done, but its "
            "checkpoints are gone: restore them, or choose another workdir."
        )
    rows = records.sealed_metrics(workdir, epochs)
    measured = records.read_json(trajectory_file)
    try:
        trajectories = {
            part: Trajectory(
                *(np.asarray(measured[part][name], np.float64) for name in Trajectory._fields)
            )
            for part in description["data"]["samples"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{trajectory_file} is damaged: {error!r}.") from error
    return FinishedRun(networks.load(network), rows, trajectories)


def _has_checkpoints(workdir: Path) -> bool:
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _check_optimizer(workdir: Path, optimizer: OptimizerOf | None) -> None:
    """Refuse another optimizer than the run had: the state could not be read."""
    had = records.read_json(workdir / records.CONFIG).get("optimizer")
    given = None if optimizer is None else qualified_name(optimizer)
    if had != given:
        raise ValueError(
            f"the run in {workdir} had "
            + (f"the optimizer {had}" if had else "the optimizer of its configuration")
            + ", with which alone its checkpoints can be read: "
            + (f"give optimizer={had}." if had else "leave optimizer out.")
        )


def _state_shapes(
    architecture: Architecture, config: TrainingConfig, optimizer: OptimizerOf | None
) -> TrainState:
    problem = training_problem(architecture, config)
    # The schedule's steps do not show in the state's structure.
    schedule = config.optimizer.schedule_over(config.epochs, steps_per_epoch=1)
    if optimizer is None:
        transformation: optax.GradientTransformation = config.optimizer.build(problem, schedule)
    else:
        transformation = optimizer(problem, schedule)

    def state() -> TrainState:
        variables = architecture.init(jax.random.key(0))
        return init_state(problem, config, variables, transformation)

    return jax.eval_shape(state)
