"""Training a network, from start or from where it stopped: `fit`."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ocresnet import files
from ocresnet.data.training_data import TrainingData
from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.stage_cost.objective import PerSampleLoss, per_sample_loss
from ocresnet.stage_cost.trajectory import Trajectory, parameter_norms
from ocresnet.systems import network as networks
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import check_teacher
from ocresnet.training.interruption import stop_requests
from ocresnet.training.loop import TrainingLoop
from ocresnet.training.processes import in_first_process
from ocresnet.training.restore import finished_without_checkpoints
from ocresnet.training.step import training_outputs
from ocresnet.training.workdir_lock import only_run_in


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
    network: ResNetConfig,
    config: TrainingConfig,
    data: TrainingData,
    *,
    workdir: str | os.PathLike | None = None,
    devices: Sequence[jax.Device] | None = None,
    keep_checkpoints: int = 2,
    tensorboard: bool = False,
    progress: bool = True,
    loss: PerSampleLoss | None = None,
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
      network: the architecture; its `pixel_mean` should fit the data, as `for_dataset` makes it.
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
      initial: the network to start from, of architecture `network`; it stays as it is. None draws a
        new one.
      teacher: the network to learn from where `config.distillation` is above 0; any architecture
        that takes the same images (each normalises them itself) and tells the same classes apart.

    Returns:
      The trained network, its metrics and its trajectories over depth. A network that was trained
      without stage cost comes back with calibrated exits.

    Raises:
      ValueError: if network, configuration, data, devices, initial network and teacher do not fit
        together, or the workdir holds another run, or what is left of this one is damaged.
      OSError: if the workdir cannot be written, or another process runs in it.
      NonFiniteLossError: if the loss or a parameter stops being finite.

    Example:
      >>> data = load_dataset("digits")
      >>> run = fit(for_dataset(ResNetConfig.homogeneous(12, 16), data), TrainingConfig(), data)
      >>> small = prune(run.network, 3)
      >>> fit(small.config, TrainingConfig(stage_cost=0.0, epochs=5), data, initial=small)
    """
    if devices is not None and jax.process_count() > 1:
        raise ValueError("with several processes all their devices are used: leave devices out.")
    local_devices = list(jax.local_devices() if devices is None else devices)
    _check_kinds(network, config, data)
    whole, data = data, data.split(config.validation, config.seed)
    pixels = (network.pixel_mean, network.pixel_deviation)
    if config.validation > 0 and initial is None and pixels == whole.pixel_statistics:
        # Made for the whole data: of what is held out not even the mean may be seen.
        mean, deviation = data.pixel_statistics
        network = replace(network, pixel_mean=mean, pixel_deviation=deviation)
    _check(network, config, data, len(local_devices))
    check_teacher(network, config, teacher)
    if initial is not None:
        _check_initial(network, initial.config)
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints is {keep_checkpoints}, but must be at least 1.")
    folder = None if workdir is None else records.prepare_workdir(workdir)
    description = records.plain(run_config(network, config, data, loss, initial, teacher))
    with only_run_in(folder), stop_requests() as stop:
        if folder is not None:
            finished = finished_without_checkpoints(folder, description, config.epochs)
            if finished is not None:
                return Run(*finished, interrupted=False)
            in_first_process(partial(_record_start, folder, description, data))
        loop = TrainingLoop(
            network,
            config,
            data,
            loss or per_sample_loss(config.loss, config.label_smoothing),
            local_devices,
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
    if training_outputs(loop.network, loop.config) == 1:
        images = loop.data.images("train")
        trained = calibrate_exits(trained, images, execution=loop.config.execution)
    trajectories = loop.evaluate(trained, loop.data.parts)
    if folder is not None and jax.process_index() == 0:
        norms = parameter_norms(loop.network, trained.params)
        measured = records.plain({**trajectories, "parameter_norms": norms})
        networks.save(trained, folder / records.NETWORK)
        records.seal_metrics(folder, loop.metrics)
        files.write_json(folder / records.TRAJECTORY, files.sealed(measured))
    return Run(trained, loop.metrics, trajectories, interrupted=False)


def for_dataset(network: ResNetConfig, data: TrainingData) -> ResNetConfig:
    """The architecture with image shape, classes and pixel statistics of a data set."""
    mean, deviation = data.pixel_statistics
    return replace(
        network,
        image_shape=data.image_shape,
        classes=data.classes,
        pixel_mean=mean,
        pixel_deviation=deviation,
    )


def run_config(
    network: ResNetConfig,
    config: TrainingConfig,
    data: TrainingData,
    loss: PerSampleLoss | None = None,
    initial: Network | None = None,
    teacher: Network | None = None,
) -> dict[str, Any]:
    """What determines a run's numbers, as JSON values."""
    samples = {part: data.samples(part) for part in data.parts}
    described: dict[str, Any] = {
        "network": asdict(network),
        "training": asdict(config),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "samples": samples},
    }
    if loss is not None:
        described["loss"] = getattr(loss, "__qualname__", repr(type(loss)))
    if initial is not None:
        described["initial"] = networks.fingerprint(initial)
    if teacher is not None:
        described["teacher"] = networks.fingerprint(teacher)
    return described


def _check_kinds(network: object, config: object, data: object) -> None:
    """Refuse swapped arguments, and arrays or dictionaries for data."""
    for name, value, fits, wanted in (
        ("network", network, isinstance(network, ResNetConfig), "a ResNetConfig"),
        ("config", config, isinstance(config, TrainingConfig), "a TrainingConfig"),
        ("data", data, hasattr(data, "feed"), "a Dataset or a StreamingDataset"),
    ):
        if not fits:
            raise ValueError(
                f"fit takes network, config and data in this order: {name} is a "
                f"{type(value).__name__}, but must be {wanted}."
            )


def _check(network: ResNetConfig, config: TrainingConfig, data: TrainingData, devices: int) -> None:
    """Refuse what cannot work before anything is compiled."""
    if network.image_shape != data.image_shape:
        raise ValueError(
            f"the network takes images of shape {network.image_shape}, but {data.name} has "
            f"{data.image_shape}."
        )
    if network.classes < data.classes:
        raise ValueError(
            f"the network has {network.classes} classes, but {data.name} has {data.classes}."
        )
    if network.exits == "none" and config.stage_cost > 0:
        raise ValueError(
            f"stage_cost is {config.stage_cost}, but the network has no exits to pay it on: give "
            "it exits (shared or separate), or set stage_cost to 0."
        )
    if network.exits == "separate" and config.stage_cost == 0:
        raise ValueError(
            "separate exit heads learn only from the stage cost: set stage_cost above 0, or choose "
            "exits shared or none."
        )
    if network.exits == "separate" and config.stage_cost_schedule != "constant":
        raise ValueError(
            f"stage_cost_schedule is {config.stage_cost_schedule!r}, but separate exit heads learn "
            "at a rate that is divided by the stage cost: it must be constant."
        )
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


def _check_initial(network: ResNetConfig, initial: ResNetConfig) -> None:
    """Refuse to start from a network of another architecture."""
    wanted, given = asdict(network), asdict(initial)
    different = [name for name in wanted if wanted[name] != given[name]]
    if different:
        names = " and ".join(
            f"{name} {given[name]} instead of {wanted[name]}" for name in different
        )
        raise ValueError(
            f"the initial network is of another architecture: it has {names}; train its own "
            "`config`, or start from another network."
        )
