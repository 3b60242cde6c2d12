"""An image data set in memory, checked when it is made."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ocresnet.data.augmentation import Augmentation
from ocresnet.data.batches import Batching, Feed, feed_from_memory
from ocresnet.data.training_data import TrainingData

MOST_CLASSES = 2**31 - 1
"""Labels are kept as int32."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with labels, and optionally a validation split.

    Attributes:
      name: what to call it.
      train_images, test_images: [samples, height, width, channels] or [samples, height, width];
        all uint8, or all floating point (kept as float32).
      train_labels, test_labels: [samples], integers, 0 ... classes - 1 (kept as int32).
      classes: how many classes there are; 0 means as many as the training labels name. One class
        is none to tell apart: data without labels, as `without_labels` makes it.
      validation_images, validation_labels: held out of the training set, or None.
      source: what `load_dataset` was called with, so that a run can load its data again.
      data_dir: the folder it was loaded from, likewise.

    Raises:
      ValueError: if shapes, dtypes or labels do not fit together.
    """

    name: str
    train_images: np.ndarray = field(repr=False)
    train_labels: np.ndarray = field(repr=False)
    test_images: np.ndarray = field(repr=False)
    test_labels: np.ndarray = field(repr=False)
    classes: int = 0
    validation_images: np.ndarray | None = field(default=None, repr=False)
    validation_labels: np.ndarray | None = field(default=None, repr=False)
    source: str | None = None
    data_dir: str | None = None

    @classmethod
    def without_labels(
        cls,
        name: str,
        train_images: np.ndarray,
        test_images: np.ndarray,
        source: str | None = None,
    ) -> "Dataset":
        """Data of which a density is learned: all samples are of one class.

        Args:
          name, train_images, test_images, source: as above. Points of several features are images
            of one pixel, [samples, 1, 1, features].
        """
        none = (np.zeros(len(images), np.int32) for images in (train_images, test_images))
        return cls(name, train_images, next(none), test_images, next(none), 1, source=source)

    def __post_init__(self) -> None:
        if (self.validation_images is None) != (self.validation_labels is None):
            raise ValueError(f"{self.name}: validation images and labels go together.")
        for part in self.parts:
            self._check_part(part)
            self._check_labels(part)

    def _check_part(self, part: str) -> None:
        """Check one part's shapes and dtypes, and bring them into the kept form."""
        images, labels = np.asarray(self.images(part)), np.asarray(self.labels(part))
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
            raise ValueError(
                f"{self.name}: {part}_images are {images.dtype} of shape {images.shape}, but must "
                "be uint8 or floating point [samples, height, width, channels]."
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            one_hot = labels.ndim == 2 and len(labels) == len(images)
            hint = " (of one-hot labels take argmax(axis=1))" if one_hot else ""
            raise ValueError(
                f"{self.name}: {part}_labels are {labels.dtype} of shape {labels.shape}, but must "
                f"be one integer for each of the {len(images)} images{hint}."
            )
        if len(images) == 0:
            raise ValueError(f"{self.name}: there are no {part} images.")
        dtype = np.uint8 if images.dtype == np.uint8 else np.float32
        if dtype == np.float32 and not np.isfinite(images).all():
            raise ValueError(f"{self.name}: {part}_images hold values that are not finite.")
        first = self.train_images
        if part != "train" and (images.shape[1:], dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"{self.name}: training images are {first.dtype} of shape {first.shape[1:]}, but "
                f"{part} images {images.dtype} of shape {images.shape[1:]}."
            )
        object.__setattr__(self, f"{part}_images", np.ascontiguousarray(images, dtype))

    def _check_labels(self, part: str) -> None:
        """Check the values of one part's labels, and bring them into the kept form; those of the
        training set, which come first, say how many classes there are."""
        labels = np.asarray(self.labels(part))
        lowest, highest = int(labels.min()), int(labels.max())
        if self.classes == 0 and 0 <= lowest <= highest < MOST_CLASSES:
            object.__setattr__(self, "classes", max(highest + 1, 2))
        if lowest < 0 or highest >= (self.classes or MOST_CLASSES):
            raise ValueError(
                f"{self.name}: {part} labels go from {lowest} to {highest}, but must lie in 0 ... "
                f"{(self.classes or MOST_CLASSES) - 1}."
            )
        object.__setattr__(self, f"{part}_labels", np.ascontiguousarray(labels, np.int32))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts there are: "train", "validation" (if any was held out), "test"."""
        held_out = self.validation_labels is not None
        return ("train", "validation", "test") if held_out else ("train", "test")

    @property
    def choosing_part(self) -> str:
        """The part that choices are made on: "validation", or without one "train"; never "test"."""
        return "validation" if "validation" in self.parts else "train"

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """The augmentations that training images can have."""
        return ("none", "crop", "crop_flip")

    def feed(self, how: Batching) -> Feed:
        """Training batches, as a function of the epoch and its first step."""
        return feed_from_memory(self.train_images, self.train_labels, how)

    def samples(self, part: str) -> int:
        """How many samples a part has."""
        return len(self.labels(part))

    def images(self, part: str) -> np.ndarray:
        """The images of a part."""
        return getattr(self, f"{part}_images")

    def labels(self, part: str) -> np.ndarray:
        """The labels of a part."""
        return getattr(self, f"{part}_labels")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @cached_property
    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the training images."""
        # Sums of one slice at a time: a float64 copy of the whole set would not be small.
        channels = self.train_images.shape[-1]
        count, total, squares = 0, np.zeros(channels), np.zeros(channels)
        for start in range(0, len(self.train_images), 4096):
            values = self.train_images[start : start + 4096].astype(np.float64)
            count += values[..., 0].size
            total = total + values.sum((0, 1, 2))
            squares = squares + np.square(values).sum((0, 1, 2))
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
        return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all images and labels, to tell whether a run's data is the same."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(self.images(part).data)
            digest.update(self.labels(part).data)
        return digest.hexdigest()[:16]

    def first(self, samples: int) -> "Dataset":
        """The same data with the first `samples` training samples only.

        Raises:
          ValueError: if there are not that many.
        """
        if not 1 <= samples <= len(self.train_labels):
            raise ValueError(
                f"{self.name}: {samples} training samples were asked for, but it has "
                f"{len(self.train_labels)}: choose 1 to {len(self.train_labels)}."
            )
        return replace(
            self,
            train_images=self.train_images[:samples],
            train_labels=self.train_labels[:samples],
        )

    def split(self, fraction: float, seed: int = 0) -> "Dataset":
        """Hold out a random part of the training set for validation.

        Args:
          fraction: share of the training samples, in [0, 1); at least one sample if positive.
          seed: of the draw; the same seed holds out the same samples.

        Returns:
          The data set with a smaller training set and a validation set (none for fraction 0).

        Raises:
          ValueError: for a fraction outside [0, 1), or if a part is held out already.
        """
        chosen = held_out_samples(self, fraction, seed)
        if chosen is None:
            return self
        validation, train = chosen
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            validation_images=self.train_images[validation],
            validation_labels=self.train_labels[validation],
        )


def held_out_samples(
    data: TrainingData, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Indices of a random validation part of the training set, and of the rest.

    Returns:
      Neither is empty, both are sorted; None for fraction 0.

    Raises:
      ValueError: for a fraction outside [0, 1), or if a part is held out already.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"validation is {fraction}, but must be a share in [0, 1).")
    if fraction == 0:
        return None
    if "validation" in data.parts:
        raise ValueError(f"{data.name}: a validation set is held out already; split only once.")
    samples = data.samples("train")
    held_out = min(max(round(fraction * samples), 1), samples - 1)
    order = np.random.default_rng(seed).permutation(samples)
    return np.sort(order[:held_out]), np.sort(order[held_out:])
