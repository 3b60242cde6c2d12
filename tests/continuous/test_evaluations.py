"""Counting the evaluations of a Neural ODE's vector field."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.continuous.evaluations import function_evaluations, initial_value
from ocresnet.systems.adaptive_solves import solution
from ocresnet.systems.mlp import MLPConfig
from tests.conftest import random_images, random_network
from tests.systems.test_neural_ode import ADAPTIVE, CONVOLUTIONAL, DENSE


def test_equal_steps_are_known_without_running_them():
    for architecture, wanted in ((DENSE, (8, 4)), (CONVOLUTIONAL, (2, 2))):
        network = random_network(architecture)
        assert function_evaluations(network, random_images(architecture)) == wanted


def test_adaptive_solves_are_means_over_batches():
    architecture = replace(ADAPTIVE, rtol=1e-6, atol=1e-6)
    network, images = random_network(architecture), random_images(architecture, batch=5)
    theta = network.params["ode"]["residual"]
    steps = []
    for batch in (images[:2], images[2:4]):
        start = batch.reshape(2, -1) @ network.params["stem"]["kernel"]
        start += network.params["stem"]["bias"]
        got = initial_value(architecture, network.variables, jnp.asarray(batch))
        np.testing.assert_allclose(got, start, rtol=1e-5)
        solved = solution(architecture.adaptive, architecture.field(), theta, 0.0, 1.2, got)
        steps.append(int(solved.steps))
    counted = function_evaluations(network, images, batch_size=2)
    assert counted == (6 * np.mean(steps) + 1, np.mean(steps))
    assert counted.steps > 2


def test_what_has_no_vector_field_is_refused():
    network = random_network(MLPConfig(image_shape=(2, 2, 1)))
    with pytest.raises(ValueError, match="only a Neural ODE .* and this is a MLPConfig"):
        function_evaluations(network, np.zeros((3, 2, 2, 1)))
    network = random_network(DENSE)
    with pytest.raises(ValueError, match="there are 0 images in batches of 128: both must be"):
        function_evaluations(network, np.zeros((0, 2, 2, 1)))
