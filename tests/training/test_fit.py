"""`fit`: resuming to the same bits, refusing what cannot work, stopping when told to."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.network import load
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training import loop, records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset
from ocresnet.training.loop import NonFiniteLossError
from ocresnet.training.optimizers import SGD
from ocresnet.training.progress import TrainingProgress
from ocresnet.training.restore import restore_network

CONFIG = TrainingConfig(
    epochs=3,
    batch_size=16,
    optimizer=SGD(learning_rate=0.05, milestones=(0.7,)),
    augmentation="crop",
    validation=0.2,
    average_decay=0.9,
)
ONE_DEVICE = jax.devices()[:1]


def network(data: Dataset) -> ResNetConfig:
    return for_dataset(ResNetConfig.homogeneous(blocks=2, filters=4), data)


def run(data: Dataset, workdir=None, config: TrainingConfig = CONFIG, **kwargs) -> Run:
    kwargs = {"progress": False, "devices": ONE_DEVICE} | kwargs
    return fit(network(data), config, data, workdir=workdir, **kwargs)


def without_times(rows):
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the loop may catch it."""


def killed_after(monkeypatch, steps: int):
    """Let the run die after so many training steps, wherever it is."""
    done = 0
    mapped = loop.map_over_devices

    def map_over_devices(*args):
        step = mapped(*args)

        def dying_step(*arguments):
            nonlocal done
            if done == steps:
                raise Killed
            done += 1
            return step(*arguments)

        return dying_step

    monkeypatch.setattr(loop, "map_over_devices", map_over_devices)


def test_a_killed_run_resumes_to_the_same_bits(toy_data, tmp_path, monkeypatch):
    whole = run(toy_data, tmp_path / "whole")
    for steps in (6, 2):  # in the middle of the second epoch; and again, in that of the first left
        with monkeypatch.context() as patch:
            killed_after(patch, steps)
            with pytest.raises(Killed):
                run(toy_data, tmp_path / "killed")
    assert len(records.read_metrics(tmp_path / "killed")) == 1
    resumed = run(toy_data, tmp_path / "killed")
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)
    for name in whole.trajectories:
        jax.tree.map(
            np.testing.assert_array_equal, resumed.trajectories[name], whole.trajectories[name]
        )
    on_disk = records.read_metrics(tmp_path / "killed")
    assert [row["epoch"] for row in on_disk] == [1, 2, 3]
    assert without_times(on_disk) == without_times(whole.metrics)


def test_sigterm_saves_in_the_middle_of_an_epoch_and_the_run_continues(toy_data, tmp_path):
    whole = run(toy_data, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    sent = threading.Event()
    original = TrainingProgress.step

    def step_and_signal(self, *args):
        original(self, *args)
        if not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGTERM)

    TrainingProgress.step = step_and_signal
    try:
        # One step in flight at a time, so that the signal falls between two steps of an epoch.
        in_flight, loop.STEPS_IN_FLIGHT = loop.STEPS_IN_FLIGHT, 1
        stopped = run(toy_data, tmp_path / "stopped")
    finally:
        TrainingProgress.step = original
        loop.STEPS_IN_FLIGHT = in_flight
    assert stopped.interrupted and stopped.metrics == [] and stopped.trajectories == {}
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["1"]
    resumed = run(toy_data, tmp_path / "stopped")
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)


def test_a_finished_run_is_returned_and_not_repeated(toy_data, tmp_path, monkeypatch):
    first = run(toy_data, tmp_path)
    with monkeypatch.context() as patch:
        killed_after(patch, 0)
        again = run(toy_data, tmp_path)
    assert again.metrics == first.metrics
    jax.tree.map(np.testing.assert_array_equal, again.network, first.network)


