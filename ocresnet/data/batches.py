"""Training batches as a pure function of (seed, epoch, step), so that resuming is exact and free.

The training set lies on the device as it is; a batch is gathered and augmented there. Nothing has
to be stored or skipped to continue a run in the middle of an epoch.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.data.augmentation import Augmentation, augment

Array = jax.Array


class Batch(NamedTuple):
    """One batch, split over devices.

    Attributes:
      images: [devices, batch / devices, height, width, channels].
      labels: [devices, batch / devices], or other targets [devices, batch / devices, ...].
    """

    images: Array
    labels: Array


@dataclass(frozen=True)
class Batching:
    """What a run's training batches depend on, but for epoch and step.

    Attributes:
      seed: of order and augmentation.
      batch_size: of the global batch.
      devices: local devices to split this process's part over.
      augmentation: kind of augmentation.
      fill: value of the padding that a crop adds, for each channel.
      process, processes: this process and how many there are.
    """

    seed: int
    batch_size: int
    devices: int = 1
    augmentation: Augmentation = "none"
    fill: tuple[float, ...] = (0.0,)
    process: int = 0
    processes: int = 1


Feed = Callable[[int, int], Generator[Batch, None, None]]
"""(epoch, first step) -> the batches of that epoch from that step on."""


def feed_from_memory(images: np.ndarray, labels: np.ndarray, how: Batching) -> Feed:
    """Training batches of arrays, which are put on the device once."""
    on_device = jax.device_put(images), jax.device_put(labels)

    def feed(epoch: int, first_step: int) -> Generator[Batch, None, None]:
        order = epoch_order(how.seed, epoch, len(labels))
        for step in range(first_step, len(labels) // how.batch_size):
            yield training_batch(
                *on_device,
                order,
                how.seed,
                epoch,
                step,
                batch_size=how.batch_size,
                devices=how.devices,
                augmentation=how.augmentation,
                fill=jnp.asarray(how.fill),
                process=how.process,
                processes=how.processes,
            )

    return feed


@partial(jax.jit, static_argnames="samples")
def epoch_order(seed: int, epoch: int, samples: int) -> Array:
    """The order in which an epoch visits the training set: a permutation of 0 ... samples - 1."""
    return jax.random.permutation(_key(seed, epoch, purpose=0), samples)


@partial(jax.jit, static_argnames=("batch_size", "devices", "augmentation", "process", "processes"))
def training_batch(
    images: Array,
    labels: Array,
    order: Array,
    seed: int,
    epoch: int,
    step: int,
    *,
    batch_size: int,
    devices: int,
    augmentation: Augmentation = "none",
    fill: Array,
    process: int = 0,
    processes: int = 1,
) -> Batch:
    """The batch of one step, augmented.

    What a sample looks like depends on its place in the global batch alone, so the batch is the
    same however many devices or processes share it.

    Args:
      images, labels: the training set.
      order: `epoch_order` of this epoch.
      seed, epoch, step: which batch; `step` counts from 0 within the epoch.
      batch_size: of the global batch.
      devices: local devices to split this process's part over.
      augmentation: kind of augmentation.
      fill: value of the padding that a crop adds, for each channel.
      process, processes: this process and how many there are.

    Returns:
      This process's part of the batch.
    """
    rows = jax.lax.dynamic_slice_in_dim(order, step * batch_size, batch_size)
    key = jax.random.fold_in(_key(seed, epoch, purpose=1), step)
    batch_images = augment(key, jnp.take(images, rows, axis=0), augmentation, fill)
    batch_labels = jnp.take(labels, rows, axis=0)
    part = batch_size // processes
    local = slice(process * part, (process + 1) * part)
    return Batch(
        batch_images[local].reshape(devices, part // devices, *images.shape[1:]),
        batch_labels[local].reshape(devices, part // devices, *labels.shape[1:]),
    )


def _key(seed: int, epoch: int, *, purpose: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), purpose)
