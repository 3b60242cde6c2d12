"""A labelled image data set in memory, checked when it is made."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images with labels, and optionally a validation split.

    Attributes:
      name: what to call it.
      train_images, test_images: [samples, height, width, channels]; uint8, or float32.
      train_labels, test_labels: [samples], int32, 0 ... classes - 1.
      classes: how many classes there are; 0 means as many as the labels name.
      validation_images, validation_labels: held out of the training set; empty unless `split`.

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

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if images.ndim == 3:
                images = images[..., None]
            if images.ndim != 4 or images.dtype.kind not in "uf" or images.dtype == np.uint16:
                raise ValueError(
                    f"{self.name}: {part}_images are {images.dtype} of shape {images.shape}, but "
                    "must be uint8 or float32 [samples, height, width, channels]."
                )
            if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
                raise ValueError(
                    f"{self.name}: {part}_labels are {labels.dtype} of shape {labels.shape}, but "
                    f"must be one integer for each of the {len(images)} images."
                )
            if len(images) == 0:
                raise ValueError(f"{self.name}: there are no {part} images.")
            dtype = np.uint8 if images.dtype == np.uint8 else np.float32
            if dtype == np.float32 and not np.isfinite(images).all():
                raise ValueError(f"{self.name}: {part}_images hold values that are not finite.")
            object.__setattr__(self, f"{part}_images", np.ascontiguousarray(images, dtype))
            object.__setattr__(self, f"{part}_labels", np.ascontiguousarray(labels, np.int32))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: training images have shape {self.train_images.shape[1:]}, but test "
                f"images {self.test_images.shape[1:]}."
            )
        highest = int(max(self.train_labels.max(), self.test_labels.max()))
        if self.classes == 0:
            object.__setattr__(self, "classes", max(highest + 1, 2))
        lowest = int(min(self.train_labels.min(), self.test_labels.min()))
        if lowest < 0 or highest >= self.classes:
            raise ValueError(
                f"{self.name}: labels go from {lowest} to {highest}, but must lie in 0 ... "
                f"{self.classes - 1}."
            )

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
        """A digest of the training and test data, to tell whether a run's data is the same."""
        digest = hashlib.sha256()
        for name in FIELDS:
            digest.update(getattr(self, name).data)
        return digest.hexdigest()[:16]

    def split(self, fraction: float, seed: int = 0) -> "Dataset":
        """Hold out a random part of the training set for validation.

        Args:
          fraction: share of the training samples, in [0, 1); at least one sample if positive.
          seed: of the draw; the same seed holds out the same samples.

        Returns:
          The data set with a smaller training set and a validation set (none for fraction 0).

        Raises:
          ValueError: for a fraction outside [0, 1).
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"validation is {fraction}, but must be a share in [0, 1).")
        if fraction == 0:
            return self
        samples = len(self.train_labels)
        held_out = min(max(round(fraction * samples), 1), samples - 1)
        order = np.random.default_rng(seed).permutation(samples)
        validation, train = np.sort(order[:held_out]), np.sort(order[held_out:])
        return replace(
            self,
            train_images=self.train_images[train],
            train_labels=self.train_labels[train],
            validation_images=self.train_images[validation],
            validation_labels=self.train_labels[validation],
        )
