"""Training a network, from start or from where it stopped: `fit`."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from ocresnet import files
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
from ocresnet.training.compatibility import (
    check_fit,
    check_initial,
    check_kinds,
    check_loss,
    check_optimizer,
)
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import check_teacher
from ocresnet.training.interruption import stop_requests
from ocresnet.training.loop import OptimizerOf, TrainingLoop, qualified_name
from ocresnet.training.processes import in_first_process
from ocresnet.training.restore import finished_without_checkpoints
from ocresnet.training.workdir_lock import only_run_in

ArchitectureT = TypeVar("ArchitectureT", bound=Architecture)


class Run(NamedTuple):
    """The result of `fit`.

    Attributes:
      network: the trained network (its moving average, if one is kept), with `config.shrink` that
        of the last cut.
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
    middle of an epoch and return. A damaged checkpoint is left out, and the run continues from the
    one before; a finished run whose checkpoints were removed is returned as it was.

    After `jax.distributed.initialize`, call it in every process with the same arguments: each
    computes its part of every batch, the first writes the records, and a signal to any of them
    stops all after the epoch.

    Args:
      architecture: of any family; its `pixel_mean` should fit the data, as `for_dataset` makes it.
        Where that was made for data of which `config.validation` is now held out, it becomes that
        of the part that is left to train on.
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
        fit together, or the workdir holds another run, or what is left of this one is damaged.
      OSError: if the workdir cannot be written, or another process runs in it.
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
    check_kinds(architecture, config, data)
    whole, data = data, data.split(config.validation, config.seed)
    pixels = (architecture.pixel_mean, architecture.pixel_deviation)
    if config.validation > 0 and initial is None and pixels == whole.pixel_statistics:
        # Made for the whole data: of what is held out not even the mean may be seen.
        mean, deviation = data.pixel_statistics
        architecture = replace(architecture, pixel_mean=mean, pixel_deviation=deviation)
    total_devices = len(local_devices) * jax.process_count()
    cost = make_cost(config.loss, config.label_smoothing)
    if loss is not None:
        cost = Cost(loss, classifies=architecture.classifies)
    check_fit(architecture, config, data, total_devices)
    check_loss(architecture, config, loss)
    if optimizer is None:
        check_optimizer(architecture, config, total_devices)
    check_teacher(architecture, config, teacher)
    if initial is not None:
        check_initial(architecture, initial.architecture)
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints is {keep_checkpoints}, but must be at least 1.")
    folder = None if workdir is None else records.prepare_workdir(workdir)
    description = records.plain(
        run_config(architecture, config, data, loss, optimizer, initial, teacher)
    )
    with only_run_in(folder), stop_requests() as stop:
        if folder is not None:
            finished = finished_without_checkpoints(folder, description, config.epochs)
            if finished is not None:
                return Run(*finished, interrupted=False)
            in_first_process(partial(_record_start, folder, description, data))
        loop = TrainingLoop(
            architecture,
            config,
            data,
            cost,
            local_devices,
            optimizer=optimizer,
            description=description,
            folder=folder,
            keep_checkpoints=keep_checkpoints,
            initial=initial,
            teacher=teacher,
        )
        tensorboard_folder = folder / "tensorboard" if folder and tensorboard else None
        with (
            closing(loop),
            records.tensorboard(tensorboard_folder) as board,
            loop.progress(progress) as bar,
        ):
            interrupted = loop.train(stop, bar, board)
        trained = loop.trained_network()
        if not interrupted:
            try:
                with stop.at_once():
                    return _finish(loop, trained, folder)
            except KeyboardInterrupt:
                bar.note("stopped by a signal after the last epoch; the run can be continued")
        return Run(trained, loop.metrics, {}, interrupted=True)


def _record_start(folder: Path, description: dict[str, Any], data: TrainingData) -> None:
    records.check_config(folder, description)
    records.record_session(folder, {"dataset": data.source, "data_dir": data.data_dir})


def _finish(loop: TrainingLoop, trained: Network, folder: Path | None) -> Run:
    """Measure the finished network over depth, and write down what the run comes to."""
    residual = isinstance(loop.architecture, ResidualArchitecture)
    if residual and loop.problem.system.outputs == 0:
        images = loop.data.images("train")
        trained = calibrate_exits(trained, images, execution=loop.config.execution)
    trajectories = loop.evaluate(trained, loop.data.parts)
    if folder is not None and jax.process_index() == 0:
        measured: dict[str, Any] = dict(trajectories)
        if residual:
            measured["parameter_norms"] = parameter_norms(loop.architecture, trained.params)
        networks.save(trained, folder / records.NETWORK)
        records.seal_metrics(folder, loop.metrics)
        files.write_json(folder / records.TRAJECTORY, files.sealed(records.plain(measured)))
    return Run(trained, loop.metrics, trajectories, interrupted=False)


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
        described["loss"] = qualified_name(loss)
    if optimizer is not None:
        described["optimizer"] = qualified_name(optimizer)
    if initial is not None:
        described["initial"] = networks.fingerprint(initial)
    if teacher is not None:
        described["teacher"] = networks.fingerprint(teacher)
    return described
