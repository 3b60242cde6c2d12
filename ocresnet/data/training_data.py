"""What training asks of a data set, whether it lies in memory or is streamed."""

from typing import Any, Protocol

import numpy as np

from ocresnet.data.augmentation import Augmentation
from ocresnet.data.batches import Batching, Feed


class TrainingData(Protocol):
    """A labelled image data set with the parts "train", "validation" (optionally) and "test".

    `Dataset`, `StreamingDataset` and `TimeSeriesData` say what their members are.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str | None: ...

    @property
    def data_dir(self) -> str | None: ...

    @property
    def classes(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def augmentations(self) -> tuple[Augmentation, ...]: ...

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def choosing_part(self) -> str: ...

    @property
    def pixel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]: ...

    @property
    def fingerprint(self) -> str: ...

    def split(self, fraction: float, seed: int = 0) -> "TrainingData": ...

    def samples(self, part: str) -> int: ...

    def images(self, part: str) -> Any: ...

    def labels(self, part: str) -> np.ndarray: ...

    def feed(self, how: Batching) -> Feed: ...
