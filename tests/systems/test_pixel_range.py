"""Images in other units than those of the training are noticed, and no others."""

import jax
import numpy as np
import pytest

from ocresnet.data.augmentation import augment
from ocresnet.data.dataset import Dataset
from ocresnet.data.sources import load_dataset
from ocresnet.systems.pixel_range import pixel_range_warning


def natural_images(samples: int = 64) -> np.ndarray:
    """Coloured images with a brightness and a contrast of their own, as photographs have."""
    rng = np.random.default_rng(0)
    brightness = rng.uniform(20, 230, (samples, 1, 1, 3))
    contrast = rng.uniform(2, 60, (samples, 1, 1, 1))
    images = brightness + contrast * rng.normal(size=(samples, 8, 8, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def strokes(samples: int = 64) -> np.ndarray:
    """White strokes on black, as in MNIST: most pixels are 0."""
    images = np.zeros((samples, 28, 28, 1), np.uint8)
    for index, column in enumerate(np.random.default_rng(1).integers(4, 20, samples)):
        images[index, 4:24, column : column + 5] = 255
    return images


def digits() -> np.ndarray:
    return load_dataset("digits").train_images


KINDS = {"natural": natural_images, "strokes": strokes, "digits": digits}


def statistics(images: np.ndarray):
    labels = np.zeros(len(images), int)
    return Dataset("images", images, labels, images, labels).pixel_statistics


@pytest.mark.parametrize("kind", KINDS)
def test_other_units_are_noticed_both_ways(kind):
    images = KINDS[kind]()
    mean, deviation = statistics(images)
    scaled = images.astype(np.float32) / 255
    units = scaled, 2 * scaled - 1, (images - np.array(mean)) / np.array(deviation)
    for others in units:
        warning = pixel_range_warning(others, mean, deviation)
        assert warning and f"the pixels go from {others.min():.3g} to {others.max():.3g}" in warning
        assert f"{mean[0]:.3g}" in warning and f"{deviation[0]:.3g}" in warning
        other_mean, other_deviation = others.mean((0, 1, 2)), others.std((0, 1, 2))
        assert pixel_range_warning(others, other_mean, other_deviation) is None
        assert pixel_range_warning(images, other_mean, other_deviation)


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_images_raise_no_alarm(kind):
    images = KINDS[kind]()
    mean, deviation = statistics(images)
    assert pixel_range_warning(images, mean, deviation) is None
    for image in images[:200]:  # each alone
        assert pixel_range_warning(image[None], mean, deviation) is None
        assert pixel_range_warning(image[None].astype(np.float32), mean, deviation) is None
    fill = jax.numpy.asarray(mean)
    for augmentation in ("crop", "crop_flip"):
        augmented = augment(jax.random.key(0), images[:64], augmentation, fill)
        assert pixel_range_warning(augmented, mean, deviation) is None
    for extreme in (0, 255):
        flat = np.full_like(images[:2], extreme)
        assert pixel_range_warning(flat, mean, deviation) is None
    assert pixel_range_warning(images[:0], mean, deviation) is None
    scaled = [(images / 255).astype(np.float32), *(np.array(s) / 255 for s in (mean, deviation))]
    assert pixel_range_warning(*scaled) is None


def test_one_number_for_all_channels_will_do():
    assert pixel_range_warning(natural_images() / 255, (120.0,), (60.0,))
    assert pixel_range_warning(natural_images(), (120.0,), (60.0,)) is None


def test_few_of_many_images_are_looked_at():
    class Counting(np.ndarray):
        looked_at = 0

        def __getitem__(self, chosen):
            some = super().__getitem__(chosen)
            Counting.looked_at += len(some)
            return some

    images = np.zeros((10_000, 1, 1, 1), np.float32).view(Counting)
    images[-40:] = 1.0  # of the last images one is among those that are looked at
    Counting.looked_at = 0
    assert pixel_range_warning(images, (120.0,), (60.0,))
    assert 200 < Counting.looked_at <= 256
