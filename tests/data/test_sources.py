"""Digits, `.npz` files and TFDS folders, whole and damaged."""

import numpy as np
import pytest

from ocresnet.data.sources import load_dataset
from ocresnet.data.tfds_folder import write_tfds


@pytest.fixture
def npz(tmp_path):
    """A little MNIST-like file."""
    rng = np.random.default_rng(0)
    path = tmp_path / "small.npz"
    np.savez(
        path,
        train_images=rng.integers(0, 256, (30, 28, 28, 1)).astype(np.uint8),
        train_labels=np.arange(30) % 10,
        test_images=rng.integers(0, 256, (10, 28, 28, 1)).astype(np.uint8),
        test_labels=np.arange(10),
    )
    return path


def test_digits_test_set_is_the_last_360_in_file_order():
    data = load_dataset("digits")
    assert data.train_images.shape == (1437, 8, 8, 1) and data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.uint8 and data.train_images.max() == 255
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(data.test_labels, load_digits().target[-360:])


def test_wine_is_standardised_by_its_training_part():
    data = load_dataset("wine")
    assert data.train_images.shape == (142, 1, 13, 1) and data.test_images.shape == (36, 1, 13, 1)
    assert data.classes == 3 and data.source == "wine"
    features = data.train_images[:, 0, :, 0].astype(float)
    np.testing.assert_allclose(features.mean(0), 128, atol=0.5)
    np.testing.assert_allclose(features.std(0), 32, atol=1)
    from sklearn.datasets import load_wine

    counts = np.bincount(data.train_labels) + np.bincount(data.test_labels)
    np.testing.assert_array_equal(counts, np.bincount(load_wine().target))


def test_npz(npz):
    data = load_dataset(str(npz))
    with np.load(npz) as file:
        np.testing.assert_array_equal(data.train_images, file["train_images"])
        np.testing.assert_array_equal(data.test_labels, file["test_labels"])
    assert data.classes == 10


def test_the_first_samples_of_a_data_set(npz):
    whole, first = load_dataset(str(npz)), load_dataset(f"{npz}[:7]")
    np.testing.assert_array_equal(first.train_images, whole.train_images[:7])
    np.testing.assert_array_equal(first.train_labels, whole.train_labels[:7])
    np.testing.assert_array_equal(first.test_labels, whole.test_labels)
    assert first.source == f"{npz}[:7]" and first.classes == whole.classes
    with pytest.raises(ValueError, match="31 training samples were asked for.*choose 1 to 30"):
        load_dataset(f"{npz}[:31]")


def test_a_tfds_folder_holds_what_was_written(npz, tmp_path):
    folder = write_tfds(str(npz), "mnist", str(tmp_path / "tfds"))
    assert folder.is_dir()
    data, original = load_dataset("mnist", tmp_path / "tfds"), load_dataset(str(npz))
    assert data.classes == 10 and data.image_shape == (28, 28, 1)
    for split in ("train", "test"):
        pairs = [
            sorted(
                zip(
                    map(bytes, getattr(d, f"{split}_images")),
                    getattr(d, f"{split}_labels"),
                    strict=True,
                )
            )
            for d in (data, original)
        ]
        assert pairs[0] == pairs[1]
    for shard in folder.glob("*train*"):
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match="the train split of mnist in .* is damaged"):
        load_dataset("mnist", tmp_path / "tfds")


def test_missing_data_is_said_at_once(tmp_path):
    with pytest.raises(
        ValueError, match=r"dataset is 'imagenet', but must be one of digits, wine, moons"
    ):
        load_dataset("imagenet")
    with pytest.raises(FileNotFoundError, match="no data file"):
        load_dataset(str(tmp_path / "none.npz"))
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_dataset("mnist", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="cifar10 is not prepared in .* pass --download"):
        load_dataset("cifar10", tmp_path)


def test_damaged_npz_is_refused(npz, tmp_path):
    npz.write_bytes(npz.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
        load_dataset(str(npz))
    other = tmp_path / "other.npz"
    np.savez(other, train_images=np.zeros((2, 2)))
    with pytest.raises(
        ValueError, match="lacks test_images; it must hold train_images, test_images"
    ):
        load_dataset(str(other))
    np.savez(other, train_images=np.zeros((2, 2)), train_labels=np.zeros(2, int))
    with pytest.raises(ValueError, match="lacks test_images, test_labels; it must hold train_im"):
        load_dataset(str(other))


def test_a_file_without_labels_is_data_of_one_class(npz, tmp_path):
    with np.load(npz) as file:
        images = {name: file[name] for name in ("train_images", "test_images")}
    np.savez(tmp_path / "bare.npz", **images)
    data = load_dataset(str(tmp_path / "bare.npz"))
    assert data.classes == 1 and data.train_labels.shape == (30,)
    assert not data.train_labels.any() and not data.test_labels.any()
    parts = data.first(20).split(0.25)
    assert parts.classes == 1 and len(parts.validation_labels) == 5
