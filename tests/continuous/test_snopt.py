"""SNOpt: its factors against a fine solve and dense matrices; its steps; what it refuses."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.continuous.snopt import scale_by_snopt, snopt, statistics_on_grid
from ocresnet.continuous.time_grid import on_grid
from ocresnet.control.curvature import ekfac
from ocresnet.control.curvature.kronecker_layers import make_taps
from ocresnet.costs import Cost
from ocresnet.data.batches import Batch
from ocresnet.problem import Problem, objective, run
from ocresnet.systems import explicit_steps
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.system import Execution
from ocresnet.training.config import TrainingConfig
from ocresnet.training.step import init_state, make_train_step
from tests.conftest import random_images, random_variables, to_float64
from tests.quick import quick_jit

FIXED = NeuralODEConfig(
    width=3, hidden=2, horizon=0.8, solver="rk4", steps=4, classes=3, image_shape=(2, 1, 1)
)
DIRECT = replace(FIXED, solver="dopri5", steps=None, rtol=1e-9, atol=1e-9, exits="none")
BACKSOLVE = replace(DIRECT, adjoint="backsolve")
LABELS = jnp.array([0, 1, 2, 1])
LAYERS = ("ode/residual/layer_1", "ode/residual/layer_2")


def problem_of(architecture, cost=0.0):
    return Problem(architecture.system(execution=Execution(precision="float64")), stage_cost=cost)


def setting(architecture, batch=4):
    images = random_images(architecture, batch=batch)
    variables = to_float64(random_variables(architecture))
    return variables.params, (jnp.asarray(images, "float64"), LABELS[:batch])


def recorded(problem, params, batch, grid, recording, factor="gradient", most=None):
    """What taps record on a grid."""
    observed = replace(problem, system=on_grid(problem.system, grid))
    return quick_jit(
        lambda: statistics_on_grid(observed, params, {}, batch, factor, jax.random.key(0))(
            recording, most
        )
    )()


def factors(problem, params, batch, grid, factor="gradient"):
    """{path: (A, G)}."""
    layers = ekfac().init(problem.system, params).entries
    found = recorded(problem, params, batch, grid, make_taps(layers, False), factor)
    samples = len(batch[1])
    return {
        path: (tap.arrays["inputs"] / samples, tap.arrays["outputs"] / tap.arrays["rows"])
        for path, tap in found.items()
    }


def matrix(node):
    """Kernel and bias of a layer as D."""
    return jnp.concatenate(
        [node["kernel"].reshape(-1, node["kernel"].shape[-1]), node["bias"][None]]
    )


def fine_factors(params, batch, times, end):
    """A and G at so many times, layer by layer, from a fine solve and its derivatives by autodiff,
    with the trapezoidal rule."""
    theta, head = params["ode"]["residual"], params["head"]["dense"]
    x = batch[0].reshape(len(LABELS), -1) @ params["stem"]["kernel"] + params["stem"]["bias"]
    parts, steps = len(times) - 1, 8
    h = end / parts / steps

    def with_time(x, time):
        return jnp.concatenate([x, jnp.full((*x.shape[:-1], 1), time)], -1)

    def layer(name, x, time):
        return with_time(x, time) @ theta[name]["kernel"] + theta[name]["bias"]

    def field(params, time, x):
        return layer("layer_2", jnp.tanh(layer("layer_1", x, time)), time)

    def advance(x, start):
        def step(x, index):
            return explicit_steps.step("rk4", field, {}, start + index * h, h, x), None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    def loss(x):
        logits = x @ head["kernel"] + head["bias"]
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS))

    states, pulls = [x], []
    for time in times[:-1]:
        x, pull = jax.vjp(partial(advance, start=time), x)
        states.append(x)
        pulls.append(pull)
    adjoints = [jax.grad(loss)(x)]
    for pull in reversed(pulls):
        adjoints.insert(0, pull(adjoints[0])[0])

    sums = {path: [0.0, 0.0] for path in LAYERS}
    for index, (time, x, adjoint) in enumerate(zip(times, states, adjoints, strict=True)):
        weight = (0.5 if index in (0, parts) else 1.0) / parts
        inner = jnp.tanh(layer("layer_1", x, time))
        delta_2 = end * adjoint
        delta_1 = (delta_2 @ theta["layer_2"]["kernel"][:-1].T) * (1 - inner**2)
        for path, z, delta in zip(LAYERS, (x, inner), (delta_1, delta_2), strict=True):
            z = jnp.concatenate([with_time(z, time), jnp.ones((len(z), 1))], -1)
            sums[path][0] += weight * z.T @ z / len(z)
            sums[path][1] += weight * delta.T @ delta / len(z)
    return sums


@pytest.mark.parametrize("architecture", [replace(FIXED, steps=8), DIRECT, BACKSOLVE])
def test_factors_are_those_of_a_fine_solve_on_the_grid(architecture):
    with jax.enable_x64(True):
        problem = problem_of(architecture)
        params, batch = setting(architecture)
        grid = architecture.depth if architecture.adaptive is None else 3
        got = factors(problem, params, batch, grid)
        times = architecture.horizon * np.arange(grid + 1) / grid
        wanted = quick_jit(lambda: fine_factors(params, batch, times, architecture.horizon))()
        for path in LAYERS:
            for own, expected in zip(got[path], wanted[path], strict=True):
                assert np.abs(expected).max() > 1e-3
                np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-7)


def test_factors_converge_with_the_grid():
    with jax.enable_x64(True):
        problem = problem_of(FIXED)
        params, batch = setting(FIXED)
        found = [factors(problem, params, batch, grid) for grid in (4, 8, 64)]
        for path in LAYERS:
            for part in range(2):
                coarse, fine, exact = (own[path][part] for own in found)
                error = np.linalg.norm(coarse - exact) / np.linalg.norm(fine - exact)
                assert error == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("factor", ["gradient", "exact"])
def test_for_one_sample_and_a_short_time_it_is_the_dense_second_derivative(factor):
    """A (x) G = Q_uu where z and delta hardly change: J^T Phi_xx J by autodiff, the scale in T
    included (EKFAC's own is as many times too small as there are evaluations)."""
    architecture = replace(FIXED, horizon=1e-5)
    with jax.enable_x64(True):
        problem = problem_of(architecture)
        params, batch = setting(architecture, batch=1)

        def logits(matrices):
            layers = {name: {"kernel": own[:-1], "bias": own[-1]} for name, own in matrices.items()}
            own = {**params, "ode": {"residual": layers}}
            return own_logits(problem, own, batch[0])

        theta = params["ode"]["residual"]
        matrices = {name: matrix(node) for name, node in theta.items()}
        z = quick_jit(logits)(matrices)
        p = jax.nn.softmax(z)
        rows = jnp.eye(3)[batch[1][0]] - p
        terminal = jnp.outer(rows, rows) if factor == "gradient" else jnp.diag(p) - jnp.outer(p, p)
        jacobian = quick_jit(jax.jacrev(logits))(matrices)
        got = factors(problem, params, batch, 1, factor)
        for name, path in zip(theta, LAYERS, strict=True):
            J = jacobian[name].reshape(3, -1)
            dense = J.T @ terminal @ J
            A, G = got[path]
            # From [rows, channels] flattened: A varies slowest.
            np.testing.assert_allclose(
                np.kron(A, G), dense, rtol=1e-3, atol=1e-4 * np.abs(dense).max()
            )


def own_logits(problem, params, images):
    """The logits of one image."""
    return run(problem, params, {}, images).all_outputs()[-1, 0]


def test_the_sampled_factor_is_the_exact_one_on_average():
    with jax.enable_x64(True):
        problem = problem_of(FIXED)
        params, batch = setting(FIXED)
        observed = replace(problem, system=on_grid(problem.system, 4))
        layers = ekfac().init(problem.system, params).entries
        recording = make_taps(layers, False)

        def outputs_factor(key):
            found = statistics_on_grid(observed, params, {}, batch, "sampled", key)(recording, None)
            return found[LAYERS[1]].arrays["outputs"]

        keys = jax.random.split(jax.random.key(0), 2000)
        drawn = quick_jit(lambda: jax.lax.map(outputs_factor, keys, batch_size=100))()
        exact = recorded(problem, params, batch, 4, recording, "exact")[LAYERS[1]].arrays["outputs"]
        error = np.abs(drawn.mean(0) - exact)
        assert (error < 5 * drawn.std(0) / 2000**0.5 + 1e-12).all()
        assert np.abs(exact).max() > 10 * error.max()


@pytest.mark.parametrize("architecture", [FIXED, BACKSOLVE], ids=["fixed", "backsolve"])
def test_the_gradient_is_the_same_whether_or_not_the_curvature_is_measured(architecture):
    """Identity 18: of the step to the bit, and of the observed system to the solver's error."""
    with jax.enable_x64(True):
        problem = problem_of(architecture)
        params, batch = setting(architecture)
        keep_gradient = optax.GradientTransformation(
            lambda params: params, lambda gradient, state, params=None: (gradient, gradient)
        )
        optimizer = optax.chain(keep_gradient, scale_by_snopt(problem, refresh_every=2))
        config = TrainingConfig()
        step = quick_jit(make_train_step(problem, config, optimizer))
        state = init_state(problem, config, setting_variables(architecture), optimizer)
        batch = Batch(*batch)
        gradients, changed = [], []
        for count in (2, 3):  # refreshes, and does not
            own, curvature = state.opt_state
            given = curvature._replace(
                curvature=curvature.curvature._replace(steps=jnp.asarray(count, jnp.int32))
            )
            new, _ = step(state._replace(opt_state=(own, given)), batch)
            gradients.append(new.opt_state[0])
            entries = new.opt_state[1].curvature.entries
            changed.append(np.abs(entries[LAYERS[0]].inputs).max() > 0)
        assert changed == [True, False]
        jax.tree.map(np.testing.assert_array_equal, *gradients)
        observed = replace(problem, system=on_grid(problem.system, 4))
        again = quick_jit(jax.grad(lambda own: objective(observed, own, {}, *batch)))(params)
        for got, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(gradients[0]), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-8)


