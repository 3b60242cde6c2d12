"""Augmentation on the device: pure functions of a key and a batch."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

Augmentation = Literal["none", "crop", "crop_flip", "resized_crop_flip"]
"""The last is that of streamed images, made where they are decoded (see `streaming.py`)."""

CROP_SHARE = 8
"""A crop moves an image by up to this part of its height: 4 pixels of 32, as in He et al. 2016."""


def augment(key: Array, images: Array, kind: Augmentation, fill: Array) -> Array:
    """Augment a batch, every image on its own.

    Args:
      key: the batch's key.
      images: [batch, height, width, channels].
      kind: "none"; "crop": pad by an eighth of the height (4 pixels of 32, He et al. 2016) and cut
        out the old size at random;
        "crop_flip": the same, then mirror left to right with probability 1/2.
      fill: value of the padding, for each channel.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: for an unknown kind.
    """
    if kind == "none":
        return images
    if kind not in ("crop", "crop_flip"):
        raise ValueError(f"augmentation is {kind!r}, but must be none, crop or crop_flip.")
    crop_key, flip_key = jax.random.split(key)
    images = _random_crop(crop_key, images, fill)
    if kind == "crop_flip":
        mirror = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirror, images[:, :, ::-1], images)
    return images


def _random_crop(key: Array, images: Array, fill: Array) -> Array:
    batch, *shape = images.shape
    width = max(shape[0] // CROP_SHARE, 1)
    border = (width, width)
    inside = jnp.pad(jnp.ones((*shape[:2], 1), bool), (border, border, (0, 0)))
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    padded = jnp.where(inside, padded, fill.astype(images.dtype))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * width + 1)

    def crop(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)

    return jax.vmap(crop)(padded, corners)
