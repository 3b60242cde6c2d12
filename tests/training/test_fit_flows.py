"""Flows through `fit`: no labels, no accuracies, killed and resumed, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.data.dataset import Dataset
from ocresnet.data.points import toy_points
from ocresnet.export import export_network, load_exported
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.network import load
from ocresnet.training.adaptive_optimizers import PolyakSGD
from ocresnet.training.config import TrainingConfig
from ocresnet.training.control_optimizers import EKFAC, OCNOpt
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.gradient_optimizers import AdamW
from ocresnet.training.restore import restore_network
from ocresnet.training.sweep import sweep
from tests.training.test_fit import Killed, killed_after

FLOW = FlowConfig(hidden=(8,), solver="midpoint", steps=3, trace="rademacher")
TRAINING = TrainingConfig(
    epochs=3,
    batch_size=32,
    optimizer=AdamW(learning_rate=0.02),
    stage_cost=0.0,
    loss="negative_log_likelihood",
    validation=0.2,
)


@pytest.fixture(scope="module")
def moons() -> Dataset:
    """160 points to train on, without labels."""
    points = toy_points("moons", 200)[0][:, None, None]
    return Dataset.without_labels("moons", points[:160], points[160:])


def train(data, workdir=None, architecture=FLOW, training=TRAINING, devices=1):
    architecture = for_dataset(architecture, data)
    some = jax.devices()[:devices]
    return fit(architecture, training, data, workdir=workdir, devices=some, progress=False)


def test_it_learns_and_has_no_accuracies(moons, tmp_path):
    run = train(
        moons, tmp_path, training=replace(TRAINING, epochs=8, optimizer=AdamW(learning_rate=0.05))
    )
    losses = [row["test"]["losses"][-1] for row in run.metrics]
    assert losses[-1] < losses[0] - 0.1
    for row in run.metrics:
        assert all(row[part]["accuracies"] == [] for part in ("train", "validation", "test"))
    test = run.trajectories["test"]
    assert test.losses.shape == (1,) and test.accuracies.shape == test.probabilities.shape == (0,)
    np.testing.assert_allclose(test.losses[-1], losses[-1], rtol=1e-6)
    again = load(tmp_path / "network")
    assert again.architecture == run.network.architecture
    # The best checkpoint is that of the least validation loss: draws are counted, four an epoch.
    validation = [row["validation"]["losses"][-1] for row in run.metrics]
    best = restore_network(tmp_path, "best").batch_stats["flow"]["draws"]
    drawn_since = run.network.batch_stats["flow"]["draws"] - best
    assert (drawn_since == 4 * (7 - validation.index(min(validation)))).all()


def test_a_killed_run_resumes_to_the_same_bits(moons, tmp_path, monkeypatch):
    whole = train(moons)
    with monkeypatch.context() as patch:
        killed_after(patch, 6)  # in the middle of the second epoch of four steps
        with pytest.raises(Killed):
            train(moons, tmp_path)
    resumed = train(moons, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)
    for row, wanted in zip(resumed.metrics, whole.metrics, strict=True):
        assert row["test"] == wanted["test"] and row["objective"] == wanted["objective"]


def test_two_devices_estimate_the_same_trace(moons):
    """With other vectors: the exact trace gives the run of one device, the estimate nearly."""
    exact = replace(FLOW, trace="exact")
    one, two = (train(moons, architecture=exact, devices=devices) for devices in (1, 2))
    np.testing.assert_allclose(
        one.trajectories["test"].losses, two.trajectories["test"].losses, rtol=1e-4
    )
    estimated = train(moons, devices=2)
    assert abs(estimated.metrics[-1]["objective"] - one.metrics[-1]["objective"]) < 0.2


@pytest.mark.parametrize(
    "optimizer", [EKFAC(), OCNOpt(rollout="nonlinear")], ids=["ekfac", "ocnopt"]
)
def test_second_order_optimizers_train_it(optimizer, moons):
    training = replace(TRAINING, optimizer=optimizer, epochs=4)
    run = train(moons, architecture=replace(FLOW, trace="exact"), training=training)
    assert run.metrics[-1]["test"]["losses"][-1] < run.metrics[0]["test"]["losses"][-1]


def test_an_exported_flow_gives_its_outputs(moons, tmp_path):
    run = train(moons, training=replace(TRAINING, epochs=1))
    export_network(run.network, tmp_path / "flow.stablehlo", platforms=("cpu",))
    assert load_exported(tmp_path / "flow.stablehlo")(moons.test_images).shape == (40, 3)


def test_what_does_not_fit_is_refused(moons):
    flow, mlp = for_dataset(FLOW, moons), MLPConfig((3,), classes=2, image_shape=(1, 1, 2))
    labelled = replace(moons, classes=2)
    teacher = train(moons, training=replace(TRAINING, epochs=1)).network
    for architecture, change, data, message in (
        (
            flow,
            {"loss": "cross_entropy"},
            moons,
            "loss is 'cross_entropy', but a FlowConfig is tra",
        ),
        (mlp, {}, labelled, "but a MLPConfig is trained with cross_entropy or l2."),
        (mlp, {"loss": "l2"}, moons, "moons has no labels, and a MLPConfig tells classes apart"),
        (flow, {"label_smoothing": 0.1}, moons, "a likelihood has no labels to smooth"),
        (flow, {"stage_cost": 0.1}, moons, "a FlowConfig cannot have any"),
        (flow, {"optimizer": PolyakSGD()}, moons, "where PolyakSGD would stand still: give a"),
        (flow, {"optimizer": OCNOpt(region="square")}, moons, "region 'square' needs a lower bou"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(architecture, replace(TRAINING, **change), data, progress=False)
    with pytest.raises(ValueError, match="distillation is 0.5, but a FlowConfig has no classes"):
        fit(flow, replace(TRAINING, distillation=0.5), moons, teacher=teacher, progress=False)
    with pytest.raises(ValueError, match="a sweep measures accuracies, and a FlowConfig has none"):
        grid = {"learning_rates": [0.1], "weight_decays": [0.0], "seeds": [0]}
        sweep(flow, TRAINING, moons, **grid)
    with pytest.raises(ValueError, match="a FlowConfig tells no classes apart"):
        trajectory(teacher, moons.test_images, moons.test_labels)
    with pytest.raises(ValueError, match="a FlowConfig tells no classes apart"):
        predict(teacher, moons.test_images)
