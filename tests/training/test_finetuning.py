"""`fit` from a given network, with and without a teacher."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.data.dataset import Dataset
from ocresnet.stage_cost.pruning import prune
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training import records
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import Run, fit, for_dataset
from ocresnet.training.optimizers import SGD
from tests.conftest import random_network
from tests.training.test_fit import ONE_DEVICE, Killed, killed_after, without_times

PLAIN = TrainingConfig(epochs=2, batch_size=16, augmentation="crop", stage_cost=0.0, validation=0.2)
DISTILLED = replace(PLAIN, distillation=0.5)


@pytest.fixture
def deep(toy_data) -> Network:
    return random_network(for_dataset(ResNetConfig.homogeneous(blocks=2, filters=4), toy_data))


def finetune(
    network: Network, data: Dataset, config: TrainingConfig = PLAIN, workdir=None, **kwargs
) -> Run:
    kwargs = {"progress": False, "devices": ONE_DEVICE, "initial": network} | kwargs
    return fit(network.architecture, config, data, workdir=workdir, **kwargs)


def test_training_starts_at_the_given_network_and_leaves_it_alone(deep, toy_data):
    start = jax.device_put(prune(deep, 1), jax.devices()[0])
    still = SGD(learning_rate=1e-12, momentum=0.0, weight_decay=0.0)
    tiny = replace(PLAIN, epochs=1, optimizer=still)
    result = finetune(start, toy_data, tiny)
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-6),
        result.network.params,
        start.params,
    )
    # Its buffers are its own: nothing was given away to the training step.
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(start))
    other = finetune(start, toy_data, replace(tiny, optimizer=replace(still, learning_rate=0.1)))
    difference = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
        other.network.params["head"],
        start.params["head"],
    )
    assert min(jax.tree.leaves(difference)) > 1e-4


def test_a_killed_distillation_resumes_to_the_same_bits(deep, toy_data, tmp_path, monkeypatch):
    start = prune(deep, 1)
    whole = finetune(start, toy_data, DISTILLED, tmp_path / "whole", teacher=deep)
    with monkeypatch.context() as patch:
        killed_after(patch, 6)  # in the middle of the second epoch
        with pytest.raises(Killed):
            finetune(start, toy_data, DISTILLED, tmp_path / "killed", teacher=deep)
    resumed = finetune(start, toy_data, DISTILLED, tmp_path / "killed", teacher=deep)
    assert without_times(resumed.metrics) == without_times(whole.metrics)
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)
    # The teacher has an effect, and so has what is learned from it.
    alone = finetune(start, toy_data)
    assert alone.metrics[0]["objective"] != whole.metrics[0]["objective"]
    assert set(records.read_json(tmp_path / "whole" / records.CONFIG)) == {
        "architecture",
        "training",
        "data",
        "initial",
        "teacher",
    }


def test_another_initial_network_or_teacher_is_refused(deep, toy_data, tmp_path, monkeypatch):
    start = prune(deep, 1)
    config = replace(DISTILLED, epochs=1)
    finetune(start, toy_data, config, tmp_path, teacher=deep)
    monkeypatch.setattr("ocresnet.training.fit.TrainingLoop", None)
    stem = {"convolution": {"kernel": 2 * start.params["stem"]["convolution"]["kernel"]}}
    moved = start.replace(params={**start.params, "stem": {**start.params["stem"], **stem}})
    with pytest.raises(ValueError, match="another configuration .*initial is"):
        finetune(moved, toy_data, config, tmp_path, teacher=deep)
    with pytest.raises(ValueError, match="initial is [0-9a-f]+ there and None here"):
        finetune(start, toy_data, config, tmp_path, teacher=deep, initial=None)
    with pytest.raises(ValueError, match="teacher is"):
        finetune(start, toy_data, config, tmp_path, teacher=moved)


def test_what_cannot_work_is_refused_before_anything_is_compiled(deep, toy_data, monkeypatch):
    monkeypatch.setattr("ocresnet.training.fit.TrainingLoop", None)
    with pytest.raises(ValueError, match=r"it has blocks \(1,\) instead of \(2,\)"):
        finetune(deep, toy_data, initial=prune(deep, 1))
    with pytest.raises(ValueError, match="there is no teacher"):
        finetune(deep, toy_data, DISTILLED)
