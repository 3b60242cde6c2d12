"""Decoding images of any size, and cutting windows of one size out of them."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

AREA = (0.08, 1.0)
"""A random crop has between these shares of an image's pixels (Szegedy et al. 2015)."""

ASPECT = (3 / 4, 4 / 3)
"""Width over height of a random crop."""

ATTEMPTS = 10
"""Random crops to try, before the central one is taken."""

CENTRE_SHARE = 224 / 256
"""A central crop's share of the shorter side."""

Crop = Callable[["Image"], "Image"]
"""Cuts a window out and scales it."""


def decoded(encoded: bytes, crop: Crop) -> np.ndarray:
    """The cropped image, uint8 [height, width, channels]; grey images have no channel axis.

    Raises:
      ValueError: if it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(crop(image))
    except OSError as error:
        raise ValueError(f"an image cannot be decoded: {error}") from error


def central_crop(image_shape: tuple[int, int, int]) -> Crop:
    """The largest central window of the wanted shape, without the border (224 pixels of 256)."""
    height, width, _ = image_shape

    def crop(image: "Image") -> "Image":
        scale = CENTRE_SHARE * min(image.height / height, image.width / width)
        rows, columns = scale * height, scale * width
        top, left = (image.height - rows) / 2, (image.width - columns) / 2
        return _resized(image, image_shape, (left, top, left + columns, top + rows))

    return crop


def random_crop(rng: np.random.Generator, image_shape: tuple[int, int, int]) -> Crop:
    """A random window of random area and aspect, mirrored with probability 1/2."""

    def crop(image: "Image") -> "Image":
        from PIL.Image import Transpose

        mirrored = rng.random() < 0.5
        for _ in range(ATTEMPTS):
            area = rng.uniform(*AREA) * image.width * image.height
            aspect = np.exp(rng.uniform(*np.log(ASPECT)))
            columns, rows = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < columns <= image.width and 0 < rows <= image.height:
                left = int(rng.integers(image.width - columns + 1))
                top = int(rng.integers(image.height - rows + 1))
                image = _resized(image, image_shape, (left, top, left + columns, top + rows))
                break
        else:
            image = central_crop(image_shape)(image)
        return image.transpose(Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    return crop


def _resized(
    image: "Image", image_shape: tuple[int, int, int], box: tuple[float, float, float, float]
) -> "Image":
    from PIL.Image import Resampling

    height, width, channels = image_shape
    image = image.convert("RGB" if channels == 3 else "L")
    return image.resize((width, height), Resampling.BILINEAR, box=box)
