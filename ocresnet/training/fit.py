"""Training a network, from start or from where it stopped: `fit`."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax

from ocresnet.costs import Cost, PerSampleLoss, make_cost
from ocresnet.data.training_data import TrainingData
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.trajectory import Trajectory, parameter_norms
from ocresnet.systems import families
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.systems.network import Network
from ocresnet.training import config as configs
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import check_teacher
from ocresnet.training.interruption import stop_requests
from ocresnet.training.loop import OptimizerOf, TrainingLoop
from ocresnet.training.step import training_problem

ArchitectureT = TypeVar("ArchitectureT", bound=Architecture)


class Run(NamedTuple):
    """The result of `fit`.

    Attributes:
      network: the trained network (its moving average, if one is kept).
      metrics: one dictionary an epoch, as in `metrics.jsonl`.
      trajectories: of the finished network on "train" (without augmentation), "validation" and
        "test", where they exist; empty if the run was interrupted.
      interrupted: whether a signal stopped it before the last epoch.
    """

    network: Network
    metrics: list[dict[str, Any]]
    trajectories: dict[str, Trajectory]
    interrupted: bool


def fit(
    architecture: Architecture,
    config: TrainingConfig,
    data: TrainingData,
    *,
    workdir: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    keep_checkpoints: int = 2,
    tensorboard: bool = False,
    progress: bool = True,
    loss: PerSampleLoss | None = None,
    optimizer: OptimizerOf | None = None,
    initial: Network | None = None,
    teacher: Network | None = None,
) -> Run:
    """Train a network, or continue the run in `workdir` to the very same result.

    After every epoch the metrics and a checkpoint are written; SIGTERM and SIGINT write one in the
    middle of an epoch and return.

    After `jax.distributed.initialize`, call it in every process with the same arguments: each
    computes its part of every batch, the first writes the records, and a signal to any of them
    stops all after the epoch.

    Args:
      architecture: of any family; its `pixel_mean` should fit the data, as `for_dataset` makes it.
      config: everything else that determines the numbers.
      data: training and test set; `config.validation` is split off here.
      workdir: folder of the run; None keeps nothing on disk.
      devices: devices to use; None means all, of all processes.
      keep_checkpoints: how many of the last checkpoints to keep.
      tensorboard: also write TensorBoard files (needs tensorboardX).
      progress: show a progress bar, or outside a terminal a line an epoch.
      loss: any per-sample loss, (logits [..., classes], labels [...]) -> [...]; None means that of
        `config`.
      optimizer: a function (problem, schedule) -> any optax transformation, which is used instead
        of `config.optimizer`, whose schedule it is given; a run is recognised by its qualified
        name. Inside, the mapped axis over devices is called `step.AXIS_NAME`.
      initial: the network to start from, of this `architecture`; it stays as it is. None draws a
        new one.
      teacher: the network to learn from where `config.distillation` is above 0; any architecture
        that takes the same images (each normalises them itself) and tells the same classes apart.

    Returns:
      The trained network, its metrics and its trajectories over depth. A network of residual blocks
      that was trained without stage cost comes back with calibrated exits.

    Raises:
      ValueError: if architecture, configuration, data, devices, initial network and teacher do not
        fit together, or the workdir holds another run.
      OSError: if the workdir cannot be written.
      NonFiniteLossError: if the loss or a parameter stops being finite.

    Example:
      >>> data = load_dataset("digits")
      >>> run = fit(for_dataset(ResNetConfig.homogeneous(12, 16), data), TrainingConfig(), data)
      >>> small = prune(run.network, 3)
      >>> config = TrainingConfig(stage_cost=0.0, epochs=5, optimizer=AdamW(learning_rate=1e-4))
      >>> fit(small.architecture, config, data, initial=small)
    """
    if devices is not None and jax.process_count() > 1:
        raise ValueError("with several processes all their devices are used: leave devices out.")
    local_devices = list(jax.local_devices() if devices is None else devices)
    data = data.split(config.validation, config.seed)
    _check(architecture, config, data, len(local_devices))
    if optimizer is None:
        _check_optimizer(architecture, config, len(local_devices))
    check_teacher(architecture, config, teacher)
    if initial is not None:
        _check_initial(architecture, initial.architecture)
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints is {keep_checkpoints}, but must be at least 1.")
    folder = None if workdir is None else records.prepare_workdir(workdir)
    description = records.plain(
        run_config(architecture, config, data, loss, optimizer, initial, teacher)
    )
    if folder is not None:
        records.check_config(folder, description)
        if jax.process_index() == 0:
            source = {"dataset": data.source, "data_dir": data.data_dir}
            records.record_session(folder, source)
    loop = TrainingLoop(
        architecture,
        config,
        data,
        make_cost(config.loss, config.label_smoothing) if loss is None else Cost(loss),
        local_devices,
        optimizer=optimizer,
        description=description,
        folder=folder,
        keep_checkpoints=keep_checkpoints,
        initial=initial,
        teacher=teacher,
    )
    with (
        closing(loop),
        records.tensorboard(folder / "tensorboard" if folder and tensorboard else None) as board,
        stop_requests() as stop,
        loop.progress(progress) as bar,
    ):
        interrupted = loop.train(stop, bar, board)
    trained = loop.trained_network()
    if interrupted:
        return Run(trained, loop.metrics, {}, interrupted)

    residual = isinstance(architecture, ResidualArchitecture)
    if residual and loop.problem.system.outputs == 0:
        trained = calibrate_exits(trained, data.images("train"), execution=config.execution)
    trajectories = loop.evaluate(trained, data.parts)
    if folder is not None and jax.process_index() == 0:
        measured: dict[str, Any] = dict(trajectories)
        if residual:
            measured["parameter_norms"] = parameter_norms(architecture, trained.params)
        records.write_json(folder / records.TRAJECTORY, measured)
        networks.save(trained, folder / records.NETWORK)
    return Run(trained, loop.metrics, trajectories, interrupted)


def for_dataset(architecture: ArchitectureT, data: TrainingData) -> ArchitectureT:
    """The architecture with image shape, classes and pixel statistics of a data set."""
    mean, deviation = data.pixel_statistics
    return replace(
        architecture,
        image_shape=data.image_shape,
        classes=data.classes,
        pixel_mean=mean,
        pixel_deviation=deviation,
    )


def run_config(
    architecture: Architecture,
    config: TrainingConfig,
    data: TrainingData,
    loss: PerSampleLoss | None = None,
    optimizer: OptimizerOf | None = None,
    initial: Network | None = None,
    teacher: Network | None = None,
) -> dict[str, Any]:
    """What determines a run's numbers, as JSON values."""
    samples = {part: data.samples(part) for part in data.parts}
    described: dict[str, Any] = {
        "architecture": families.describe(architecture),
        "training": configs.describe(config),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "samples": samples},
    }
    if loss is not None:
        described["loss"] = _qualified_name(loss)
    if optimizer is not None:
        described["optimizer"] = _qualified_name(optimizer)
    if initial is not None:
        described["initial"] = networks.fingerprint(initial)
    if teacher is not None:
        described["teacher"] = networks.fingerprint(teacher)
    return described


