"""The low-rank recursion against full matrices, for random factors, gradients and curvatures.

Notation as in `dense.py` and `ocresnet/control/value.py`; Y are the factors at the last state,
V_xx,K = kappa Y Y^T, and G_k, P_k those pulled back.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.value import (
    Policy,
    Value,
    clipped,
    joint_minimum,
    linear_rollout,
    value_recursion,
)
from tests.control.dense import Chain, bellman, chain, total_jacobian, walk
from tests.control.networks import mlp_problem, random_batch, random_params, random_spd

ETA, KAPPA = 0.4, 0.7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@cache
def network() -> Chain:
    problem = mlp_problem()
    return chain(problem, random_params(problem), random_batch())


class Columns(NamedTuple):
    """A terminal cost and its columns at every stage.

    Attributes:
      M: of every stage.
      value: V_x and V_xx of the last state.
      coordinates: of the gradient in the columns.
      controls: C_k, [controls, columns].
      states: the columns pulled back to the states x_0 ... x_K, [entries, columns].
    """

    M: list[np.ndarray]
    value: tuple[np.ndarray, np.ndarray]
    coordinates: np.ndarray
    controls: list[np.ndarray]
    states: list[np.ndarray]

    @property
    def gram(self) -> np.ndarray:
        return np.stack(
            [ETA * C.T @ np.linalg.solve(M, C) for C, M in zip(self.controls, self.M, strict=True)]
        )

    @property
    def curvature(self) -> list[np.ndarray]:
        return [M / ETA for M in self.M]


def columns(jacobians, rank: int, spanned: bool, seed: int = 3, scale: float = 1.0) -> Columns:
    """Random factors and gradient; the gradient is a combination of the factors if `spanned`."""
    rng = np.random.default_rng(seed)
    factors = scale * rng.normal(size=(len(jacobians[-1][1]), rank))
    if spanned:
        coordinates, ends = rng.normal(size=rank), factors
    else:
        coordinates, ends = np.eye(rank + 1)[0], np.insert(factors, 0, 0, axis=1)
        ends[:, 0] = rng.normal(size=len(ends))
    states, controls = [ends], []
    for f_theta, f_x in reversed(jacobians):
        controls.append(f_theta.T @ states[-1])
        states.append(f_x.T @ states[-1])
    return Columns(
        [random_spd(rng, None, f_theta.shape[1]) for f_theta, _ in jacobians],
        (ends @ coordinates, KAPPA * factors @ factors.T),
        coordinates,
        controls[::-1],
        states[::-1],
    )


def solve(case: Columns, rank: int, value_update: str) -> Policy:
    """Of every stage, where its one player's is that of the stage."""
    kappa = 0.0 if value_update == "none" else KAPPA
    decide = clipped if value_update == "clipped" else joint_minimum
    policy = jax.jit(value_recursion, static_argnums=4)(
        *stages(case, rank), Value(jnp.asarray(case.coordinates), jnp.eye(rank)), kappa, decide
    )
    return Policy(*(np.asarray(leaf[:, 0]) for leaf in policy))


def stages(case: Columns, rank: int) -> tuple[jax.Array, jax.Array]:
    """Gram matrices of single players, and no drift."""
    return jnp.asarray(case.gram[:, None]), jnp.zeros((len(case.M), rank))


def rolled_out(case: Columns, rank: int, policy: Policy) -> jax.Array:
    """The weights that a linear rollout applies."""
    policy = Policy(*(jnp.asarray(leaf[:, None]) for leaf in policy))
    return jax.jit(linear_rollout)(policy, *stages(case, rank), KAPPA)[0][:, 0]


def step(case: Columns, stage: int, applied: np.ndarray) -> np.ndarray:
    """-eta M^-1 C applied."""
    return -ETA * np.linalg.solve(case.M[stage], case.controls[stage] @ applied)


CASES = [
    ("exact", 1, False),
    ("exact", 1, True),
    ("exact", 3, False),
    ("exact", 5, True),
    ("clipped", 1, False),
    ("clipped", 1, True),
    ("none", 1, True),
    ("none", 3, False),
]


