"""Noisy oscillators at irregular times, and the best that can be said of them.

Notation
    x       state (position, velocity) of a damped oscillator that is shaken by white noise
    w, d    its frequency and damping, 0 < d < 1:  x = (q, v),
                dq = v dt,   dv = (-w^2 q - 2 d w v) dt + 2 sqrt(d w^3) dW
    P       covariance of its stationary distribution, diag(1, w^2): the state is drawn from it
    E(t)    exp(t A), A the matrix of the drift
    Q(t)    covariance of x(s + t) given x(s):  P - E(t) P E(t)^T
    y       measurement x + noise of deviation sigma, of each feature; some are missing
    c       kind: which of several oscillators it is, each as likely as the others

Every kind is linear and Gaussian, so that the Kalman filter gives p(y_k | y_1 ... y_{k-1}, c)
exactly. Then p(c | y) is known by Bayes' rule, and so are the best prediction of the next
measurement, the mean of the kinds' predictions with the weights p(c | y_1 ... y_{k-1}), and the
best guess of the kind: no model can have a smaller error in expectation. All is float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ocresnet.data.time_series import Part, Series

FEATURES = 2
"""Position and velocity."""


@dataclass(frozen=True)
class Oscillator:
    """A kind of oscillator.

    Attributes:
      frequency: w > 0.
      damping: d, between 0 and 1.

    Raises:
      ValueError: for an impossible value.
    """

    frequency: float
    damping: float

    def __post_init__(self) -> None:
        if not 0 < self.frequency < np.inf:
            raise ValueError(f"frequency is {self.frequency!r}, but must be a positive number.")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping is {self.damping!r}, but must lie between 0 and 1.")

    @property
    def stationary(self) -> np.ndarray:
        """P, [2, 2]."""
        return np.diag([1.0, self.frequency**2])

    def transition(self, gaps: np.ndarray) -> np.ndarray:
        """E(t) for times [...]: [..., 2, 2]."""
        w, rate = self.frequency, self.damping * self.frequency
        swing = w * np.sqrt(1 - self.damping**2)
        decay, cosine = np.exp(-rate * gaps), np.cos(swing * gaps)
        sine = np.sin(swing * gaps) / swing
        rows = [[cosine + rate * sine, sine], [-(w**2) * sine, cosine - rate * sine]]
        return decay[..., None, None] * np.moveaxis(np.array(rows), (0, 1), (-2, -1))

    def noise(self, gaps: np.ndarray) -> np.ndarray:
        """Q(t) for times [...]: [..., 2, 2]."""
        through = self.transition(gaps)
        return self.stationary - through @ self.stationary @ np.swapaxes(through, -1, -2)


@dataclass(frozen=True)
class Generator:
    """How series of oscillators are made.

    Attributes:
      kinds: the oscillators.
      rows: of every series.
      horizon: T; the times of the rows are drawn uniformly from 0 ... T and sorted.
      missing: share of the measurements that are missing, each by its own draw.
      forecast: how many rows at the end have no measurements at all.
      sigma: deviation of the measurements.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    kinds: tuple[Oscillator, ...] = (
        Oscillator(1.0, 0.1),
        Oscillator(1.3, 0.1),
        Oscillator(1.7, 0.1),
    )
    rows: int = 30
    horizon: float = 12.0
    missing: float = 0.4
    forecast: int = 6
    sigma: float = 0.2

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("kinds is empty, but there must be at least one oscillator.")
        for name, value, holds, allowed in (
            ("horizon", self.horizon, 0 < self.horizon < np.inf, "positive"),
            ("sigma", self.sigma, 0 < self.sigma < np.inf, "positive"),
            ("missing", self.missing, 0 <= self.missing < 1, "a share in [0, 1)"),
            ("rows", self.rows, self.rows >= 2, "at least 2"),
            (
                "forecast",
                self.forecast,
                0 <= self.forecast < self.rows,
                f"0 to {self.rows - 1}, so that a row is left to see",
            ),
        ):
            if not holds:
                raise ValueError(f"{name} is {value!r}, but must be {allowed}.")

    def draw(self, samples: int, seed: int | Sequence[int]) -> "Drawn":
        """Series with all that is hidden in them; a pure function of its arguments.

        Raises:
          ValueError: for no samples.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples!r}, but must be at least 1.")
        rng = np.random.default_rng(seed)
        kinds = rng.integers(0, len(self.kinds), samples)
        times = np.sort(rng.uniform(0, self.horizon, (samples, self.rows)), axis=1)
        normal = rng.standard_normal((samples, self.rows, FEATURES))
        noise = self.sigma * rng.standard_normal(normal.shape)
        masks = rng.uniform(size=normal.shape) >= self.missing
        masks[:, self.rows - self.forecast :] = False

        states = np.zeros_like(normal)
        for kind, oscillator in enumerate(self.kinds):
            own = kinds == kind
            x = normal[own, 0] @ _root(oscillator.stationary)
            states[own, 0] = x
            gaps = np.diff(times[own], axis=1)
            through, roots = oscillator.transition(gaps), _root(oscillator.noise(gaps))
            for row in range(1, self.rows):
                x = _times(through[:, row - 1], x) + _times(roots[:, row - 1], normal[own, row])
                states[own, row] = x
        return Drawn(kinds, states, states + noise, Series(times, states + noise, masks))

    def best(self, series: Series) -> "Best":
        """The best that can be said of series, by Kalman filters and Bayes' rule."""
        filtered = [self._filter(oscillator, series) for oscillator in self.kinds]
        means = np.stack([mean for mean, _ in filtered])
        logs = np.stack([log for _, log in filtered])  # [kinds, samples, rows]
        before = np.cumsum(np.pad(logs, ((0, 0), (0, 0), (1, 0))), axis=-1)
        weights = np.exp(before - before.max(axis=0))
        weights /= weights.sum(axis=0)
        predictions = np.einsum("ksr,ksrf->srf", weights[..., :-1], means)
        return Best(predictions, weights[..., -1].T)

    def _filter(self, oscillator: Oscillator, series: Series) -> tuple[np.ndarray, np.ndarray]:
        """The predicted mean of every row from those before it, [samples, rows, 2], and the
        logarithm of the density of what was observed in it, [samples, rows]."""
        times, values, masks = series
        gaps = np.diff(times, axis=1)
        through, noise = oscillator.transition(gaps), oscillator.noise(gaps)
        samples, rows = times.shape
        mean, covariance = np.zeros((samples, 2)), np.tile(oscillator.stationary, (samples, 1, 1))
        means, logs = np.zeros((samples, rows, 2)), np.zeros((samples, rows))
        for row in range(rows):
            if row > 0:
                step = through[:, row - 1]
                mean = _times(step, mean)
                covariance = step @ covariance @ np.swapaxes(step, -1, -2) + noise[:, row - 1]
            means[:, row] = mean
            for feature in range(FEATURES):  # their noise is independent: one after the other
                seen = masks[:, row, feature].astype(bool)
                variance = covariance[:, feature, feature] + self.sigma**2
                surprise = np.where(seen, values[:, row, feature] - mean[:, feature], 0)
                gain = np.where(seen[:, None], covariance[:, :, feature] / variance[:, None], 0)
                log = -0.5 * (np.log(2 * np.pi * variance) + surprise**2 / variance)
                logs[:, row] += np.where(seen, log, 0)
                mean = mean + gain * surprise[:, None]
                covariance = covariance - gain[:, :, None] * covariance[:, None, feature]
        return means, logs


