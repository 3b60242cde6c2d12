"""What a data set checks, and how it is split."""

import numpy as np
import pytest

from ocresnet.data.dataset import Dataset


def dataset(**changes) -> Dataset:
    fields = {
        "train_images": np.arange(10 * 4 * 4 * 2, dtype=np.uint8).reshape(10, 4, 4, 2),
        "train_labels": np.arange(10) % 3,
        "test_images": np.zeros((4, 4, 4, 2), np.uint8),
        "test_labels": np.array([0, 1, 2, 2]),
    }
    return Dataset("small", **(fields | changes))


def test_statistics_and_shape():
    data = dataset()
    assert data.image_shape == (4, 4, 2) and data.classes == 3
    mean, deviation = data.pixel_statistics
    np.testing.assert_allclose(mean, data.train_images.astype(float).mean((0, 1, 2)))
    np.testing.assert_allclose(deviation, data.train_images.astype(float).std((0, 1, 2)))


def test_the_training_labels_say_how_many_classes_there_are():
    data = dataset(train_labels=np.array([0, 4, 1, 1, 1, 1, 1, 1, 1, 1]))
    assert data.classes == 5 and data.test_labels.dtype == np.int32
    assert dataset(classes=7, test_labels=np.array([0, 6, 2, 2])).classes == 7


def test_grey_images_get_a_channel():
    data = dataset(
        train_images=np.zeros((10, 4, 4), np.uint8), test_images=np.zeros((4, 4, 4), np.uint8)
    )
    assert data.image_shape == (4, 4, 1)


def test_split_holds_out_the_same_samples_for_the_same_seed():
    data = dataset()
    first, again, other = data.split(0.3, 1), data.split(0.3, 1), data.split(0.3, 2)
    assert len(first.train_labels) == 7 and len(first.validation_labels) == 3
    np.testing.assert_array_equal(first.validation_images, again.validation_images)
    assert not np.array_equal(first.validation_images, other.validation_images)
    together = np.concatenate([first.train_images, first.validation_images])
    assert sorted(map(bytes, together)) == sorted(map(bytes, data.train_images))
    np.testing.assert_array_equal(first.test_images, data.test_images)
    assert data.split(0) is data
    assert (data.choosing_part, first.choosing_part) == ("train", "validation")
    assert first.fingerprint != data.fingerprint
    with pytest.raises(ValueError, match="split only once"):
        first.split(0.3)


def test_fingerprint_tells_data_apart():
    labels = np.arange(10) % 3
    labels[0] = 1
    assert dataset().fingerprint == dataset().fingerprint
    assert dataset().fingerprint != dataset(train_labels=labels).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((10, 4, 4, 2), int)}, "must be uint8 or floating point"),
        ({"train_images": np.zeros((10, 16), np.uint8)}, "must be uint8 or floating point"),
        ({"train_images": np.full((10, 4, 4, 2), np.nan)}, "not finite"),
        ({"train_labels": np.zeros(9, int)}, "one integer for each of the 10 images"),
        ({"train_labels": np.zeros(10)}, "one integer for each of the 10 images"),
        ({"train_labels": np.eye(10)}, r"one integer .*one-hot labels take argmax\(axis=1\)"),
        ({"train_labels": np.arange(10) - 1}, "train labels go from -1"),
        ({"classes": 2}, r"must lie in 0 \.\.\. 1"),
        (
            {"test_labels": np.array([0, 1, 25, 2])},
            r"test labels go from 0 to 25, but must lie in 0 \.\.\. 2",
        ),
        ({"train_labels": np.arange(10) + 2**32}, "train labels go from 4294967296 to"),
        ({"test_labels": np.array([0, 2**32 + 1, 2, 1])}, "test labels go from 0 to 4294967297"),
        ({"test_labels": np.array([0, 2**64 - 1, 2, 1], np.uint64)}, "to 18446744073709551615"),
        ({"test_images": np.zeros((4, 4, 5, 2), np.uint8)}, "but test images"),
        ({"test_images": np.zeros((4, 4, 4, 2), np.float32)}, "training images are uint8"),
        ({"validation_images": np.zeros((2, 4, 4, 2), np.uint8)}, "go together"),
        (
            {
                "validation_images": np.zeros((2, 4, 4, 2), np.uint8),
                "validation_labels": np.array([0, 50]),
                "classes": 3,
            },
            "validation labels go from 0 to 50",
        ),
        (
            {"test_images": np.zeros((0, 4, 4, 2), np.uint8), "test_labels": np.zeros(0, int)},
            "no test images",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(**changes)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_impossible_split_is_refused(fraction):
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        dataset().split(fraction)
