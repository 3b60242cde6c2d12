"""Timing of things that are to be compared: alternating, in one process, by ratio.

On a machine that other work shares, the seconds of two runs cannot be compared; the ratios of
neighbouring measurements can.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np


class Ratio(NamedTuple):
    """How the time of one thing compares with that of another.

    Attributes:
      median: of the ratios of neighbouring measurements.
      low, high: their quartiles.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def alternate(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every step, called in turn: {name: [rounds]}.

    Each is first called once unmeasured. A step must wait for its own result.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], name: str, base: str) -> Ratio:
    """Time of `name` over that of `base`, round by round."""
    ratios = seconds[name] / seconds[base]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(low), float(high))