@pytest.mark.parametrize(("value_update", "rank", "spanned"), CASES)
def test_policy_and_value_are_those_of_full_matrices(value_update, rank, spanned):
    scale = 0.3 if value_update == "clipped" else 1.0  # so that nothing is clipped
    case = columns(network().jacobians, rank, spanned, scale=scale)
    policy = solve(case, rank, value_update)
    expected = bellman(network().jacobians, case.value, case.curvature, value_update)
    if value_update == "clipped":
        assert policy.gains.min() > 0 and policy.gains[0, 0, 0] < 0.9

    for stage, (k, K) in enumerate(expected.policies):
        weights, gains = policy.weights[stage], policy.gains[stage]
        np.testing.assert_allclose(step(case, stage, weights), k, rtol=0, atol=1e-12)
        feedback = np.zeros((len(weights), len(K.T)))
        feedback[-rank:] = KAPPA * gains @ case.states[stage][:, -rank:].T
        np.testing.assert_allclose(step(case, stage, feedback), K, rtol=0, atol=1e-12)
        # The value function that an exact policy belongs to is that of its own stage, including
        # its own decision; the others use that of the next one.
        at = stage if value_update == "exact" else stage + 1
        V_x, V_xx = expected.values[at]
        G = case.states[at][:, -rank:]
        np.testing.assert_allclose(case.states[at] @ weights, V_x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(KAPPA * G @ gains @ G.T, V_xx, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("value_update", "rank", "spanned"), CASES)
def test_linear_rollout_needs_no_states(value_update, rank, spanned):
    case = columns(network().jacobians, rank, spanned)
    policy = solve(case, rank, value_update)
    applied = rolled_out(case, rank, policy)

    def decide(stage, dx):
        weights = policy.weights[stage].copy()
        deviation = case.states[stage][:, -rank:].T @ dx
        weights[-rank:] += KAPPA * policy.gains[stage] @ deviation
        return step(case, stage, weights)

    for stage, change in enumerate(walk(network(), decide, "linear")):
        np.testing.assert_allclose(step(case, stage, applied[stage]), change, atol=1e-12)


@pytest.mark.parametrize("value_update", ["exact", "clipped"])
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_rank_one_along_the_gradient_is_one_scalar_a_stage(value_update, scale):
    """alpha = alpha' / (1 + kappa alpha' tau), or alpha' max(0, 1 - kappa alpha' tau)."""
    case = columns(network().jacobians, 1, True, scale=scale)
    case = case._replace(coordinates=np.ones(1))
    policy = solve(case, 1, value_update)
    alpha, used = 1.0, []
    for tau in case.gram[::-1, 0, 0]:
        if value_update == "exact":
            alpha = alpha / (1 + KAPPA * alpha * tau)
            used.append(alpha)
        else:
            used.append(alpha)
            alpha = alpha * max(0.0, 1 - KAPPA * alpha * tau)
    if value_update == "clipped":
        assert (alpha == 0) == (scale > 1)
    np.testing.assert_allclose(policy.weights[:, 0], used[::-1], rtol=1e-12)
    np.testing.assert_allclose(policy.gains[:, 0, 0], used[::-1], rtol=1e-12)


def test_exact_gain_of_a_stage_is_that_of_its_own_block():
    """1 - q^T (gamma I + q q^T)^-1 q = gamma / (gamma + |q|^2), and V_xx never grows."""
    q = np.random.default_rng(0).normal(size=6)
    gamma = 1 / ETA
    last = Value(jnp.ones(1), jnp.eye(1))
    policy = value_recursion(jnp.full((1, 1, 1, 1), ETA * q @ q), jnp.zeros((1, 1)), last, 1.0)
    expected = 1 - q @ np.linalg.solve(gamma * np.eye(6) + np.outer(q, q), q)
    np.testing.assert_allclose(expected, gamma / (gamma + q @ q), rtol=1e-13)
    np.testing.assert_allclose(policy.gains[0, 0, 0, 0], expected, rtol=1e-13)

    gains = solve(columns(network().jacobians, 3, False, scale=10.0), 3, "exact").gains
    np.testing.assert_array_equal(gains, np.swapaxes(gains, -1, -2))
    eigenvalues = np.linalg.eigvalsh(gains)
    assert eigenvalues.min() > 0 and eigenvalues.max() < 1


@pytest.mark.parametrize("spanned", [False, True])
def test_without_value_correction_the_sweep_is_block_gauss_seidel(spanned):
    """d theta = -(M / eta + strictly lower blocks of the Gauss-Newton matrix)^-1 g."""
    rank = 3
    case = columns(network().jacobians, rank, spanned)
    applied = rolled_out(case, rank, solve(case, rank, "none"))
    change = np.concatenate([step(case, stage, own) for stage, own in enumerate(applied)])

    jacobian = total_jacobian(network().jacobians)
    V_x, V_xx = case.value
    stage = np.repeat(np.arange(len(case.M)), [len(M) for M in case.M])
    lower = np.where(stage[:, None] > stage, jacobian.T @ V_xx @ jacobian, 0.0)
    matrix = lower + np.asarray(jax.scipy.linalg.block_diag(*case.curvature))
    np.testing.assert_allclose(change, -np.linalg.solve(matrix, jacobian.T @ V_x), atol=1e-12)


def test_linear_dynamics_with_quadratic_costs_are_solved_by_one_sweep():
    """min over u of  1/2 sum_k u_k^T (M_k / eta) u_k + kappa/2 |Y^T x_K - target|^2,
    x_{k+1} = f_x x_k + f_theta u_k: the sweep's gradient vanishes, V_xx is Riccati's."""
    jacobians, rank = network().jacobians, 4
    case = columns(jacobians, rank, True)
    coordinates = np.random.default_rng(5).normal(size=rank)  # kappa (Y^T x_K - target) at u = 0
    case = case._replace(coordinates=coordinates)
    policy = solve(case, rank, "exact")

    def decide(stage, dx):
        deviation = case.states[stage].T @ dx
        return step(case, stage, policy.weights[stage] + KAPPA * policy.gains[stage] @ deviation)

    u = np.concatenate(walk(network(), decide, "linear"))
    jacobian, Y = total_jacobian(jacobians), case.states[-1]
    slope = jacobian.T @ Y @ (coordinates + KAPPA * Y.T @ jacobian @ u)
    running = np.asarray(jax.scipy.linalg.block_diag(*case.curvature)) @ u
    assert np.abs(running).max() > 0.1
    np.testing.assert_allclose(running + slope, 0, atol=1e-12)

    S = KAPPA * Y @ Y.T
    for stage in reversed(range(len(jacobians))):
        f_theta, f_x = jacobians[stage]
        gain = np.linalg.solve(case.curvature[stage] + f_theta.T @ S @ f_theta, f_theta.T @ S @ f_x)
        S = f_x.T @ S @ f_x - f_x.T @ S @ f_theta @ gain
        G = case.states[stage]
        np.testing.assert_allclose(KAPPA * G @ policy.gains[stage] @ G.T, S, atol=1e-12)


@pytest.mark.parametrize("size", [1e3, 1e8, 1e15])
def test_factors_that_are_alike_leave_gains_between_0_and_1(size):
    """In float32, stage after stage; in the directions in which they differ not at all, all of
    it."""
    rng = np.random.default_rng(6)
    with jax.enable_x64(False):
        base = rng.normal(size=(3, 5))
        columns = np.concatenate([base, base, base * (1 + 1e-5), np.zeros((1, 5))])
        gram = jnp.asarray(size * columns @ columns.T, jnp.float32)
        value = Value(jnp.asarray(rng.normal(size=10), jnp.float32), jnp.eye(10))
        largest = float(jnp.max(jnp.abs(value.weights)))
        for _ in range(4):
            policy, value = joint_minimum(value, gram[None], jnp.zeros(10), 1.0)
            gains = np.linalg.eigvalsh(np.asarray(policy.gains[0], np.float64))
            assert gains.min() > -1e-6 and gains.max() < 1 + 1e-6
            assert np.abs(policy.weights).max() < 10 * largest
            np.testing.assert_allclose(value.gains[-1, -1], 1, rtol=1e-4)


def test_groups_of_almost_no_cost_break_nothing():
    """In float32: their products reach down to the smallest numbers there are, from which LAPACK's
    eigenvalues are NaN now and then (two of these 2,500)."""
    generator = np.random.default_rng(0)
    groups = 8
    with jax.enable_x64(False):
        last, drift = Value(jnp.full(groups, 1 / groups), jnp.eye(groups)), jnp.zeros(groups)
        decide = jax.jit(jax.vmap(lambda gram: joint_minimum(last, gram, drift, 1.0)[1]))
        for _ in range(5):
            sizes = 10.0 ** generator.uniform(-22, 2, (500, groups))
            factors = generator.normal(size=(500, groups, 20)) * sizes[..., None]
            gram = np.einsum("nfp,ngp->nfg", factors, factors)
            weights, gains = decide(jnp.asarray(gram[:, None], jnp.float32))
            assert weights.dtype == np.float32
            assert np.isfinite(weights).all() and np.isfinite(gains).all()
            # What is left of them is as much as in float64, to the rounding of the system.
            wanted = np.linalg.solve(np.eye(groups) + gram, np.full((500, groups, 1), 1 / groups))
            rounding = groups * np.finfo(np.float32).eps * (1 + np.trace(gram, axis1=1, axis2=2))
            assert (np.abs(weights - wanted[..., 0]).max(axis=1) < rounding).all()
