"""Batches as a pure function of (seed, epoch, step)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.data.augmentation import augment
from ocresnet.data.batches import epoch_order, training_batch

SAMPLES, BATCH = 48, 16
IMAGES = np.arange(SAMPLES * 8 * 8, dtype=np.int32).reshape(SAMPLES, 8, 8, 1).astype(np.float32)
LABELS = np.arange(SAMPLES, dtype=np.int32)


def batch(step, epoch=0, devices=1, seed=0, augmentation="none", **kwargs):
    return training_batch(
        IMAGES,
        LABELS,
        epoch_order(seed, epoch, SAMPLES),
        seed,
        epoch,
        step,
        batch_size=BATCH,
        devices=devices,
        augmentation=augmentation,
        fill=jnp.array([-1.0]),
        **kwargs,
    )


def test_an_epoch_visits_every_sample_once():
    seen = np.concatenate([batch(step).labels.ravel() for step in range(SAMPLES // BATCH)])
    assert sorted(seen) == list(range(SAMPLES))
    assert not np.array_equal(seen, np.arange(SAMPLES))


def test_images_go_with_their_labels():
    one = batch(1)
    np.testing.assert_array_equal(one.images[0, :, 0, 0, 0], one.labels[0] * 64)


def test_seed_epoch_and_step_decide_and_nothing_else():
    first = batch(1, augmentation="crop_flip")
    np.testing.assert_array_equal(first.images, batch(1, augmentation="crop_flip").images)
    for other in (
        batch(2, augmentation="crop_flip"),
        batch(1, epoch=1, augmentation="crop_flip"),
        batch(1, seed=1, augmentation="crop_flip"),
    ):
        assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_and_processes_share_the_same_batch(devices):
    whole = batch(1, augmentation="crop_flip")
    split = batch(1, devices=devices, augmentation="crop_flip")
    assert split.labels.shape == (devices, BATCH // devices)
    np.testing.assert_array_equal(split.images.reshape(whole.images.shape), whole.images)
    parts = [
        batch(1, augmentation="crop_flip", process=process, processes=2).images
        for process in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole.images)


# Augmentation


def test_crops_are_windows_of_the_padded_image():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32, 32, 3)), jnp.float32)
    fill = jnp.array([5.0, 6.0, 7.0])
    cropped = np.asarray(augment(jax.random.key(0), images, "crop", fill))
    padded = np.tile(np.asarray(fill), (64, 40, 40, 1))
    padded[:, 4:36, 4:36] = images
    corners = []
    for padded_image, crop in zip(padded, cropped, strict=True):
        windows = [
            (row, column)
            for row in range(9)
            for column in range(9)
            if np.array_equal(padded_image[row : row + 32, column : column + 32], crop)
        ]
        assert len(windows) == 1
        corners += windows
    assert {row for row, _ in corners} == set(range(9)) == {column for _, column in corners}


def test_flips_mirror_about_half_of_the_images():
    # A constant image cropped anywhere inside its own colour shows no crop, only what is mirrored.
    ramp = jnp.tile(jnp.arange(8.0)[None, None, :, None], (200, 8, 1, 1))
    images = augment(jax.random.key(0), ramp, "crop_flip", jnp.zeros(1))
    middle = np.asarray(images[:, 4, 2:6, 0])
    rising = (np.diff(middle, axis=1) > 0).all(1)
    assert (rising | (np.diff(middle, axis=1) < 0).all(1)).all()
    assert 70 < rising.sum() < 130


def test_integers_stay_integers():
    images = jnp.zeros((4, 8, 8, 1), jnp.uint8)
    out = augment(jax.random.key(0), images, "crop", jnp.array([33.3]))
    assert out.dtype == jnp.uint8 and set(np.unique(out)) <= {0, 33}


def test_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="none, crop or crop_flip"):
        augment(jax.random.key(0), IMAGES, "cutmix", jnp.zeros(1))
