"""Where data comes from: bundled sets and toys, TFDS (without TensorFlow), or `.npz` files."""

import importlib
import os
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ocresnet.data.dataset import Dataset
from ocresnet.data.points import TABLES, TOYS, table, toy
from ocresnet.data.streaming import StreamingDataset, stream
from ocresnet.data.training_data import TrainingData

TFDS_NAMES = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
STREAMED = {"imagenet2012": 224}
"""TFDS data sets too large for memory, and height and width of the images cut out of theirs."""

NAMES = ("digits", "wine", *TOYS, *TABLES, *TFDS_NAMES, *STREAMED)

DIGITS_TEST_SAMPLES = 360
WINE_TEST_SHARE = 5
"""One sample in so many is for tests."""

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
"""What a `.npz` file must hold; of data without labels, the images alone."""


def open_dataset(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = False
) -> TrainingData:
    """Load a data set by name, or open "imagenet2012", which is streamed.

    ImageNet's test set has no labels, so its validation split is the test part.

    Args and errors are those of `load_dataset`.
    """
    if name in STREAMED:
        return _streamed(name, data_dir, download)
    return load_dataset(name, data_dir, download=download)


def load_dataset(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = False
) -> Dataset:
    """Load a data set by name.

    Args:
      name: "digits" (bundled with scikit-learn; the last 360 samples in file order, by other
        writers, are the test set); "wine" (bundled likewise: 13 measurements, standardised and
        quantised to bytes, as images of height 1; a random fifth is the test set); a toy of points
        or a table of features, as images of one pixel (`data/points.py`): "moons", "checkerboard",
        "rings", "eight_gaussians", "pinwheel", "breast_cancer"; one of TFDS's
        "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped", prepared as array_record;
        or the path of a `.npz` file with train_images, train_labels, test_images and test_labels.
        With "[:n]" behind it, as in "mnist[:10000]", only the first n training samples are kept.
      data_dir: folder of the TFDS data; None is TFDS's own default.
      download: let TFDS download and prepare what is missing.

    Returns:
      The data set, whole and in memory.

    Raises:
      ValueError: for an unknown name, or data that is damaged.
      FileNotFoundError: if the data is not there.
      ImportError: if the package that reads it is not installed.
    """
    first = re.fullmatch(r"(.+)\[:(\d+)\]", str(name))
    if first:
        whole = load_dataset(first[1], data_dir, download=download)
        return replace(whole.first(int(first[2])), source=name)
    if name == "digits":
        return _digits()
    if name == "wine":
        return _wine()
    if name in TOYS:
        return toy(name)
    if name in TABLES:
        return table(name, _import("sklearn.datasets", "scikit-learn", "demo"))
    if str(name).endswith(".npz"):
        return _npz(Path(name))
    if name in TFDS_NAMES:
        return _tfds(name, data_dir, download)
    if name in STREAMED:
        raise ValueError(f"{name} is too large for memory: open_dataset streams it.")
    raise ValueError(
        f"dataset is {name!r}, but must be one of {', '.join(NAMES)}, or the path of a .npz file; "
        "[:n] behind it keeps the first n training samples."
    )


def _digits() -> Dataset:
    datasets = _import("sklearn.datasets", "scikit-learn", "demo")
    digits = datasets.load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train, test = slice(None, -DIGITS_TEST_SAMPLES), slice(-DIGITS_TEST_SAMPLES, None)
    return Dataset(
        "digits", images[train], labels[train], images[test], labels[test], source="digits"
    )


def _wine() -> Dataset:
    wine = _import("sklearn.datasets", "scikit-learn", "demo").load_wine()
    order = np.random.default_rng(0).permutation(len(wine.target))
    features, labels = wine.data[order], wine.target[order].astype(np.int32)
    test = np.arange(len(labels)) % WINE_TEST_SHARE == 0
    mean, deviation = features[~test].mean(0), features[~test].std(0)
    scaled = 128 + 32 * (features - mean) / deviation
    images = np.clip(scaled.round(), 0, 255).astype(np.uint8)[:, None, :, None]
    return Dataset("wine", images[~test], labels[~test], images[test], labels[test], source="wine")


def _npz(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path}.")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except Exception as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from error
    labelled = any(name.endswith("labels") for name in arrays)
    wanted = ARRAYS if labelled else tuple(name for name in ARRAYS if name.endswith("images"))
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it must hold {', '.join(wanted)}.")
    made = Dataset if labelled else Dataset.without_labels
    return made(path.stem, **arrays, source=str(path))


def _tfds_builder(name: str, data_dir: str | os.PathLike | None, download: bool) -> Any:
    """A TFDS builder whose data is prepared."""
    tfds = _import("tensorflow_datasets", "tensorflow-datasets", "tfds")
    if data_dir is not None and not download and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"data_dir {data_dir} is not a folder.")
    where = _where(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        prepared = builder.data_path.exists()
        if not prepared and download:
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise ValueError(f"TFDS cannot prepare {name} in {where}: {error}") from error
    if not prepared and not download:
        raise FileNotFoundError(
            f"{name} is not prepared in {where} as array_record; pass --download to fetch it "
            "(needs a network), or --data_dir to say where it is."
        )
    return builder


def _where(data_dir: str | os.PathLike | None) -> str:
    return "TFDS's default folder" if data_dir is None else str(data_dir)


def _streamed(name: str, data_dir: str | os.PathLike | None, download: bool) -> StreamingDataset:
    return stream(
        _tfds_builder(name, data_dir, download),
        image_size=STREAMED[name],
        test_split="validation",
        source=name,
        data_dir=None if data_dir is None else str(data_dir),
    )


def _tfds(name: str, data_dir: str | os.PathLike | None, download: bool) -> Dataset:
    builder = _tfds_builder(name, data_dir, download)
    where = _where(data_dir)
    arrays = {}
    for split in ("train", "test"):
        try:
            source = builder.as_data_source(split=split)
            records = [(record["image"], record["label"]) for record in source]
        except Exception as error:
            raise ValueError(
                f"the {split} split of {name} in {where} is damaged: {error}"
            ) from error
        if not records:
            raise ValueError(f"the {split} split of {name} in {where} is empty.")
        images, labels = zip(*records, strict=True)
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array(labels)
    classes = builder.info.features["label"].num_classes or 0
    folder = None if data_dir is None else str(data_dir)
    return Dataset(name, **arrays, classes=classes, source=name, data_dir=folder)


def _import(module: str, package: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{package} is needed to read this data set: pip install 'ocresnet[{extra}]'."
        ) from error
