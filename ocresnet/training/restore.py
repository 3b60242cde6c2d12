"""Getting the network of a run back from its workdir."""

import os
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from ocresnet.systems import families
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.network import Network
from ocresnet.training import config as configs
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.loop import CHECKPOINTS, OptimizerOf, open_checkpoints
from ocresnet.training.step import TrainState, init_state, training_problem

Checkpoint = Literal["last", "best"]


def load_configs(workdir: str | os.PathLike) -> tuple[Architecture, TrainingConfig, dict[str, Any]]:
    """Architecture, training configuration and data description of a run.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if its configuration is damaged.
    """
    config = records.read_json(Path(workdir) / records.CONFIG)
    try:
        return (
            families.from_description(config["architecture"]),
            configs.from_description(config["training"]),
            config["data"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{records.CONFIG} in {workdir} is damaged: {error}") from error


def restore_network(
    workdir: str | os.PathLike, which: Checkpoint = "last", optimizer: OptimizerOf | None = None
) -> Network:
    """The network of the last checkpoint, or of the one that was best on the validation split.

    Args:
      workdir: folder of a run, finished or not.
      which: "last" or "best".
      optimizer: what `fit` was given, if it was given one.

    Returns:
      The network (its moving average, if the run keeps one), as it was trained: without stage cost
      its exits are not calibrated. A finished run that gave up its checkpoints still has its last
      network, with calibrated exits.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint, or no best one.
      ValueError: if the configuration or the checkpoint is damaged.
    """
    architecture, config, data = load_configs(workdir)
    folder = Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        if which == "last" and (Path(workdir) / records.NETWORK).is_dir():
            return networks.load(Path(workdir) / records.NETWORK)
        raise FileNotFoundError(f"there are no checkpoints in {workdir}.")
    checkpoints = open_checkpoints(folder, scored="validation" in data["samples"])
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        if step is None:
            hint = " (a run without validation split has none)" if which == "best" else ""
            raise FileNotFoundError(f"there is no {which} checkpoint in {workdir}{hint}.")
        state = checkpoints.restore(step, _state_shapes(architecture, config, optimizer)).state
    finally:
        checkpoints.close()
    variables = state.variables if state.average is None else state.average
    return Network(architecture, *variables)


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
