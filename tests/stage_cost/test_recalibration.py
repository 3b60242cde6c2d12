"""Batch statistics of a whole network measured anew."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.systems.network import Network
from tests.conftest import SMALL, apply, random_images
from tests.stage_cost.gated_oracle import random_network


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(SMALL["standard"])


def test_one_batch_makes_inference_the_training_pass(network):
    """On the images that were measured, running and batch statistics are then the same."""
    images = random_images(network.architecture, batch=6)
    measured = recalibrate(network, images)
    inference, _ = apply(network.architecture, measured.variables, images)
    training, _ = apply(network.architecture, network.variables, images, train=True)
    before, _ = apply(network.architecture, network.variables, images)
    np.testing.assert_allclose(inference, training, rtol=1e-4, atol=1e-4)
    assert np.abs(before - training).max() > 0.1
    assert measured.params is network.params


def test_moments_are_the_means_over_full_batches(network):
    images = random_images(network.architecture, batch=9)
    together = recalibrate(network, images, batch_size=4)
    alone = [recalibrate(network, images[start : start + 4]) for start in (0, 4)]
    jax.tree.map(
        lambda mean, a, b: np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-4, atol=1e-5),
        together.batch_stats,
        *(one.batch_stats for one in alone),
    )


def test_the_result_does_not_depend_on_the_statistics_before(network):
    images = random_images(network.architecture, batch=6)
    spoiled = jax.tree.map(lambda leaf: leaf + 7.0, network.batch_stats)
    jax.tree.map(
        np.testing.assert_array_equal,
        recalibrate(network, images).batch_stats,
        recalibrate(replace(network, batch_stats=spoiled), images).batch_stats,
    )


def test_no_images_are_refused(network):
    with pytest.raises(ValueError, match="at least one image"):
        recalibrate(network, random_images(network.architecture, batch=0))