def _qualified_name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(type(function)))


def _check(
    architecture: Architecture, config: TrainingConfig, data: TrainingData, devices: int
) -> None:
    """Refuse what cannot work before anything is compiled."""
    if architecture.image_shape != data.image_shape:
        raise ValueError(
            f"the network takes images of shape {architecture.image_shape}, but {data.name} has "
            f"{data.image_shape}."
        )
    if architecture.classes < data.classes:
        raise ValueError(
            f"the network has {architecture.classes} classes, but {data.name} has {data.classes}."
        )
    _check_stage_cost(architecture, config)
    total_devices = devices * jax.process_count()
    if config.batch_size % total_devices:
        raise ValueError(
            f"batch_size {config.batch_size} is not divisible over {total_devices} devices."
        )
    if config.batch_size > data.samples("train"):
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training set of {data.name}, "
            f"which has {data.samples('train')} samples."
        )
    if config.augmentation not in data.augmentations:
        raise ValueError(
            f"augmentation is {config.augmentation!r}, but {data.name} can have "
            f"{', '.join(data.augmentations)}."
        )


def _check_optimizer(architecture: Architecture, config: TrainingConfig, devices: int) -> None:
    """Refuse a problem that the configured optimizer cannot solve."""
    variables = jax.eval_shape(architecture.init, jax.random.key(0))
    samples = config.batch_size // (devices * jax.process_count())
    problem = training_problem(architecture, config)
    config.optimizer.check(architecture, problem, variables, devices * jax.process_count(), samples)


def _check_stage_cost(architecture: Architecture, config: TrainingConfig) -> None:
    """Refuse a stage cost that nothing would pay, and exits that nothing would train."""
    if architecture.outputs == 1 and config.stage_cost > 0:
        raise ValueError(
            f"stage_cost is {config.stage_cost}, but the network has no exits to pay it on: "
            + (
                "give it exits (shared or separate), or set stage_cost to 0."
                if isinstance(architecture, ResidualArchitecture)
                else f"set stage_cost to 0 (a {type(architecture).__name__} cannot have any)."
            )
        )
    if not isinstance(architecture, ResidualArchitecture) or architecture.exits != "separate":
        return
    if config.stage_cost == 0:
        raise ValueError(
            "separate exit heads learn only from the stage cost: set stage_cost above 0, or choose "
            "exits shared or none."
        )
    if config.stage_cost_schedule != "constant":
        raise ValueError(
            f"stage_cost_schedule is {config.stage_cost_schedule!r}, but separate exit heads learn "
            "at a rate that is divided by the stage cost: it must be constant."
        )


def _check_initial(architecture: Architecture, initial: Architecture) -> None:
    """Refuse to start from a network of another architecture."""
    wanted, given = families.describe(architecture), families.describe(initial)
    different = [name for name in wanted if wanted[name] != given.get(name)]
    if different:
        names = " and ".join(
            f"{name} {given.get(name)} instead of {wanted[name]}" for name in different
        )
        raise ValueError(
            f"the initial network is of another architecture: it has {names}; train its own "
            "`architecture`, or start from another network."
        )