class Drawn(NamedTuple):
    """Series with what is hidden in them.

    Attributes:
      kinds: c, [samples].
      states: x at every row, [samples, rows, 2].
      measurements: y, those that are missing too, [samples, rows, 2].
      series: what is seen.
    """

    kinds: np.ndarray
    states: np.ndarray
    measurements: np.ndarray
    series: Series

    def to_predict(self) -> Part:
        """With every measurement as a target, those that are missing too."""
        return Part(self.series, self.measurements)

    def to_classify(self) -> Part:
        """With the kind as a target."""
        return Part(self.series, self.kinds)


class Best(NamedTuple):
    """What is best to say of series.

    Attributes:
      predictions: mean of every measurement given those of the rows before it, [samples, rows, 2].
      posterior: p(c | y) given all that is seen, [samples, kinds].
    """

    predictions: np.ndarray
    posterior: np.ndarray


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R R^T = covariance, lower triangular, for [..., 2, 2] that may be singular."""
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    root = np.zeros_like(covariance)
    root[..., 0, 0] = np.sqrt(np.maximum(a, 0))
    root[..., 1, 0] = np.divide(b, root[..., 0, 0], out=np.zeros_like(b), where=a > 0)
    root[..., 1, 1] = np.sqrt(np.maximum(c - root[..., 1, 0] ** 2, 0))
    return root


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("sij,sj->si", matrices, vectors)
