"""Irregularly sampled series with missing values, as data that `fit` takes.

A series is given by times, values and masks, and becomes an image (`packed`), as a `GRUODEConfig`
reads it (`systems/gru_ode.py`).
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ocresnet.data.augmentation import Augmentation
from ocresnet.data.batches import Batching, Feed, feed_from_memory
from ocresnet.data.dataset import held_out_samples


class Series(NamedTuple):
    """Series of several features, all observed at the times of their rows.

    Attributes:
      times: of every row, strictly increasing; NaN in the rows after the end of a series, at least
        one row of which is left. [samples, rows].
      values: [samples, rows, features]; what lies under a mask of 0 is not looked at.
      masks: 1 (or True) where a value was observed, else 0; [samples, rows, features].
    """

    times: np.ndarray
    values: np.ndarray
    masks: np.ndarray


def packed(series: Series) -> np.ndarray:
    """Series as images: [samples, rows, features, 3], float32.

    The channels are the time since the row before (0 in the first row, and after the end), the
    value (0 where it was not observed) and the mask.

    Raises:
      ValueError: for shapes that do not fit together, times that do not increase, masks that are
        not 0 or 1, and observed values that are not finite.
    """
    times, values, masks = (np.asarray(part) for part in series)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"values have shape {values.shape}, but must be [samples, rows, features], with at "
            "least one of each."
        )
    for name, array, wanted in (
        ("times", times, values.shape[:2]),
        ("masks", masks, values.shape),
    ):
        if array.shape != wanted:
            raise ValueError(
                f"{name} have shape {array.shape}, but with values of shape {values.shape} they "
                f"must have {wanted}."
            )
    if not np.isin(masks, (0, 1)).all():
        raise ValueError("masks must be 1 where a value was observed and 0 elsewhere.")
    observed, ended = masks.astype(bool), np.isnan(times)
    _refuse_first(
        np.isinf(times).any(axis=1) | ended[:, 0] | (ended[:, :-1] & ~ended[:, 1:]).any(axis=1),
        "times must be finite numbers, and NaN after the end of a series alone",
    )
    gaps = np.diff(times, axis=1)
    _refuse_first((gaps <= 0).any(axis=1), "times must increase from row to row")
    _refuse_first(
        (observed & ended[..., None]).any(axis=(1, 2)), "nothing is observed after a series' end"
    )
    _refuse_first(
        (observed & ~np.isfinite(values)).any(axis=(1, 2)), "observed values must be finite"
    )
    since = np.nan_to_num(np.pad(gaps, ((0, 0), (1, 0))))
    channels = np.broadcast_to(since[..., None], values.shape), np.where(observed, values, 0), masks
    return np.stack(channels, axis=-1).astype(np.float32)


def _refuse_first(wrong: Any, rule: str) -> None:
    """Refuse the first of the series [samples] that is wrong."""
    if wrong.any():
        raise ValueError(f"series {int(np.argmax(wrong))} is wrong: {rule}.")


class Part(NamedTuple):
    """Training or test series with what is to be said of them.

    Attributes:
      series: the series.
      targets: of a classification the class of each, whole numbers [samples]; of a prediction the
        value of every row, whether it was observed or not, NaN where it is unknown:
        [samples, rows, features].
    """

    series: Series
    targets: np.ndarray


@dataclass(frozen=True, eq=False)
class TimeSeriesData:
    """Series for training and tests, and optionally a validation split: data for `fit`.

    Attributes:
      name: what to call it.
      given: {"train", "validation" (optionally), "test": a `Part`}.
      source, data_dir: None: it cannot be loaded by name.

    Raises:
      ValueError: for series that are wrong (`packed`), or parts that do not fit together.
    """

    name: str
    given: dict[str, Part] = field(repr=False)
    source: str | None = None
    data_dir: str | None = None
    _packed: dict[str, np.ndarray] = field(init=False, repr=False)
    _targets: dict[str, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not {"train", "test"} <= self.given.keys() <= {"train", "validation", "test"}:
            raise ValueError(
                f"{self.name}: its parts are {', '.join(self.given)}, but must be train and test, "
                "and perhaps validation."
            )
        images: dict[str, np.ndarray] = {}
        targets: dict[str, np.ndarray] = {}
        for name, part in self.given.items():
            try:
                images[name] = packed(part.series)
            except ValueError as error:
                raise ValueError(f"{self.name}, {name}: {error}") from error
            targets[name] = self._checked_targets(name, np.asarray(part.targets), images[name])
        shapes = {array.shape[1:] for array in images.values()}
        if len(shapes) > 1 or len({array.ndim for array in targets.values()}) > 1:
            raise ValueError(
                f"{self.name}: all parts must have the same rows and features, and targets of one "
                f"kind; shorter series are padded with times of NaN."
            )
        object.__setattr__(self, "_packed", images)
        object.__setattr__(self, "_targets", targets)
        if targets["test"].ndim == 1 and targets["test"].max() >= self.classes:
            raise ValueError(
                f"{self.name}: test targets go to {targets['test'].max()}, but must be classes of "
                f"the training series, 0 to {self.classes - 1}."
            )

    def _checked_targets(self, part: str, targets: np.ndarray, images: np.ndarray) -> np.ndarray:
        """The targets in the kept form."""
        if targets.shape == images.shape[:-1] and targets.dtype.kind == "f":
            if np.isinf(targets).any():
                raise ValueError(f"{self.name}: {part} targets must be finite, or NaN.")
            return targets.astype(np.float32)
        labels = targets.shape == images.shape[:1] and targets.dtype.kind in "iu"
        if not labels or targets.min() < 0:
            raise ValueError(
                f"{self.name}: {part} targets are {targets.dtype} of shape {targets.shape}, but "
                f"must be a class from 0 for each of {len(images)} series, or values of shape "
                f"{images.shape[:-1]}."
            )
        return targets.astype(np.int32)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts there are: "train", "validation" (if any was held out), "test"."""
        return tuple(part for part in ("train", "validation", "test") if part in self.given)

    @property
    def choosing_part(self) -> str:
        """The part that choices are made on: "validation", or without one "train"; never "test"."""
        return "validation" if "validation" in self.parts else "train"

    @property
    def classes(self) -> int:
        """How many classes there are; 1 where there are none."""
        if self._targets["train"].ndim > 1:
            return 1
        # Also those whose series were all held out.
        known = [self._targets[part] for part in self.parts if part != "test"]
        return max(2, 1 + max(int(targets.max()) for targets in known))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(rows, features, 3)."""
        rows, features, channels = self._packed["train"].shape[1:]
        return rows, features, channels

    @property
    def augmentations(self) -> tuple[Augmentation, ...]:
        """None."""
        return ("none",)

    @cached_property
    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the observed training values, as those of the second
        channel; the others, times and masks, are taken as they are."""
        train = self._packed["train"].astype(np.float64)
        observed = train[..., 1][train[..., 2] > 0]
        mean, deviation = (observed.mean(), observed.std()) if observed.size else (0.0, 1.0)
        return (0.0, float(mean), 0.0), (1.0, float(max(deviation, 1e-6)), 1.0)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all series and targets, to tell whether a run's data is the same."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(self._packed[part].data)
            digest.update(self._targets[part].data)
        return digest.hexdigest()[:16]

    def samples(self, part: str) -> int:
        """How many series a part has."""
        return len(self._packed[part])

    def images(self, part: str) -> np.ndarray:
        """The series of a part as images, [samples, rows, features, 3]."""
        return self._packed[part]

    def labels(self, part: str) -> np.ndarray:
        """The targets of a part."""
        return self._targets[part]

    def feed(self, how: Batching) -> Feed:
        """Training batches, as a function of the epoch and its first step."""
        return feed_from_memory(self._packed["train"], self._targets["train"], how)

    def split(self, fraction: float, seed: int = 0) -> "TimeSeriesData":
        """Hold out a random part of the training set for validation, as `Dataset.split` does.

        Raises:
          ValueError: for a fraction outside [0, 1), or if a part is held out already.
        """
        chosen = held_out_samples(self, fraction, seed)
        if chosen is None:
            return self
        held_out, rest = chosen
        train = self.given["train"]
        return replace(
            self,
            given={
                **self.given,
                "train": _chosen(train, rest),
                "validation": _chosen(train, held_out),
            },
        )


def _chosen(part: Part, samples: np.ndarray) -> Part:
    series = Series(*(array[samples] for array in map(np.asarray, part.series)))
    return Part(series, np.asarray(part.targets)[samples])