def test_what_a_run_leaves_behind(toy_data, tmp_path):
    data = replace(toy_data, source="toy.npz", data_dir="there")
    result = run(data, tmp_path, tensorboard=True)
    rows = records.read_metrics(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows == result.metrics
    last = rows[-1]
    samples = 77 // 16 * 16  # a fifth of 96 is held out
    assert last["step"] == 3 * samples // 16
    np.testing.assert_allclose(last["learning_rate"], 0.005)
    for split in ("train", "validation", "test"):
        assert len(last[split]["losses"]) == len(last[split]["accuracies"]) == 3
    assert len(last["test"]["output_residuals"]) == len(last["parameter_norms"]) == 2
    gamma = CONFIG.stage_cost
    np.testing.assert_allclose(
        last["objective"],
        last["train"]["losses"][-1] + gamma * sum(last["train"]["losses"][:-1]),
        rtol=1e-5,
    )
    trajectory = json.loads((tmp_path / records.TRAJECTORY).read_text())
    assert trajectory["test"]["accuracies"] == last["test"]["accuracies"]
    noted = json.loads((tmp_path / records.RUN).read_text())
    assert (noted["dataset"], noted["data_dir"]) == ("toy.npz", "there")
    assert any((tmp_path / "tensorboard").iterdir())
    for saved in (load(tmp_path / "network"), restore_network(tmp_path, "last")):
        jax.tree.map(np.testing.assert_array_equal, saved, result.network)
    best = restore_network(tmp_path, "best")
    assert best.architecture == result.network.architecture


def test_training_learns_and_devices_agree(toy_data):
    config = replace(
        CONFIG, epochs=6, optimizer=SGD(learning_rate=0.05, milestones=()), average_decay=0.0
    )
    one, two = run(toy_data, config=config), run(toy_data, config=config, devices=jax.devices()[:2])
    assert one.metrics[-1]["test"]["accuracies"][-1] > 0.7
    np.testing.assert_allclose(one.metrics[0]["objective"], two.metrics[0]["objective"], rtol=1e-3)


def test_a_network_without_stage_cost_is_read_out_at_every_depth(toy_data):
    config = replace(CONFIG, stage_cost=0.0, epochs=1)
    result = run(toy_data, config=config)
    assert len(result.metrics[0]["test"]["losses"]) == 1
    assert len(result.trajectories["test"].losses) == 3
    np.testing.assert_allclose(
        result.trajectories["test"].losses[-1], result.metrics[0]["test"]["losses"][0], rtol=1e-5
    )
    # The network that comes back is the one that was measured: it can be cut and left early.
    again = trajectory(result.network, toy_data.test_images, toy_data.test_labels)
    np.testing.assert_allclose(again.losses, result.trajectories["test"].losses, rtol=1e-5)


def test_any_per_sample_loss_trains(toy_data):
    def cubed(logits, labels):
        return jnp.sum(jnp.abs(logits - jax.nn.one_hot(labels, 3)) ** 3, axis=-1)

    config = replace(CONFIG, epochs=1, validation=0.0)
    result = run(toy_data, config=config, loss=cubed)
    measured = trajectory(result.network, toy_data.test_images, toy_data.test_labels, loss=cubed)
    np.testing.assert_allclose(result.trajectories["test"].losses, measured.losses, rtol=1e-6)


def test_data_that_was_split_before_has_a_best_checkpoint(toy_data, tmp_path):
    run(toy_data.split(0.2), tmp_path, config=replace(CONFIG, epochs=1, validation=0.0))
    assert restore_network(tmp_path, "best").architecture.depth == 2
    with pytest.raises(ValueError, match="split only once"):
        run(toy_data.split(0.2))


def test_a_loss_that_is_not_finite_stops_the_run(toy_data, tmp_path):
    run_config = replace(CONFIG, optimizer=SGD(learning_rate=1e30), epochs=2)
    with pytest.raises(NonFiniteLossError, match=r"(loss is nan at step \d|not finite).*epoch 1"):
        run(toy_data, tmp_path, config=run_config)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_last_good_checkpoint_is_named(toy_data, tmp_path, monkeypatch):
    class LateFailure(TrainingProgress):
        def step(self, epoch, loss, accuracy):
            if epoch == 2:
                # The next loss that is looked at will be infinite.
                monkeypatch.setattr(loop.np, "isfinite", lambda value: np.False_)
            super().step(epoch, loss, accuracy)

    monkeypatch.setattr(loop, "TrainingProgress", LateFailure)
    with pytest.raises(NonFiniteLossError, match=r"at step 6 \(epoch 2\).*checkpoints/4;.*lower"):
        run(toy_data, tmp_path)


def test_another_configuration_or_data_is_refused(toy_data, tmp_path):
    run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
    with pytest.raises(ValueError, match=r"training\.epochs is 1 there and 2 here"):
        run(toy_data, tmp_path, config=replace(CONFIG, epochs=2))
    other = replace(toy_data, train_labels=toy_data.train_labels[::-1].copy())
    with pytest.raises(ValueError, match=r"data\.fingerprint"):
        run(other, tmp_path, config=replace(CONFIG, epochs=1))
    # The checkpoint knows its configuration too.
    (tmp_path / records.CONFIG).unlink()
    with pytest.raises(ValueError, match=r"checkpoint 4 .*training\.seed is 0 there and 5 here"):
        run(toy_data, tmp_path, config=replace(CONFIG, epochs=1, seed=5))


def test_lost_metrics_are_noticed(toy_data, tmp_path):
    run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
    (tmp_path / records.METRICS).unlink()
    with pytest.raises(ValueError, match="lacks epochs that the checkpoints beside it have"):
        run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))


