"""Likelihoods and samples of flows, against closed forms and against each other."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import multivariate_normal

from ocresnet.continuous.flows import finer, from_base, log_likelihood, sample, to_base
from ocresnet.plots.densities import density_grid
from ocresnet.systems.flow import FlowConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.network import Network
from tests.conftest import random_network, to_float64

FLOW = FlowConfig(
    hidden=(6,),
    horizon=1.2,
    solver="rk4",
    steps=20,
    image_shape=(1, 1, 2),
    pixel_mean=(0.5, -1.0),
    pixel_deviation=(2.0, 0.5),
)
ADAPTIVE = replace(FLOW, solver="dopri5", steps=None, rtol=1e-8, atol=1e-8)
AFFINE = replace(FLOW, hidden=(), steps=60)


def points(samples, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(samples, 2)) * [2.0, 0.5] + [0.5, -1.0]).astype(np.float32)


def normal_of(network):
    """Mean and covariance of the data of dx/dt = A x + c t + b, which is linear in (x, t, 1)."""
    layer = jax.tree.map(np.float64, network.params["flow"]["layer_1"])
    features = network.architecture.features
    generator = np.zeros((features + 2, features + 2))
    generator[:features, :features] = layer["kernel"][:features].T
    generator[:features, features] = layer["kernel"][features]
    generator[:features, features + 1] = layer["kernel"][features + 1]
    generator[features, features + 1] = 1
    whole = expm(generator * network.architecture.horizon)
    slope, shift = whole[:features, :features], whole[:features, features + 1]
    back = np.linalg.inv(slope)
    deviation, mean = (
        np.asarray(values)
        for values in (network.architecture.pixel_deviation, network.architecture.pixel_mean)
    )
    scaled = np.diag(deviation) @ back
    return mean - scaled @ shift, scaled @ scaled.T


def test_an_affine_flow_has_a_normal_density():
    network = random_network(AFFINE)
    mean, covariance = normal_of(network)
    wanted = multivariate_normal(mean, covariance).logpdf(points(50))
    with jax.enable_x64(True):
        exactly = Network(AFFINE, *to_float64(network.variables))
        got = log_likelihood(exactly, np.float64(points(50)))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=1e-7)
    np.testing.assert_allclose(log_likelihood(network, points(50)), wanted, rtol=1e-4)


def test_samples_of_an_affine_flow_have_its_moments():
    network, samples = random_network(AFFINE), 20_000
    mean, covariance = normal_of(network)
    drawn = np.asarray(sample(network, jax.random.key(0), samples))
    assert drawn.shape == (samples, 2)
    error = np.sqrt(np.diag(covariance) / samples)
    assert (np.abs(drawn.mean(axis=0) - mean) < 4 * error).all()
    variances = np.diag(covariance)
    # Of an estimated covariance: (C_ii C_jj + C_ij^2) / samples.
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / samples)
    assert (np.abs(np.cov(drawn.T) - covariance) < 4 * error).all()


@pytest.mark.parametrize("architecture", [FLOW, ADAPTIVE], ids=["rk4", "dopri5"])
def test_a_density_integrates_to_one(architecture):
    places, area = density_grid(np.array([-14.0, -5.0]), np.array([15.0, 3.0]), 150)
    density = np.exp(np.asarray(log_likelihood(random_network(architecture), places), np.float64))
    assert density.max() < 0.01 / area  # a grid that is fine enough
    np.testing.assert_allclose(density.sum() * area, 1, atol=2e-3)


@pytest.mark.parametrize("architecture", [FLOW, ADAPTIVE], ids=["rk4", "dopri5"])
def test_samples_come_back_to_their_base(architecture):
    network = random_network(architecture)
    z = jax.random.normal(jax.random.key(1), (40, 2))
    data = from_base(network, z)
    assert np.abs(data - z).max() > 0.5
    np.testing.assert_allclose(to_base(network, data).points, z, atol=1e-4)
    np.testing.assert_array_equal(sample(network, jax.random.key(1), 40), data)


def test_a_finer_solver_finds_out_a_coarse_one():
    exact = random_network(FLOW)
    rough = exact.replace(architecture=replace(FLOW, steps=1))
    wanted = log_likelihood(exact, points(30))
    error = np.abs(log_likelihood(rough, points(30)) - wanted).max()
    fine = finer(rough, 20)
    assert fine.architecture.steps == 20
    assert np.abs(log_likelihood(fine, points(30)) - wanted).max() < error / 100


def test_a_finer_adaptive_solver_has_smaller_tolerances():
    rough = random_network(replace(ADAPTIVE, rtol=1e-3, atol=4e-6, trace="rademacher"))
    fine = finer(rough, 10).architecture.adaptive
    assert (fine.rtol, fine.atol, fine.max_steps) == (1e-4, 1e-6, 1000)
    assert finer(random_network(ADAPTIVE)).architecture.rtol == 1e-8


def test_points_may_be_images():
    network = random_network(FLOW)
    of_points = log_likelihood(network, points(5))
    np.testing.assert_array_equal(log_likelihood(network, points(5).reshape(5, 1, 1, 2)), of_points)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_estimated_likelihoods_have_the_exact_one_for_their_mean(trace):
    network, one, samples = random_network(FLOW), points(1), 20_000
    many = np.broadcast_to(one, (samples, 2))
    estimates = np.asarray(log_likelihood(network, many, trace=trace, key=jax.random.key(5)))
    estimates = estimates.astype(np.float64)
    error = estimates.std() / np.sqrt(samples)
    assert error > 1e-5
    exact = float(log_likelihood(network, one)[0])
    assert abs(estimates.mean() - exact) < 4 * error


def test_what_is_no_flow_or_does_not_fit_is_refused():
    flow, other = random_network(FLOW), random_network(MLPConfig((3,)))
    for call, message in (
        (lambda: log_likelihood(other, points(2)), "only a flow has a likelihood and samples, and"),
        (lambda: log_likelihood(FLOW, points(2)), "and this is a FlowConfig."),
        (lambda: log_likelihood(flow, np.zeros((3, 4))), r"shape \(3, 4\), but this flow needs \["),
        (lambda: log_likelihood(flow, np.zeros((0, 2))), "at least one."),
        (lambda: from_base(flow, np.zeros(2)), r"shape \(2,\), but this flow needs \[samples, 2\]"),
        (lambda: finer(other), "only a flow has a likelihood and samples, and this is a MLPConfig"),
        (lambda: sample(flow, jax.random.key(0), 0), "samples is 0, but must be at least 1."),
        (
            lambda: log_likelihood(flow, points(2), trace="gaussian"),
            "trace is 'gaussian', which needs a key",
        ),
        (
            lambda: log_likelihood(flow, points(2), trace="cauchy", key=jax.random.key(0)),
            "trace is 'cauchy', but must be one of exact, rademacher, gaussian.",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_solve_that_reaches_its_limit_says_so_with_the_remedy():
    network = random_network(replace(ADAPTIVE, max_steps=2))
    for call in (
        lambda: log_likelihood(network, points(3)),
        lambda: sample(network, jax.random.key(0), 3),
    ):
        with pytest.raises(ValueError, match="does not end.*limit of 2 steps.*raise max_steps"):
            call()


def test_whole_numbers_are_points_too():
    network = random_network(FLOW)
    whole = np.array([[1, -1], [0, 2]])
    np.testing.assert_array_equal(
        log_likelihood(network, whole), log_likelihood(network, jnp.float32(whole))
    )
