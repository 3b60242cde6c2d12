"""Getting the network of a run back from its workdir."""

import os
from pathlib import Path
from typing import Any, Literal

import jax

from ocresnet.systems import network as networks
from ocresnet.systems import resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.training import records
from ocresnet.training.checkpoints import Checkpoints
from ocresnet.training.config import TrainingConfig
from ocresnet.training.loop import CHECKPOINTS
from ocresnet.training.optimizer import paper_optimizer
from ocresnet.training.step import TrainState, init_state

Checkpoint = Literal["last", "best"]


def load_configs(workdir: str | os.PathLike) -> tuple[ResNetConfig, TrainingConfig, dict[str, Any]]:
    """Architecture, training configuration and data description of a run.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: if its configuration is damaged.
    """
    config = records.read_json(Path(workdir) / records.CONFIG)
    try:
        return (
            ResNetConfig(**config["network"]),
            TrainingConfig(**config["training"]),
            config["data"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{records.CONFIG} in {workdir} is damaged: {error}") from error


def restore_network(workdir: str | os.PathLike, which: Checkpoint = "last") -> Network:
    """The network of the last checkpoint, or of the one that was best on the validation split.

    Args:
      workdir: folder of a run, finished or not.
      which: "last" or "best".

    Returns:
      The network (its moving average, if the run keeps one), as it was trained: without stage cost
      its exits are not calibrated. A finished run that gave up its checkpoints still has its last
      network, with calibrated exits.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint, or no best one.
      ValueError: if the configuration or the checkpoint is damaged.
    """
    network, config, data = load_configs(workdir)
    folder = Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        if which == "last" and (Path(workdir) / records.NETWORK).is_dir():
            return networks.load(Path(workdir) / records.NETWORK)
        raise FileNotFoundError(f"there are no checkpoints in {workdir}.")
    checkpoints = Checkpoints(folder, scored="validation" in data["samples"])
    try:
        step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
        if step is None:
            hint = " (a run without validation split has none)" if which == "best" else ""
            raise FileNotFoundError(f"there is no {which} checkpoint in {workdir}{hint}.")
        state = checkpoints.restore(step, _state_shapes(network, config)).state
    finally:
        checkpoints.close()
    variables = state.variables if state.average is None else state.average
    return Network(network, *variables)


def _state_shapes(network: ResNetConfig, config: TrainingConfig) -> TrainState:
    def state() -> TrainState:
        variables = resnet.init(network, jax.random.key(0))
        # The schedule's steps do not show in the state's structure.
        optimizer = paper_optimizer(config, variables.params, steps_per_epoch=1)
        return init_state(network, config, variables, optimizer)

    return jax.eval_shape(state)
