"""Points without images: two-dimensional toys, pure functions of a seed, and tables of features.

They are data sets whose samples are images of one pixel, with a channel for each feature, so that
every channel is normalised by itself, as pixels are.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from ocresnet.data.dataset import Dataset

TRAIN_SAMPLES, TEST_SAMPLES = 8000, 4000
"""Of a toy."""

TEST_SHARE = 5
"""Of a table, one sample in so many is for tests."""

Generator = np.random.Generator


def _moons(rng: Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles that reach into each other."""
    labels = rng.integers(0, 2, samples)
    angle, lower = np.pi * rng.random(samples), labels == 1
    x = np.where(lower, 1 - np.cos(angle), np.cos(angle))
    y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle))
    return np.stack([x, y], -1) + 0.1 * rng.normal(size=(samples, 2)), labels


def _checkerboard(rng: Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Every second field of a board of 4x4 unit squares around 0, uniformly."""
    column, half = rng.integers(0, 4, samples), rng.integers(0, 2, samples)
    field = np.stack([column, 2 * half + column % 2], -1)
    return field - 2 + rng.random((samples, 2)), half


def _rings(rng: Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Three circles around 0."""
    labels = rng.integers(0, 3, samples)
    angle, radius = 2 * np.pi * rng.random(samples), 1.0 + labels
    circles = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return circles + 0.1 * rng.normal(size=(samples, 2)), labels


def _eight_gaussians(rng: Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal clouds on a circle."""
    labels = rng.integers(0, 8, samples)
    angle = 2 * np.pi * labels / 8
    centres = 2 * np.stack([np.cos(angle), np.sin(angle)], -1)
    return centres + 0.2 * rng.normal(size=(samples, 2)), labels


def _pinwheel(rng: Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Five arms that are wound up."""
    labels = rng.integers(0, 5, samples)
    radius = 1 + 0.3 * rng.normal(size=samples)
    across = 0.1 * rng.normal(size=samples)
    angle = 2 * np.pi * labels / 5 + 0.25 * np.exp(radius)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([radius * cos - across * sin, radius * sin + across * cos], -1), labels


TOYS: dict[str, Callable[[Generator, int], tuple[np.ndarray, np.ndarray]]] = {
    "moons": _moons,
    "checkerboard": _checkerboard,
    "rings": _rings,
    "eight_gaussians": _eight_gaussians,
    "pinwheel": _pinwheel,
}

TABLES = ("breast_cancer",)
"""Of scikit-learn, those whose features are continuous: of others there is no density."""


def toy_points(name: str, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of a toy, and which of its parts each belongs to.

    Args:
      name: one of `TOYS`.
      samples: how many.
      seed: the same one draws the same points.

    Returns:
      [samples, 2], float32, and [samples], int32.

    Raises:
      ValueError: for an unknown name, or no samples.
    """
    if name not in TOYS:
        raise ValueError(f"toy is {name!r}, but must be one of {', '.join(TOYS)}.")
    if samples < 1:
        raise ValueError(f"samples is {samples}, but must be at least 1.")
    points, labels = TOYS[name](np.random.default_rng(seed), samples)
    return points.astype(np.float32), labels.astype(np.int32)


def toy(name: str, seed: int = 0) -> Dataset:
    """A toy as a data set: 8,000 points to train on, and 4,000 others."""
    points, labels = toy_points(name, TRAIN_SAMPLES + TEST_SAMPLES, seed)
    return _dataset(name, points, labels, np.arange(len(labels)) >= TRAIN_SAMPLES)


def table(name: str, datasets: ModuleType) -> Dataset:
    """A table of `sklearn.datasets` as a data set: 30 measurements of 569 tumours of two kinds.

    A random fifth is the test set. Features are what is in the table, in its units.

    Args:
      name: one of `TABLES`.
      datasets: the module.
    """
    found = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(found.data))
    points, labels = found.data[order].astype(np.float32), found.target[order].astype(np.int32)
    return _dataset(name, points, labels, np.arange(len(labels)) % TEST_SHARE == 0)


def _dataset(name: str, points: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Dataset:
    images = points[:, None, None]
    return Dataset(name, images[~test], labels[~test], images[test], labels[test], source=name)
