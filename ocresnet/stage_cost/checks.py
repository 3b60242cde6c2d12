"""What the depth tools refuse, in one sentence: what was wrong and what is allowed."""

import warnings
from typing import Any

import jax
import numpy as np

from ocresnet.systems.architecture import Architecture, ResidualArchitecture, residual
from ocresnet.systems.network import Network
from ocresnet.systems.pixel_range import pixel_range_warning

Array = jax.Array


def check_network(network: Any) -> None:
    """Refuse what is no network, as where arguments were swapped."""
    if not isinstance(network, Network):
        raise ValueError(f"network is a {type(network).__name__}, but must be a Network.")


def check_images(network: Any, images: Any) -> None:
    """Refuse images that the network cannot take, and networks that tell no classes apart; warn of
    images in other units than in training.

    To be called by what a user calls: the warning is about the line that called it.
    """
    check_network(network)
    if not network.architecture.classifies:
        raise ValueError(
            f"a {type(network.architecture).__name__} tells no classes apart: ocresnet.continuous "
            "has what can be asked of it."
        )
    network.architecture.check_images(images)
    warning = pixel_range_warning(
        images, network.architecture.pixel_mean, network.architecture.pixel_deviation
    )
    if warning is not None:
        warnings.warn(warning, stacklevel=3)


def residual_architecture(network: Any, what: str) -> ResidualArchitecture:
    """The architecture of a network with residual blocks.

    Raises:
      ValueError: for what is no network, or has no residual blocks, which `what` needs.
    """
    check_network(network)
    return residual(network.architecture, what)


def check_exits(architecture: ResidualArchitecture, what: str) -> None:
    """Refuse a network without exits, where there should be some to do `what` with."""
    if architecture.exits == "none":
        raise ValueError(
            f"this network has no exits to {what}: give it some with calibrate_exits first."
        )


def check_finite(architecture: Architecture, values: Any) -> None:
    """Refuse what was made of outputs that are not finite, where the architecture knows why."""
    if architecture.not_finite and not np.isfinite(values).all():
        raise ValueError(f"an output of the network is not finite: {architecture.not_finite}.")


def checked_labels(labels: Any, samples: int, classes: int) -> np.ndarray:
    """The labels as an array of numpy, [samples].

    Raises:
      ValueError: if they are not one class, 0 ... classes - 1, for each sample.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {labels.shape} and type {labels.dtype}, but must be a whole number "
            "for each image: np.argmax(labels, axis=-1) makes them from one-hot labels."
        )
    if len(labels) != samples:
        raise ValueError(f"there are {samples} images, but {len(labels)} labels.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0 ... {classes - 1}.")
    return labels


def checked_logits(logits: Any) -> np.ndarray:
    """The logits as an array of numpy, [outputs, samples, classes].

    Raises:
      ValueError: if they have another shape.
    """
    logits = np.asarray(logits)
    if logits.ndim != 3:
        raise ValueError(
            f"logits have shape {logits.shape}, but must be [outputs, samples, classes], as "
            "logits_over_depth gives them."
        )
    return logits


def check_share(name: str, value: float) -> None:
    """Refuse what is no share in (0, 1], percentages too."""
    if not 0 < value <= 1:
        raise ValueError(
            f"{name} is {value}, but must be a share in (0, 1]: 95 % are 0.95, for example."
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that is not positive."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
