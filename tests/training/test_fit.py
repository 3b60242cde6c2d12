"""`fit`: resuming to the same bits, refusing what cannot work, stopping when told to."""

import errno
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

from ocresnet import files
from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.network import create, load
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training import checkpoints, loop, records, workdir_lock
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset, run_config
from ocresnet.training.loop import NonFiniteLossError
from ocresnet.training.optimizers import SGD
from ocresnet.training.progress import TrainingProgress
from ocresnet.training.restore import finished_without_checkpoints, load_configs, restore_network
from ocresnet.training.workdir_lock import only_run_in

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


WHOLE: list[Run] = []


def whole_run(data: Dataset) -> Run:
    """The run of `CONFIG` without interruptions, trained once for all tests."""
    if not WHOLE:
        WHOLE.append(run(data))
    return WHOLE[0]


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
    whole = whole_run(toy_data)
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
    whole = whole_run(toy_data)
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


def test_swapped_arguments_and_other_kinds_are_named(toy_data):
    architecture = network(toy_data)
    for arguments, message in (
        ((CONFIG, architecture, toy_data), "architecture is a TrainingConfig, but must be an Arch"),
        ((architecture, toy_data, CONFIG), "config is a Dataset, but must be a TrainingConfig"),
        ((architecture, CONFIG, {"train": 1}), "data is a dict, but must be a Dataset"),
        ((architecture, CONFIG, toy_data.train_images), "data is a ndarray, but must be a Dataset"),
    ):
        with pytest.raises(
            ValueError, match=f"architecture, config and data in this order: {message}"
        ):
            fit(*arguments)


def test_restoring_what_is_not_there(tmp_path, toy_data):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        restore_network(tmp_path)
    run(toy_data, tmp_path, config=replace(CONFIG, epochs=1, validation=0.0))
    with pytest.raises(FileNotFoundError, match="no best checkpoint"):
        restore_network(tmp_path, "best")


def same_network(one, other) -> None:
    assert one.architecture == other.architecture
    jax.tree.map(np.testing.assert_array_equal, tuple(one.variables), tuple(other.variables))


def test_a_finished_run_without_checkpoints_is_what_it_was(toy_data, tmp_path):
    config = replace(CONFIG, epochs=2, stage_cost=0.0)
    finished = run(toy_data, tmp_path, config=config)
    shutil.rmtree(tmp_path / "checkpoints")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = run(toy_data, tmp_path, config=config)
    assert again.metrics == finished.metrics and not again.interrupted
    same_network(again.network, finished.network)
    assert again.trajectories.keys() == finished.trajectories.keys()
    for part, measured in finished.trajectories.items():
        jax.tree.map(np.testing.assert_array_equal, again.trajectories[part], measured)
    del kept[tmp_path / workdir_lock.LOCK]
    assert all(path.read_bytes() == content for path, content in kept.items())
    same_network(restore_network(tmp_path), finished.network)
    with pytest.raises(FileNotFoundError, match="there are no checkpoints"):
        restore_network(tmp_path, "best")
    with pytest.raises(ValueError, match=r"training\.seed is 0 there and 1 here"):
        run(toy_data, tmp_path, config=replace(config, seed=1))
    path = tmp_path / records.METRICS
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: its content does not fit"):
        run(toy_data, tmp_path, config=config)


@pytest.mark.parametrize(
    "content", ["null", "[]", '{"train": 3}', "{", '{"train": {"losses": "x"}}']
)
def test_a_damaged_trajectory_is_one_sentence(toy_data, tmp_path, content):
    config = replace(CONFIG, epochs=1)
    (tmp_path / records.TRAJECTORY).write_text(content)
    (tmp_path / records.NETWORK).mkdir()
    description = run_config(network(toy_data), config, toy_data)
    records.check_config(tmp_path, records.plain(description))
    records.MetricsFile(tmp_path, [{"epoch": 1}])
    records.seal_metrics(tmp_path, [{"epoch": 1}])
    with pytest.raises(ValueError, match=r"trajectory\.json is damaged: "):
        finished_without_checkpoints(tmp_path, records.plain(description), epochs=1)


