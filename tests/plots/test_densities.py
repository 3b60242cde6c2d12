"""Figures of flows."""

import numpy as np
import pytest

from ocresnet.plots.densities import density_grid, draw_flow
from ocresnet.systems.flow import FlowConfig
from tests.conftest import random_network

FLOW = FlowConfig(hidden=(3,), solver="euler", steps=2, image_shape=(1, 1, 2))


def test_data_samples_and_density_have_one_frame():
    points = np.random.default_rng(0).normal(size=(50, 1, 1, 2)) * [1, 3]
    data, samples, density, _ = draw_flow(random_network(FLOW), points).axes
    assert len(data.lines[0].get_xdata()) == len(samples.lines[0].get_xdata()) == 50
    frames = [(axis.get_xlim(), axis.get_ylim()) for axis in (data, samples, density)]
    assert frames[0] == frames[1] == frames[2]
    (image,) = density.images
    assert image.get_array().min() >= 0
    assert tuple(image.get_extent()) == (*frames[0][0], *frames[0][1])


def test_the_density_is_drawn_where_it_is():
    """An affine flow that does nothing has the density of its normalisation."""
    network = random_network(
        FlowConfig(hidden=(), solver="euler", steps=1, image_shape=(1, 1, 2), pixel_mean=(3.0, 0.0))
    )
    still = network.replace(params={"flow": {"layer_1": {"kernel": np.zeros((4, 2), np.float32)}}})
    points = np.array([[0.0, -2.0], [4.0, 2.0]])
    (image,) = draw_flow(still, points).axes[2].images
    values = image.get_array()
    row, column = np.unravel_index(values.argmax(), values.shape)
    left, right, bottom, top = image.get_extent()
    x = left + (column + 0.5) * (right - left) / values.shape[1]
    y = bottom + (row + 0.5) * (top - bottom) / values.shape[0]
    np.testing.assert_allclose([x, y], [3, 0], atol=0.03)
    np.testing.assert_allclose(values.max(), 1 / (2 * np.pi), rtol=1e-2)


def test_a_grid_has_the_middles_of_its_cells():
    places, area = density_grid(np.array([0.0, 10.0]), np.array([2.0, 12.0]), 2)
    np.testing.assert_allclose(places, [[0.5, 10.5], [0.5, 11.5], [1.5, 10.5], [1.5, 11.5]])
    assert area == 1


def test_other_dimensions_are_not_drawn():
    with pytest.raises(ValueError, match="have 3 features, but a density is drawn of 2"):
        draw_flow(random_network(FLOW), np.zeros((4, 3)))
