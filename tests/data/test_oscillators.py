"""Oscillators: their moments, and the closed form against dense Gaussian conditioning."""

from dataclasses import replace

import numpy as np
import pytest
from jax.scipy.linalg import expm

from ocresnet.data.oscillators import Generator, Oscillator

KINDS = (Oscillator(1.0, 0.1), Oscillator(1.8, 0.3))
SMALL = Generator(KINDS, rows=6, horizon=4.0, missing=0.3, forecast=1, sigma=0.2)


def drift(oscillator):
    w, d = oscillator.frequency, oscillator.damping
    return np.array([[0, 1], [-(w**2), -2 * d * w]])


@pytest.mark.parametrize("oscillator", KINDS, ids=str)
def test_transitions_are_matrix_exponentials(oscillator):
    gaps = np.array([0.0, 0.05, 0.7, 3.0])
    wanted = [np.asarray(expm(drift(oscillator) * gap)) for gap in gaps]
    np.testing.assert_allclose(oscillator.transition(gaps), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("oscillator", KINDS, ids=str)
def test_the_stationary_covariance_solves_lyapunovs_equation(oscillator):
    A, P = drift(oscillator), oscillator.stationary
    shaken = np.diag([0, 4 * oscillator.damping * oscillator.frequency**3])
    np.testing.assert_allclose(A @ P + P @ A.T + shaken, 0, atol=1e-12)
    gap = 1e-4
    np.testing.assert_allclose(oscillator.noise(np.array(gap)) / gap, shaken, atol=2e-3)


def joint(oscillator, times, sigma):
    """Covariance of all measurements of a series, [rows * 2, rows * 2]."""
    rows = len(times)
    covariance = np.zeros((rows, 2, rows, 2))
    for late in range(rows):
        for early in range(late + 1):
            through = oscillator.transition(np.array(times[late] - times[early]))
            covariance[late, :, early] = through @ oscillator.stationary
            covariance[early, :, late] = covariance[late, :, early].T
    return covariance.reshape(2 * rows, 2 * rows) + sigma**2 * np.eye(2 * rows)


def test_drawn_series_have_the_moments_of_the_closed_form():
    generator = Generator(KINDS[1:], rows=3, horizon=3.0, missing=0.25, forecast=1, sigma=0.3)
    drawn = generator.draw(60_000, 0)
    whitened = np.zeros((len(drawn.kinds), 6))
    for start in range(0, 3000):
        root = np.linalg.cholesky(joint(KINDS[1], drawn.series.times[start], 0.3))
        whitened[start] = np.linalg.solve(root, drawn.measurements[start].reshape(-1))
    white = whitened[:3000]
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=0.08)
    np.testing.assert_allclose(white.T @ white / 3000, np.eye(6), atol=0.11)
    np.testing.assert_allclose(drawn.states.var(axis=(0, 1)), [1, 1.8**2], rtol=0.02)
    noise = drawn.measurements - drawn.states
    np.testing.assert_allclose(noise.std(), 0.3, rtol=0.01)
    shares = drawn.series.masks.mean(axis=(0, 2))
    np.testing.assert_allclose(shares, [0.75, 0.75, 0], atol=0.01)
    assert np.all(np.diff(drawn.series.times, axis=1) > 0)
    assert drawn.series.times.min() >= 0 and drawn.series.times.max() <= 3.0


def density(values, covariance):
    sign, log = np.linalg.slogdet(2 * np.pi * covariance)
    assert sign > 0
    return np.exp(-0.5 * (log + values @ np.linalg.solve(covariance, values)))


def test_the_closed_form_is_gaussian_conditioning_and_bayes_rule():
    series = SMALL.draw(8, 1).series
    best = SMALL.best(series)
    for sample in range(8):
        times, values, masks = (part[sample] for part in series)
        for row in range(7):  # 6 is after the last
            before = np.zeros_like(masks)
            before[:row] = masks[:row]
            seen = before.reshape(-1)
            means, weights = [], []
            for oscillator in KINDS:
                covariance = joint(oscillator, times, 0.2)
                own, given = covariance[np.ix_(seen, seen)], values.reshape(-1)[seen]
                weights.append(density(given, own) if seen.any() else 1.0)
                rest = covariance[:, seen] @ np.linalg.solve(own, given)
                means.append(rest.reshape(-1, 2)[min(row, 5)])
            posterior = np.array(weights) / sum(weights)
            if row == 6:
                np.testing.assert_allclose(best.posterior[sample], posterior, rtol=1e-8)
            else:
                np.testing.assert_allclose(
                    best.predictions[sample, row], posterior @ np.array(means), atol=1e-9
                )


def test_what_is_missing_is_not_looked_at():
    series = SMALL.draw(5, 2).series
    values = np.where(series.masks, series.values, np.nan)
    for got, wanted in zip(
        SMALL.best(series._replace(values=values)), SMALL.best(series), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


def test_the_draw_is_a_function_of_its_seed():
    first, again, other = SMALL.draw(4, 7), SMALL.draw(4, 7), SMALL.draw(4, (7, 1))
    np.testing.assert_array_equal(first.measurements, again.measurements)
    np.testing.assert_array_equal(first.series.masks, again.series.masks)
    assert np.all(first.measurements != other.measurements)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0.0}, "horizon is 0.0, but must be positive."),
        ({"horizon": -1.0}, "horizon is -1.0, but must be positive."),
        ({"sigma": 0.0}, "sigma is 0.0, but must be positive."),
        ({"missing": 1.0}, "missing is 1.0, but must be a share in [0, 1)."),
        ({"rows": 1}, "rows is 1, but must be at least 2."),
        ({"forecast": 6}, "forecast is 6, but must be 0 to 5, so that a row is left to see."),
        ({"kinds": ()}, "kinds is empty, but there must be at least one oscillator."),
    ],
)
def test_impossible_generators_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(SMALL, **fields)
    assert str(refusal.value) == message


def test_impossible_oscillators_are_refused():
    with pytest.raises(ValueError, match="frequency is 0, but must be a positive number"):
        Oscillator(0, 0.1)
    with pytest.raises(ValueError, match="damping is 1.5, but must lie between 0 and 1"):
        Oscillator(1.0, 1.5)
    with pytest.raises(ValueError, match="samples is 0, but must be at least 1"):
        SMALL.draw(0, 0)