def setting_variables(architecture):
    return to_float64(random_variables(architecture))


@pytest.mark.parametrize("factor", ["gradient", "exact"])
def test_the_first_samples_stand_for_all(factor):
    """Two of four count twice."""
    with jax.enable_x64(True):
        problem = problem_of(FIXED)
        params, batch = setting(FIXED)
        recording = make_taps(ekfac().init(problem.system, params).entries, False)
        found = recorded(problem, params, batch, 4, recording, factor, most=2)
        halves = tuple(part[:2] for part in batch)
        wanted = recorded(problem, params, halves, 4, recording, factor)
        for got, own in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got, 2 * own, rtol=0, atol=1e-12)


def test_a_step_is_the_formula():
    """Eigenvectors of A and G; m starts at their eigenvalues' products and follows the gradients;
    between refreshes all but m stay."""
    damping, decay = 0.02, 0.6
    with jax.enable_x64(True):
        problem = problem_of(FIXED)
        params, batch = setting(FIXED)
        gradient = quick_jit(jax.grad(lambda own: objective(problem, own, {}, *batch)))(params)
        tx = snopt(problem, 0.1, grid=5, damping=damping, decay=decay, refresh_every=2)
        update = quick_jit(lambda state: tx.update(gradient, state, params, batch=batch))
        A, G = factors(problem, params, batch, 5)[LAYERS[0]]
        a, U_A = np.linalg.eigh(A)
        c, U_G = np.linalg.eigh(G)
        D = matrix(gradient["ode"]["residual"]["layer_1"])
        m = np.outer(a.clip(0), c.clip(0))
        state = tx.init(params)
        for _ in range(2):
            updates, state = update(state)
            rotated = U_A.T @ D @ U_G
            m = decay * m + (1 - decay) * len(LABELS) * rotated**2
            wanted = -0.1 * U_A @ (rotated / (m + damping)) @ U_G.T
            got = matrix(updates["ode"]["residual"]["layer_1"])
            assert np.abs(wanted).max() > 1e-3
            np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-11)


