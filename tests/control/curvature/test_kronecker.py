"""K-FAC and EKFAC against explicit sums over samples and locations, in full matrices."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import diagonal, ekfac, kfac
from ocresnet.control.curvature.kronecker import require_finite
from ocresnet.control.curvature.kronecker_layers import Layer
from ocresnet.control.curvature.protocol import CurvatureState
from ocresnet.control.optimizer import scale_by_curvature
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.system import Segment, System
from tests.control.curvature.explicit import NETWORKS, factors, reads
from tests.control.networks import mlp_problem, random_batch, random_params
from tests.quick import quick_jit

DAMPING, DECAY, BATCH = 0.1, 0.8, 4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def entry_of(state: CurvatureState, path: str, depth: int | None) -> Layer:
    entry = state.entries[path]
    return jax.tree.map(lambda leaf: np.asarray(leaf if depth is None else leaf[depth]), entry)


def matrix_of(tree: Any, path: str, depth: int | None) -> np.ndarray:
    """Kernel and bias of a layer, [rows_in, channels_out]."""
    for key in path.split("/"):
        tree = tree[key]
    kernel, bias = (np.asarray(tree[name]) for name in ("kernel", "bias"))
    if depth is not None:
        kernel, bias = kernel[depth], bias[depth]
    return np.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias[None]])


def updater(problem: Problem, curvature: Any):
    optimizer = scale_by_curvature(curvature, problem)

    @quick_jit
    def step(params, state, batch):
        gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
        changes, state = optimizer.update(gradient, state, params, batch=batch)
        return gradient, changes, state

    return optimizer.init, step


# Factors, moments and M^-1

VARIANTS = {
    "kfac": kfac(DAMPING, DECAY, factor_every=1, eigen_every=2),
    "ekfac": ekfac(DAMPING, DECAY, factor_every=1, eigen_every=2),
    "ekfac per_example": ekfac(
        DAMPING, DECAY, factor_every=1, eigen_every=2, moments="per_example"
    ),
}
VARIANTS |= {
    f"{name} of three samples": replace(curvature, factor_samples=3)
    for name, curvature in VARIANTS.items()
}


@pytest.mark.parametrize(
    ("network", "name"),
    [
        *(("convolutions", name) for name in VARIANTS),
        ("shared heads", "kfac"),
        ("shared heads", "ekfac"),
        ("shared heads", "kfac of three samples"),
    ],
)
def test_two_steps_are_those_of_explicit_sums(network, name):
    """Stacked layers are several layers, and a layer that is read at several depths is one, with
    more locations. The eigenvectors are those of the first step, the factors those of both, of all
    four samples or of the first three; the gradient is that of all."""
    problem, _, features = NETWORKS[network]
    params = random_params(problem)
    init, step = updater(problem, VARIANTS[name])
    batches = [random_batch(BATCH, features, seed) for seed in (1, 2)]
    _, _, state = step(params, init(params), batches[0])
    gradient, changes, state = step(params, state, batches[1])

    whole = [reads(network, params, batch) for batch in batches]
    samples = 3 if "three" in name else BATCH
    estimated = [reads(network, params, [part[:samples] for part in batch]) for batch in batches]
    for path, depth in {(read.path, read.depth) for read in whole[0]}:
        used, factored = (
            [[r for r in part if (r.path, r.depth) == (path, depth)] for part in steps]
            for steps in (whole, estimated)
        )
        entry, D = entry_of(state.curvature, path, depth), matrix_of(gradient, path, depth)
        np.testing.assert_allclose(
            sum(read.gradients.sum(0) for read in used[1]) / BATCH, D, rtol=0, atol=1e-12
        )
        (A, G), (A2, G2) = map(factors, factored)
        np.testing.assert_allclose(entry.inputs, (A + A2) / 2, rtol=0, atol=1e-12)
        np.testing.assert_allclose(entry.outputs, (G + G2) / 2, rtol=0, atol=1e-12)

        U_A, U_G = entry.input_basis, entry.output_basis
        values = []
        for factor, basis in ((A, U_A), (G, U_G)):
            np.testing.assert_allclose(basis.T @ basis, np.eye(len(basis)), rtol=0, atol=1e-12)
            rotated = basis.T @ factor @ basis
            values.append(np.diag(rotated))
            np.testing.assert_allclose(rotated, np.diag(values[-1]), rtol=0, atol=1e-12)
        if name.startswith("kfac"):
            pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
            damped = A + pi * DAMPING**0.5 * np.eye(len(A)), G + DAMPING**0.5 / pi * np.eye(len(G))
            M = np.kron(*damped)
        else:
            moments = np.outer(*values)
            if "per_example" not in name:
                for part in used:
                    mean = sum(read.gradients.mean(0) for read in part)
                    square = BATCH * (U_A.T @ mean @ U_G) ** 2
                    moments = DECAY * moments + (1 - DECAY) * square
            else:
                (read,) = factored[1]
                squares = (U_A.T @ read.gradients @ U_G) ** 2
                moments = (moments + squares.mean(0)) / 2
            np.testing.assert_allclose(entry.moments, moments, rtol=0, atol=1e-12)
            U = np.kron(U_A, U_G)
            M = U @ np.diag(moments.ravel() + DAMPING) @ U.T
        expected = np.linalg.solve(M, D.ravel()).reshape(D.shape)
        np.testing.assert_allclose(matrix_of(changes, path, depth), expected, rtol=0, atol=1e-10)


def test_for_one_sample_kfac_is_the_gauss_newton_block():
    """A (x) G = g g^T, without damping, for every dense layer."""
    problem = mlp_problem()
    params = random_params(problem)
    init, step = updater(problem, kfac())
    gradient, _, state = step(params, init(params), random_batch(1))
    for path, depth in (("hidden_0", None), ("hidden_1", 0), ("hidden_1", 1), ("output", None)):
        entry, g = entry_of(state.curvature, path, depth), matrix_of(gradient, path, depth).ravel()
        kronecker = np.kron(entry.inputs, entry.outputs)
        np.testing.assert_allclose(kronecker, np.outer(g, g), rtol=0, atol=1e-12)


def test_without_damping_and_with_kroneckers_moments_ekfac_is_kfac():
    """At a fresh basis m = a c^T; "per_example" moments begin with the next estimate."""
    problem = mlp_problem("squared_error")  # that of cross-entropy has no curvature along ones
    params, batch = random_params(problem), random_batch(30)
    results = []
    for curvature in (kfac(1e-24), ekfac(1e-24, moments="per_example")):
        init, step = updater(problem, curvature)
        results.append(step(params, init(params), batch)[1])
    for got, wanted in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8 * np.abs(wanted).max())


def test_factors_and_bases_are_refreshed_only_when_due():
    problem = mlp_problem()
    params = random_params(problem)
    init, step = updater(problem, ekfac(factor_every=2, eigen_every=4))
    state = init(params)
    for count in range(6):
        before = entry_of(state.curvature, "hidden_1", None)
        state = step(params, state, random_batch(BATCH, seed=count))[2]
        after = entry_of(state.curvature, "hidden_1", None)
        changed = [not np.array_equal(a, b) for a, b in zip(after, before, strict=True)]
        factors_due, basis_due = count % 2 == 0, count % 4 == 0
        assert changed == [factors_due, factors_due, basis_due, basis_due, True]
    assert state.curvature.steps == 6


def test_what_a_refresh_does_not_change_does_not_leave_its_conditional():
    """Else it is laid out as one of the branches would have it, transposed, at every step."""
    problem = mlp_problem()
    params = random_params(problem)
    optimizer = scale_by_curvature(ekfac(), problem)
    state = optimizer.init(params)
    step = jax.make_jaxpr(
        lambda batch: optimizer.update(params, state, params, batch=batch)[1].curvature
    )(random_batch(BATCH))
    conditionals = [each for each in step.eqns if each.primitive.name == "cond"]
    layers = len(state.curvature.entries)
    assert [len(each.outvars) for each in conditionals] == [2 * layers, 3 * layers]


def scaled_problem() -> tuple[Problem, Any]:
    """A scale beside a layer, and a kernel that is not declared as a layer's; parameters."""

    def scaled(stage, x):
        return stage.params["scale"] * layers.dense(stage.params["dense"], x), {}

    def opaque(stage, x):
        return x @ stage.params["kernel"], {}

    system = System(
        (Segment("scaled", scaled, layers={"dense": layers.dense}), Segment("opaque", opaque))
    )
    problem = Problem(system)
    kernel = random_params(mlp_problem())["hidden_0"]["kernel"]
    params = {
        "scaled": {"scale": jnp.arange(1.0, 4.0), "dense": {"kernel": kernel}},
        "opaque": {"kernel": kernel[:3]},
    }
    return problem, params


