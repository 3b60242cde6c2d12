"""Toys and tables: what they are, and that a seed is all they depend on."""

import numpy as np
import pytest

from ocresnet.data.points import TOYS, toy_points
from ocresnet.data.sources import load_dataset


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_a_function_of_its_seed(name):
    points, labels = toy_points(name, 500, seed=3)
    assert points.shape == (500, 2) and points.dtype == np.float32 and labels.dtype == np.int32
    again, other = toy_points(name, 500, seed=3)[0], toy_points(name, 500, seed=4)[0]
    np.testing.assert_array_equal(points, again)
    assert (points != other).any(axis=1).all()
    assert set(labels) == set(range(labels.max() + 1)) and labels.max() >= 1


def test_the_toys_lie_where_they_should():
    points, labels = toy_points("checkerboard", 4000)
    fields = np.floor(points).astype(int)
    assert set(map(tuple, fields)) == {
        (x, y) for x in range(-2, 2) for y in range(-2, 2) if (x + y) % 2 == 0
    }
    points, labels = toy_points("rings", 4000)
    radius = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose([radius[labels == k].mean() for k in range(3)], [1, 2, 3], atol=0.02)
    points, labels = toy_points("eight_gaussians", 4000)
    centres = np.stack([points[labels == k].mean(axis=0) for k in range(8)])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 2, atol=0.05)
    points, labels = toy_points("moons", 4000)
    centre = np.array([[0.0, 0.0], [1.0, 0.5]])[labels]
    np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1).mean(), 1, atol=0.02)
    up = points[:, 1] - centre[:, 1]
    assert np.corrcoef(up, labels)[0, 1] < -0.8
    points, labels = toy_points("pinwheel", 4000)
    turn = np.exp(2j * np.pi / 5)
    arms = [(points[labels == k] @ [1, 1j]).mean() for k in range(5)]
    np.testing.assert_allclose(np.array(arms[1:]), np.array(arms[:-1]) * turn, atol=0.1)


def test_a_toy_is_data_of_one_pixel_with_its_own_statistics():
    data = load_dataset("moons[:1000]")
    assert data.train_images.shape == (1000, 1, 1, 2) and data.test_images.shape == (4000, 1, 1, 2)
    assert data.classes == 2
    mean, deviation = data.pixel_statistics
    np.testing.assert_allclose(mean, data.train_images[:, 0, 0].mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, data.train_images[:, 0, 0].std(0), rtol=1e-5)


def test_the_table_is_scikit_learns():
    from sklearn.datasets import load_breast_cancer

    data, table = load_dataset("breast_cancer"), load_breast_cancer()
    assert data.train_images.shape == (455, 1, 1, 30) and data.test_images.shape == (114, 1, 1, 30)
    rows = np.concatenate([data.train_images, data.test_images])[:, 0, 0]
    wanted = np.float32(table.data)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], wanted[np.lexsort(wanted.T)])
    labels = np.concatenate([data.train_labels, data.test_labels])
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(table.target))


def test_unknown_toys_are_refused():
    with pytest.raises(ValueError, match="toy is 'spirals', but must be one of moons, checkerboa"):
        toy_points("spirals", 3)
    with pytest.raises(ValueError, match="samples is 0, but must be at least 1."):
        toy_points("moons", 0)