def test_what_cannot_work_is_refused_before_anything_is_compiled(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr("ocresnet.training.fit.TrainingLoop", None)
    with pytest.raises(ValueError, match="batch_size 15 is not divisible over 8 devices"):
        run(toy_data, config=replace(CONFIG, batch_size=15), devices=jax.devices())
    with pytest.raises(ValueError, match="batch_size 128 is larger than the training set of toy"):
        run(toy_data, config=replace(CONFIG, batch_size=128))
    with pytest.raises(ValueError, match=r"takes images of shape \(32, 32, 3\)"):
        fit(ResNetConfig.homogeneous(2, 4), CONFIG, toy_data)
    with pytest.raises(ValueError, match="network has 2 classes, but toy has 3"):
        fit(replace(network(toy_data), classes=2), CONFIG, toy_data)
    plain = replace(network(toy_data), exits="none")
    with pytest.raises(ValueError, match=r"stage_cost is 0.02, but the network has no exits"):
        fit(plain, CONFIG, toy_data, devices=ONE_DEVICE)
    separate = replace(network(toy_data), exits="separate")
    with pytest.raises(ValueError, match="separate exit heads learn only from the stage cost"):
        fit(separate, replace(CONFIG, stage_cost=0.0), toy_data, devices=ONE_DEVICE)
    rising = replace(CONFIG, stage_cost_schedule="linear")
    with pytest.raises(ValueError, match="stage_cost_schedule is 'linear', but separate exit"):
        fit(separate, rising, toy_data, devices=ONE_DEVICE)
    with pytest.raises(ValueError, match="keep_checkpoints is 0"):
        run(toy_data, keep_checkpoints=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        run(toy_data, tmp_path / "file")


def test_restoring_what_is_not_there(tmp_path, toy_data):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        restore_network(tmp_path)
    run(toy_data, tmp_path, config=replace(CONFIG, epochs=1, validation=0.0))
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        restore_network(tmp_path, "best")


def test_a_finished_run_without_checkpoints_still_has_its_last_network(toy_data, tmp_path):
    finished = run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
    shutil.rmtree(tmp_path / "checkpoints")
    restored = restore_network(tmp_path)
    assert restored.architecture == finished.network.architecture
    for one, other in zip(
        *map(jax.tree.leaves, (restored.variables, finished.network.variables)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(FileNotFoundError, match="there are no checkpoints"):
        restore_network(tmp_path, "best")