def test_arrays_that_no_layer_owns_have_moments_of_their_own():
    """A scale, and a `kernel` that is not declared as a layer's."""

    problem, params = scaled_problem()
    init, step = updater(problem, ekfac(DAMPING, DECAY))
    state, seen = init(params), []
    assert {path: type(entry) is Layer for path, entry in state.curvature.entries.items()} == {
        "scaled/scale": False,
        "scaled/dense": True,
        "opaque/kernel": False,
    }
    for seed in range(2):
        gradient, changes, state = step(params, state, random_batch(BATCH, seed=seed))
        seen.append(gradient)
    for part, name in (("scaled", "scale"), ("opaque", "kernel")):
        squares = np.mean([BATCH * np.asarray(tree[part][name]) ** 2 for tree in seen], axis=0)
        expected = np.asarray(gradient[part][name]) / (squares + DAMPING)
        np.testing.assert_allclose(changes[part][name], expected, rtol=1e-12)


# Precision and refusals


def test_factors_are_single_precision_for_activations_in_half():
    with jax.enable_x64(False):
        problem = mlp_problem()
        half = System(
            problem.system.segments, initial_state=lambda inputs: inputs.astype(jnp.bfloat16)
        )
        params, batch = random_params(problem), random_batch(16)
        results = []
        for system in (problem.system, half):
            init, step = updater(Problem(system), kfac())
            _, changes, state = step(params, init(params), batch)
            assert {leaf.dtype for leaf in jax.tree.leaves((changes, state.curvature.entries))} == {
                jnp.dtype("float32")
            }
            results.append(entry_of(state.curvature, "hidden_1", 1))
        single, low = results
        for factor in ("inputs", "outputs"):
            error = np.abs(getattr(single, factor) - getattr(low, factor)).max()
            assert 1e-6 < error / np.abs(getattr(single, factor)).max() < 0.05


