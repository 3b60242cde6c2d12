"""A labelled image data set that is too large for memory: read, decoded and cut out as it is used.

Records are read from a TFDS folder (array_record, random access, no TensorFlow). Images of any size
become uint8 images of one size: for evaluation by a central crop, for training also by a random
one, mirrored at random. A training image is a function of the seed, the epoch and its place in the
data set alone, and a batch of (seed, epoch, step): so a run continues at any step to the same bits.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ocresnet.data.augmentation import Augmentation
from ocresnet.data.batches import Batch, Batching, Feed, epoch_order
from ocresnet.data.crops import Crop, central_crop, decoded, random_crop
from ocresnet.data.dataset import held_out_samples

STATISTICS_SAMPLES = 1024
"""Training images that pixel statistics are taken of."""

READ_AT_ONCE = 256
"""Records read at a time when nothing but their labels is wanted."""

WORKERS = 16
"""Threads that decode."""

BATCHES_AHEAD = 2
"""Training batches that are prepared while one is used."""


@dataclass(frozen=True, eq=False)
class Records:
    """Encoded images and their labels, in the order of `index`; indexed like an array of samples.

    Attributes:
      source: a TFDS data source whose images are not decoded.
      index: [samples], the place in the source of each sample.
      image_shape: (height, width, channels) of the decoded images.
    """

    source: Any = field(repr=False)
    index: np.ndarray = field(repr=False)
    image_shape: tuple[int, int, int]

    def read(self, places: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The records of samples (with `image` encoded and `label`).

        Raises:
          ValueError: if one of them cannot be read.
        """
        try:
            return self.source.__getitems__([int(place) for place in self.index[places]])
        except Exception as error:
            raise ValueError(f"a record of {self.source} cannot be read: {error}") from error

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels of all samples, [samples], int32; the first use reads every record."""
        starts = range(0, len(self.index), READ_AT_ONCE)
        parts = [np.arange(start, min(start + READ_AT_ONCE, len(self.index))) for start in starts]
        with ThreadPoolExecutor(WORKERS) as pool:
            records = itertools.chain.from_iterable(pool.map(self.read_labels, parts))
        return np.fromiter(records, np.int32, len(self.index))

    def read_labels(self, places: np.ndarray) -> list[int]:
        """The labels of samples."""
        return [int(record["label"]) for record in self.read(places)]


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Centrally cropped images that are decoded when they are indexed, in place of an array.

    Indexed by a slice or an index array it gives uint8 images [samples, height, width, channels].
    """

    records: Records

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[samples, height, width, channels]."""
        return (len(self), *self.records.image_shape)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    def __len__(self) -> int:
        return len(self.records.index)

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        places = np.arange(len(self))[chosen]
        records = self.records.read(places)
        crop = central_crop(self.records.image_shape)
        with ThreadPoolExecutor(WORKERS) as pool:
            images = list(pool.map(lambda record: decoded(record["image"], crop), records))
        shape = self.records.image_shape
        return np.array(images, np.uint8).reshape(len(images), *shape)


@dataclass(frozen=True, eq=False)
class StreamingDataset:
    """Training and test images in a TFDS folder, and optionally a validation split.

    It stands wherever a `Dataset` does; its images are `StreamedImages`.

    Attributes:
      name: what to call it.
      records: {"train", "validation" (optionally), "test": Records}.
      classes: how many classes there are.
      description: what identifies the data: version, sizes, and so on.
      source: what `load_dataset` was called with, so that a run can load its data again.
      data_dir: the folder it was loaded from, likewise.
    """

    name: str
    records: dict[str, Records]
    classes: int
    description: str = field(repr=False)
    source: str | None = None
    data_dir: str | None = None

    augmentations: tuple[Augmentation, ...] = ("none", "resized_crop_flip")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts there are: "train", "validation" (if any was held out), "test"."""
        return tuple(part for part in ("train", "validation", "test") if part in self.records)

    @property
    def choosing_part(self) -> str:
        """The part that choices are made on: "validation", or without one "train"; never "test"."""
        return "validation" if "validation" in self.parts else "train"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.records["train"].image_shape

    def samples(self, part: str) -> int:
        """How many samples a part has."""
        return len(self.records[part].index)

    def images(self, part: str) -> Any:
        """The images of a part, centrally cropped; decoded when they are indexed."""
        return StreamedImages(self.records[part])

    def labels(self, part: str) -> np.ndarray:
        """The labels of a part; the first call for a part reads all of its records."""
        return self.records[part].labels

    @cached_property
    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the first training images."""
        pixels = self.images("train")[:STATISTICS_SAMPLES].astype(np.float64)
        mean, deviation = pixels.mean((0, 1, 2)), np.maximum(pixels.std((0, 1, 2)), 1e-6)
        return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what identifies the data, to tell whether a run's data is the same."""
        digest = hashlib.sha256(f"{self.description} {self.image_shape}".encode())
        for part in self.parts:
            digest.update(np.ascontiguousarray(self.records[part].index, np.int64).data)
        return digest.hexdigest()[:16]

    def split(self, fraction: float, seed: int = 0) -> "StreamingDataset":
        """Hold out a random part of the training set for validation, as `Dataset.split` does.

        Raises:
          ValueError: for a fraction outside [0, 1), or if a part is held out already.
        """
        chosen = held_out_samples(self, fraction, seed)
        if chosen is None:
            return self
        held_out, rest = chosen
        whole = self.records["train"]
        parts = {
            "train": replace(whole, index=whole.index[rest]),
            "validation": replace(whole, index=whole.index[held_out]),
        }
        return replace(self, records=self.records | parts)

    def feed(self, how: Batching) -> Feed:
        """Training batches as a function of the epoch: decoded by threads, ahead of their use.

        Images are uint8, in host memory.

        Raises:
          ValueError: for an augmentation that streamed images do not have.
        """
        if how.augmentation not in self.augmentations:
            raise ValueError(
                f"augmentation is {how.augmentation!r}, but streamed images can have "
                f"{' or '.join(self.augmentations)}."
            )
        records = self.records["train"]
        steps = len(records.index) // how.batch_size
        part = how.batch_size // how.processes

        def feed(epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
            order = np.asarray(epoch_order(how.seed, epoch, len(records.index)))

            def batch(step: int) -> Batch:
                start = step * how.batch_size + how.process * part
                places = order[start : start + part]
                read = records.read(places)
                crops = [_crop_of(records, how, epoch, place) for place in places]
                encoded = [record["image"] for record in read]
                # Arrays of the host: the training step puts them on its devices.
                images: Any = np.stack(list(decoders.map(decoded, encoded, crops)))
                labels: Any = np.array([record["label"] for record in read], np.int32)
                split = (how.devices, part // how.devices)
                return Batch(images.reshape(*split, *records.image_shape), labels.reshape(split))

            with ThreadPoolExecutor(WORKERS) as decoders:
                yield from _ahead(batch, range(first_step, steps))

        return feed


def stream(
    builder: Any,
    *,
    image_size: int,
    train_split: str = "train",
    test_split: str = "test",
    source: str | None = None,
    data_dir: str | None = None,
) -> StreamingDataset:
    """The splits of a prepared TFDS builder (array_record) with the features `image`, `label`.

    Args:
      builder: as `tfds.builder` or `tfds.builder_from_directory` makes it.
      image_size: height and width of the images to cut out.
      train_split, test_split: what they are called there.
      source, data_dir: see `StreamingDataset`.

    Raises:
      ValueError: if it has no such splits or features.
    """
    import tensorflow_datasets as tfds

    features, splits = builder.info.features, builder.info.splits
    if not {"image", "label"} <= set(features) or not {train_split, test_split} <= set(splits):
        raise ValueError(
            f"{builder.info.full_name} has the features {', '.join(features)} and the splits "
            f"{', '.join(splits)}, but image, label, {train_split} and {test_split} are needed."
        )
    image_shape = (image_size, image_size, features["image"].shape[-1])
    records = {}
    for part, split in (("train", train_split), ("test", test_split)):
        encoded = builder.as_data_source(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        records[part] = Records(encoded, np.arange(len(encoded)), image_shape)
    sizes = [(split, splits[split].num_examples, splits[split].num_bytes) for split in splits]
    return StreamingDataset(
        builder.info.name,
        records,
        classes=features["label"].num_classes,
        description=f"{builder.info.full_name} {sizes}",
        source=source,
        data_dir=data_dir,
    )


def _crop_of(records: Records, how: Batching, epoch: int, place: int) -> Crop:
    if how.augmentation == "none":
        return central_crop(records.image_shape)
    # The place in the source, so that no split changes what an image looks like.
    seed = np.random.SeedSequence((how.seed, epoch, int(records.index[place])))
    return random_crop(np.random.default_rng(seed), records.image_shape)


def _ahead(make: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """make(step) for every step, some of them made in a thread before they are asked for."""
    waiting: deque[Future[Batch]] = deque()
    left = iter(steps)
    with ThreadPoolExecutor(1) as maker:
        try:
            for step in itertools.islice(left, BATCHES_AHEAD):
                waiting.append(maker.submit(make, step))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(maker.submit(make, step) for step in itertools.islice(left, 1))
                yield batch
        finally:
            for future in waiting:
                future.cancel()
