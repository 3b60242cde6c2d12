"""Evaluation on several devices is that of one."""

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.training import evaluation
from ocresnet.training.evaluation import evaluate
from tests.conftest import SMALL, random_images, random_network


@pytest.mark.parametrize("own_output", [False, True])
@pytest.mark.parametrize("devices", [1, 8])
def test_devices_measure_together(devices, own_output, monkeypatch):
    """23 samples are no multiple of anything, and need two batches."""
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 16 // devices)
    network = random_network(SMALL["homogeneous"])
    images = random_images(network.architecture, batch=23)
    labels = np.arange(23) % 3

    def squared(logits, labels):
        return (logits[..., 0] - labels) ** 2

    wanted = trajectory(network, images, labels, own_output=own_output, loss=squared)
    asked = []
    measured = evaluation.trajectory_sums

    def count(*arguments, **keywords):
        asked.append(arguments[2].sharding.num_devices)
        return measured(*arguments, **keywords)

    monkeypatch.setattr(evaluation, "trajectory_sums", count)
    got = evaluate(
        network,
        images,
        labels,
        loss=squared,
        devices=jax.devices()[:devices],
        own_output=own_output,
    )
    assert asked == [devices] * 2
    for own, other in zip(got, wanted, strict=True):
        assert own.dtype == np.float64 and len(own) == len(other)
        np.testing.assert_allclose(own, other, rtol=1e-5)


def test_processes_measure_their_parts(monkeypatch):
    """Two processes, one after the other: their sums are added, bit by bit as float64."""
    network = random_network(SMALL["homogeneous"])
    images = random_images(network.architecture, batch=5)
    labels = np.arange(5) % 3
    parts = []

    def share(process):
        """What a process adds to the sums."""
        monkeypatch.setattr(jax, "process_index", lambda: process)
        own = []

        def gather(bits):
            own.append(bits)
            return np.stack([bits, np.zeros_like(bits)])

        monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        result = evaluate(
            network,
            images,
            labels,
            loss=lambda logits, labels: logits[..., 0],
            devices=jax.devices()[:1],
        )
        assert all(bits.dtype == np.uint32 for bits in own)
        parts.append(result)

    share(0)
    share(1)
    monkeypatch.undo()
    wanted = trajectory(network, images, labels, loss=lambda logits, labels: logits[..., 0])
    for first, second, whole in zip(*parts, wanted, strict=True):
        np.testing.assert_allclose(first + second, whole, rtol=1e-5)