@pytest.mark.parametrize("name", [*VARIANTS, "diagonal"])
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_that_is_not_finite_leaves_no_trace(name, first):
    """The update of that batch is lost, but not those of the next ones."""
    problem, params = scaled_problem()
    init, step = updater(problem, {**VARIANTS, "diagonal": diagonal()}[name])
    state = init(params)
    if not first:
        state = step(params, state, random_batch(BATCH, seed=1))[2]
    images, labels = random_batch(BATCH, seed=2)
    before = state.curvature.entries
    _, changes, state = step(params, state, (images * jnp.nan, labels))
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(changes))
    require_finite(state.curvature)
    if name == "diagonal":
        jax.tree.map(np.testing.assert_array_equal, state.curvature.entries, before)
    _, changes, state = step(params, state, random_batch(BATCH, seed=3))
    require_finite(state.curvature)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(changes))


def test_a_curvature_that_is_not_finite_is_found():
    problem = mlp_problem()
    params = random_params(problem)
    init, step = updater(problem, kfac(factor_every=1))
    _, _, state = step(params, init(params), random_batch())
    require_finite(state.curvature)
    images, labels = random_batch()
    _, _, kept = step(params, state, (images * jnp.nan, labels))
    require_finite(kept.curvature)  # an estimate that is not finite is not taken in
    entries = dict(state.curvature.entries)
    entries["output"] = entries["output"]._replace(outputs=jnp.full((3, 3), jnp.nan))
    with pytest.raises(ValueError, match="curvature of output is not finite after 1 updates"):
        require_finite(CurvatureState(state.curvature[0], entries))


@pytest.mark.parametrize(
    ("make", "choices", "message"),
    [
        (kfac, {"damping": 0.0}, "damping is 0.0, but must be positive."),
        (ekfac, {"damping": -1.0}, "damping is -1.0, but must be positive."),
        (kfac, {"decay": 1.0}, "decay is 1.0, but must be in [0, 1)."),
        (ekfac, {"factor_every": 0}, "factor_every is 0, but must be a whole number, at least 1."),
        (
            ekfac,
            {"factor_samples": 0},
            "factor_samples is 0, but must be a whole number, at least 1, or None.",
        ),
        (kfac, {"eigen_every": 1.5}, "eigen_every is 1.5, but must be a whole number, at least 1."),
        (ekfac, {"moments": "all"}, "moments is 'all', but must be one of batch, per_example."),
        (diagonal, {"decay": -0.1}, "decay is -0.1, but must be in [0, 1)."),
        (diagonal, {"epsilon": 0.0}, "epsilon is 0.0, but must be positive."),
    ],
)
def test_impossible_settings_are_refused(make, choices, message):
    with pytest.raises(ValueError) as error:
        make(**choices)
    assert str(error.value) == message
