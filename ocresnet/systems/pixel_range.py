"""Whether images are in the units that a network was trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

SAMPLES = 256
"""Images that are looked at."""

FACTOR = 25.0
"""How many times smaller or larger pixels must be than in training to be of other units."""


def pixel_range_warning(
    images: Any, pixel_mean: Sequence[float], pixel_deviation: Sequence[float]
) -> str | None:
    """Say so when images cannot be in the units that a network was trained on.

    The size of a pixel is measured from 0, where black is in 0 ... 255 and in [0, 1]. In training
    its root mean square was r, with r^2 = mean(pixel_mean^2 + pixel_deviation^2) over the channels.
    Images are of other units if their largest pixel is smaller than r / 25 (and none is all there
    is: nothing is said of black images), or their root mean square larger than 25 r.

    - 0 ... 255 has an r of about 85 (MNIST) to 140 (CIFAR-10): [0, 1], [-1, 1] and images that were
      standardised all stay below r / 25. Images in the right units do not, unless even their
      brightest pixel is as good as black.
    - The mean square of images drawn from those of the training has the expectation r^2, so that it
      exceeds 625 r^2 with a probability below 1 / 625, whatever they are (Markov's inequality).

    Args:
      images: [samples, height, width, channels]; up to 256 are looked at, spread over all.
      pixel_mean, pixel_deviation: of each channel in training, or one for all of them.

    Returns:
      A sentence that warns, or None.
    """
    some = np.asarray(images[:: max(-(-len(images) // SAMPLES), 1)], np.float32)
    if some.size == 0:
        return None
    mean, deviation = np.asarray(pixel_mean), np.asarray(pixel_deviation)
    trained = float(np.sqrt(np.mean(mean**2 + deviation**2)))
    lowest, highest = float(some.min()), float(some.max())
    largest = max(-lowest, highest)
    size = float(np.sqrt(np.mean(np.square(some), dtype=np.float64)))
    if not (0 < largest < trained / FACTOR or size > trained * FACTOR):
        return None
    return (
        f"the pixels go from {lowest:.3g} to {highest:.3g}, but in training they had mean "
        f"{_numbers(mean)} and standard deviation {_numbers(deviation)}: images must be in the "
        "units of the training images."
    )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
