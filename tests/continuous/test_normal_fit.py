"""The normal density that fits best."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ocresnet.continuous.normal_fit import normal_log_likelihood


def test_it_has_the_mean_and_covariance_of_the_training_points():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) * [0.1, 1, 10] + [1, 2, 3]
    points = rng.normal(size=(7, 3)) * [0.1, 1, 10]
    density = multivariate_normal(train.mean(0), np.cov(train.T, bias=True))
    wanted = density.logpdf(points)
    np.testing.assert_allclose(normal_log_likelihood(train, points), wanted, rtol=1e-9)
    images = train.reshape(40, 1, 1, 3), points.reshape(7, 1, 1, 3)
    np.testing.assert_allclose(normal_log_likelihood(*images), wanted, rtol=1e-9)


def test_no_other_normal_density_is_likelier():
    rng = np.random.default_rng(1)
    train = rng.normal(size=(30, 2))
    best = normal_log_likelihood(train, train).mean()
    for factor in (0.9, 1.1):
        other = multivariate_normal(train.mean(0), factor * np.cov(train.T, bias=True))
        assert other.logpdf(train).mean() < best


def test_points_that_have_no_normal_density_are_refused():
    rng = np.random.default_rng(2)
    train = rng.normal(size=(10, 2))
    with pytest.raises(ValueError, match="depend on each other linearly"):
        normal_log_likelihood(np.concatenate([train, train[:, :1]], axis=1), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="feature 1 is the same in all training samples"):
        normal_log_likelihood(train * [1, 0], train)
    with pytest.raises(ValueError, match="samples is 2, but must be a whole number of at least 3"):
        normal_log_likelihood(train[:2], train)