def test_lost_checkpoints_of_a_run_in_the_middle_are_no_new_start(toy_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, 9)
        with pytest.raises(Killed):
            run(toy_data, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        shutil.rmtree(path)
    rows = (tmp_path / records.METRICS).read_bytes()
    for _ in range(2):
        with pytest.raises(
            ValueError, match="2 of 3 epochs are done, but its checkpoints are gone"
        ):
            run(toy_data, tmp_path)
        assert (tmp_path / records.METRICS).read_bytes() == rows
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)


def test_a_run_killed_before_its_first_checkpoint_starts_again(toy_data, tmp_path, monkeypatch):
    whole = whole_run(toy_data)
    with monkeypatch.context() as patch:

        def dying(*arguments):
            raise Killed

        patch.setattr(checkpoints.Checkpoints, "save", dying)
        with pytest.raises(Killed):
            run(toy_data, tmp_path / "killed")
    assert len(records.read_metrics(tmp_path / "killed")) == 1
    assert without_times(run(toy_data, tmp_path / "killed").metrics) == without_times(whole.metrics)


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def newest_arrays(workdir):
    """The largest file of the newest checkpoint."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return max(
        (path for path in (newest / "state").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )


def test_a_damaged_checkpoint_is_left_out_and_the_run_comes_to_the_same_bits(
    toy_data, tmp_path, monkeypatch
):
    whole = whole_run(toy_data)
    with monkeypatch.context() as patch:
        killed_after(patch, 10)
        with pytest.raises(Killed):
            run(toy_data, tmp_path / "damaged")
    flip_a_bit(newest_arrays(tmp_path / "damaged"))
    with pytest.raises(ValueError, match="checkpoint .*/8 is damaged: .* is not as it was saved"):
        restore_network(tmp_path / "damaged")
    notes: list[str] = []
    monkeypatch.setattr(TrainingProgress, "note", lambda self, text: notes.append(text))
    resumed = run(toy_data, tmp_path / "damaged")
    assert "checkpoints/8 is damaged" in notes[0] and "continuing after epoch 1" in notes[1]
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    same_network(resumed.network, whole.network)
    # The damaged one was written anew.
    notes.clear()
    run(toy_data, tmp_path / "damaged")
    assert len(notes) == 1 and "continuing after epoch 3" in notes[0]
    same_network(restore_network(tmp_path / "damaged"), whole.network)


def test_a_run_with_no_whole_checkpoint_is_no_new_start(toy_data, tmp_path):
    run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
    flip_a_bit(newest_arrays(tmp_path))
    with pytest.raises(
        ValueError, match="no checkpoint in .* can be read .*is not as it was saved"
    ):
        run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))


def test_a_position_that_is_not_that_of_its_step_is_refused(toy_data, tmp_path):
    config = replace(CONFIG, epochs=1)
    run(toy_data, tmp_path, config=config)
    about = tmp_path / "checkpoints" / "4" / "checkpoint.json"
    value = files.read_json(about)
    value["position"]["step_in_epoch"] = 1
    files.write_json(about, files.sealed(value))
    with pytest.raises(ValueError, match="checkpoint 4 .* step 1 after 1 epochs of 4 steps"):
        run(toy_data, tmp_path, config=config)


def test_two_runs_in_one_workdir_do_not_meet(toy_data, tmp_path):
    finished = run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
    rows = (tmp_path / records.METRICS).read_bytes()
    with only_run_in(tmp_path):
        with pytest.raises(OSError, match=f"is in use by process {os.getpid()} on "):
            run(toy_data, tmp_path, config=replace(CONFIG, epochs=1))
        assert (tmp_path / records.METRICS).read_bytes() == rows
    assert run(toy_data, tmp_path, config=replace(CONFIG, epochs=1)).metrics == finished.metrics


def test_a_disk_that_fills_up_is_one_sentence_and_the_run_continues(
    toy_data, tmp_path, monkeypatch
):
    whole = whole_run(toy_data)
    with monkeypatch.context() as patch:
        written = checkpoints.write_json

        def full(path, value):
            if value["step"] == 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written(path, value)

        patch.setattr(checkpoints, "write_json", full)
        with pytest.raises(OSError) as error:
            run(toy_data, tmp_path / "full")
    assert str(error.value) == (
        f"checkpoint 8 cannot be written to {tmp_path}/full/checkpoints: No space left on device; "
        "checkpoint 4 stays."
    )
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == ["4"]
    resumed = run(toy_data, tmp_path / "full")
    assert without_times(resumed.metrics) == without_times(whole.metrics)


@pytest.mark.parametrize("where", ["setting up", "the last evaluation"])
def test_an_interrupt_outside_the_epochs_stops_the_run_cleanly(
    toy_data, tmp_path, monkeypatch, where
):
    config = replace(CONFIG, epochs=1)
    owner, name = {
        "setting up": (loop, "training_problem"),
        "the last evaluation": (loop.TrainingLoop, "evaluate"),
    }[where]
    original = getattr(owner, name)

    def interrupted(*arguments, **keywords):
        # Of the evaluations only the last is of the training set too.
        if name == "training_problem" or "train" in arguments[-1]:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        stopped = run(toy_data, tmp_path, config=config)
    assert stopped.interrupted and stopped.trajectories == {}
    assert len(stopped.metrics) == (0 if where == "setting up" else 1)
    assert not (tmp_path / records.TRAJECTORY).exists()
    resumed = run(toy_data, tmp_path, config=config)
    assert not resumed.interrupted and set(resumed.trajectories) == {"train", "validation", "test"}


def test_what_is_held_out_does_not_show_in_the_mean_of_the_pixels(toy_data, monkeypatch):
    def trained_on(architecture: ResNetConfig, **kwargs) -> ResNetConfig:
        """The architecture that is trained in the end."""
        found = []

        def begin(network, *arguments, **keywords):
            found.append(network)
            raise Killed

        monkeypatch.setattr("ocresnet.training.fit.TrainingLoop", begin)
        with pytest.raises(Killed):
            fit(architecture, CONFIG, toy_data, devices=ONE_DEVICE, **kwargs)
        return found[0]

    split = toy_data.split(CONFIG.validation, CONFIG.seed)
    assert split.pixel_statistics != toy_data.pixel_statistics
    before_the_split = replace(network(toy_data), classes=5)
    assert trained_on(before_the_split) == replace(for_dataset(before_the_split, split), classes=5)
    assert trained_on(network(split)) == network(split)
    own = replace(network(toy_data), pixel_mean=(1.0,), pixel_deviation=(2.0,))
    assert trained_on(own) == own
    # A network that was trained before stays what it is.
    initial = create(network(toy_data))
    assert trained_on(initial.architecture, initial=initial) == initial.architecture


def test_a_damaged_configuration_is_one_sentence(toy_data, tmp_path):
    description = records.plain(run_config(network(toy_data), CONFIG, toy_data))
    for content in (
        None,
        [],
        "text",
        3,
        {},
        {**description, "architecture": None},
        {**description, "architecture": {**description["architecture"], "blocks": 7}},
        {**description, "architecture": {**description["architecture"], "blocks": [[1]]}},
        {**description, "training": [1]},
        {**description, "data": None},
        {**description, "data": {"samples": 3, "fingerprint": "x"}},
    ):
        files.write_json(tmp_path / records.CONFIG, content)
        with pytest.raises(ValueError, match=r"config\.json in .* is damaged: "):
            load_configs(tmp_path)