def test_momentum_and_decay_follow_the_curvature():
    with jax.enable_x64(True):
        problem = problem_of(FIXED)
        params, batch = setting(FIXED)
        gradient = jax.tree.map(jnp.ones_like, params)

        def steps(**choices):
            tx = snopt(problem, 0.5, refresh_every=10, **choices)
            update = quick_jit(lambda state: tx.update(gradient, state, params, batch=batch))
            first, state = update(tx.init(params))
            return first, update(state)[0]

        plain, other = steps(), steps(momentum=0.9, weight_decay=0.1)
        for first, second, theta, got, after in zip(
            *map(jax.tree.leaves, (*plain, params, *other)), strict=True
        ):
            np.testing.assert_allclose(got, first - 0.05 * theta, rtol=1e-9)
            wanted = 0.9 * (first - 0.05 * theta) + second - 0.05 * theta
            np.testing.assert_allclose(after, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"grid": 0}, "grid is 0, but must be a whole number, at least 1"),
        ({"grid": 0.1}, "grid is 0.1, but must be a whole number, at least 1"),
        ({"refresh_every": 0}, "refresh_every is 0, but must be a whole number, at least 1"),
        ({"damping": 0.0}, "damping is 0.0, but must be positive"),
        ({"decay": 1.0}, "decay is 1.0, but must be in"),
        ({"factor": "none"}, "factor is 'none', but must be one of gradient, sampled, exact"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        snopt(FIXED.system(), 0.1, **choices)


@pytest.mark.parametrize("architecture", [FIXED, replace(BACKSOLVE, free_horizon=True)])
def test_activations_may_be_of_half_precision(architecture):
    tx = snopt(architecture.system(execution=Execution(precision="bfloat16")), 0.1)
    params = random_variables(architecture).params
    batch = jnp.asarray(random_images(architecture, batch=4)), LABELS
    given = jax.eval_shape(lambda: (params, tx.init(params)))
    got = jax.eval_shape(
        lambda params, state: tx.update(params, state, params, batch=batch), *given
    )
    assert got == given


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="SNOpt needs a differential equation, and this network"):
        snopt(MLPConfig(image_shape=(2, 2, 1)).system(), 0.1)
    own = Problem(FIXED.system(), Cost(lambda logits, labels: logits[..., 0]))
    with pytest.raises(ValueError, match="factor is 'exact', which the loss does not have"):
        snopt(own, 0.1, factor="exact")
    tx = snopt(FIXED.system(), 0.1)
    params = random_variables(FIXED).params
    with pytest.raises(ValueError, match="snopt needs batch="):
        tx.update(params, tx.init(params), params)
