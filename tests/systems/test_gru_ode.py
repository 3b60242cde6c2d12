"""GRU-ODEs: the cell, the solves between rows, masks, padding, gradients, and what is refused."""

from dataclasses import replace

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import identity
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.data.time_series import Series, packed
from ocresnet.problem import Problem
from ocresnet.systems.adaptive_solves import AdaptiveSolver
from ocresnet.systems.gru_ode import GRU_ODE, GRUODEConfig, gru_cell
from ocresnet.systems.network import apply
from ocresnet.systems.system import Execution
from tests.conftest import random_variables, to_float64
from tests.quick import quick_jit

CLASSIFIER = GRUODEConfig(
    width=4,
    hidden=3,
    field_layers=3,
    solver="midpoint",
    steps=2,
    classes=3,
    image_shape=(5, 2, 3),
    pixel_mean=(0.0, 0.3, 0.0),
    pixel_deviation=(1.0, 1.7, 1.0),
)
PREDICTOR = replace(CLASSIFIER, task="prediction")
LINEAR = replace(CLASSIFIER, field_layers=1, solver="rk4", steps=8)
BOTH = pytest.mark.parametrize("architecture", [CLASSIFIER, PREDICTOR], ids=["class", "predict"])
EXACTLY = Execution(precision="float64")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def some_series(samples=3, rows=5, features=2, seed=0) -> Series:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.1, 0.8, (samples, rows)), axis=1)
    masks = rng.uniform(size=(samples, rows, features)) < 0.6
    masks[:, 1] = False
    return Series(times, rng.normal(size=masks.shape), masks)


def run(architecture, variables, images):
    @quick_jit
    def outputs(variables, images):
        return apply(architecture, variables, images, execution=EXACTLY)[0][0]

    return np.asarray(outputs(variables, images))


def test_the_cell_is_that_of_flax():
    rng = np.random.default_rng(0)
    inputs, h = rng.normal(size=(6, 3)), rng.normal(size=(6, 4))
    cell = flax.linen.GRUCell(features=4, param_dtype=jnp.float64)
    theirs = cell.init(jax.random.key(0), h, inputs)["params"]
    theirs = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theirs)
    gates = ("r", "z", "n")
    ours = {
        "input": {
            name: jnp.concatenate([theirs[f"i{gate}"][name] for gate in gates], axis=-1)
            for name in ("kernel", "bias")
        },
        "state": {
            "kernel": jnp.concatenate([theirs[f"h{gate}"]["kernel"] for gate in gates], axis=-1),
            "bias": jnp.concatenate([jnp.zeros(8), theirs["hn"]["bias"]]),
        },
    }
    wanted, _ = cell.apply({"params": theirs}, h, inputs)
    np.testing.assert_allclose(gru_cell(ours, jnp.asarray(inputs), h), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [
        ({"solver": "rk4", "steps": 40}, 1e-7),
        ({"solver": "dopri5", "steps": None, "rtol": 1e-9, "atol": 1e-10}, 1e-7),
    ],
    ids=["rk4", "dopri5"],
)
def test_a_linear_field_is_solved_as_by_the_matrix_exponential(solver, tolerance):
    architecture = replace(LINEAR, **solver)
    field = to_float64(random_variables(architecture)).params[GRU_ODE]["field"]
    rng = np.random.default_rng(1)
    h, gaps = rng.normal(size=(5, 4)), np.array([[0.0], [0.3], [1.0], [2.5], [0.01]])
    evolved = quick_jit(architecture.evolve)(field, jnp.asarray(gaps), jnp.asarray(h))
    layer = jax.tree.map(np.asarray, field["layer_1"])
    whole = np.zeros((5, 5))  # of (h, 1), so that the bias is a part of the matrix
    whole[:4, :4], whole[4, :4] = layer["kernel"], layer["bias"]
    wanted = [
        (np.append(own, 1.0) @ np.asarray(jax.scipy.linalg.expm(whole * gap)))[:4]
        for own, [gap] in zip(h, gaps, strict=True)
    ]
    np.testing.assert_allclose(evolved, wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(evolved[0], h[0])


def test_the_order_of_the_fixed_solver_is_four():
    field = to_float64(random_variables(CLASSIFIER)).params[GRU_ODE]["field"]
    h, gap = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4))), jnp.full((2, 1), 1.5)

    def error(steps):
        rough, fine = (
            replace(CLASSIFIER, solver="rk4", steps=count).evolve(field, gap, h)
            for count in (steps, 256)
        )
        return float(jnp.max(jnp.abs(rough - fine)))

    assert 13 < error(4) / error(8) < 19


@BOTH
def test_the_network_is_its_formula(architecture):
    series = some_series()
    variables = to_float64(random_variables(architecture))
    params = jax.tree.map(np.asarray, variables.params)
    got = run(architecture, variables, packed(series))

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def field(x):
        inner = params[GRU_ODE]["field"]
        x = np.tanh(dense(inner["layer_1"], x))
        return dense(inner["layer_3"], np.tanh(dense(inner["layer_2"], x)))

    def sigma(x):
        return 1 / (1 + np.exp(-x))

    wanted = []
    for times, values, masks in zip(*series, strict=True):
        h, before = np.zeros(4), []
        for row, time in enumerate(times):
            # Series are kept in float32.
            gap = float(np.float32(time - times[row - 1])) if row else 0.0
            for _ in range(2):
                h = h + gap / 2 * field(h + gap / 4 * field(h))
            before.append(h)
            if not masks[row].any():
                continue
            seen = np.where(masks[row], (values[row].astype(np.float32) - 0.3) / 1.7, 0)
            of_input = dense(params[GRU_ODE]["cell"]["input"], np.append(seen, masks[row]))
            of_state = dense(params[GRU_ODE]["cell"]["state"], h)
            (ri, zi, ni), (rh, zh, nh) = np.split(of_input, 3), np.split(of_state, 3)
            update = sigma(zi + zh)
            h = (1 - update) * np.tanh(ni + sigma(ri + rh) * nh) + update * h
        if architecture.classifies:
            wanted.append(dense(params["head"], h))
        else:
            wanted.append((dense(params["head"], np.array(before)) * 1.7 + 0.3).reshape(-1))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("hidden", [7.0, np.nan, np.inf])
def test_values_under_a_zero_mask_have_no_influence(architecture, hidden):
    images = packed(some_series())
    variables = to_float64(random_variables(architecture))
    changed = np.where(images[..., 2] > 0, images[..., 1], hidden).astype(np.float32)
    changed = np.stack([images[..., 0], changed, images[..., 2]], axis=-1)
    got, wanted = (run(architecture, variables, given) for given in (changed, images))
    np.testing.assert_array_equal(got, wanted)

    @quick_jit
    def gradient(images):
        return jax.grad(
            lambda images: jnp.sum(
                jnp.sin(apply(architecture, variables, images, execution=EXACTLY)[0])
            )
        )(images)

    slopes = np.asarray(gradient(jnp.asarray(changed, jnp.float64)))[..., 1]
    assert np.all(slopes[images[..., 2] == 0] == 0)
    seen = slopes[images[..., 2] > 0]
    assert np.isfinite(seen).all() and np.any(seen != 0)


def test_padding_changes_nothing():
    series = some_series()
    variables = to_float64(random_variables(CLASSIFIER))
    longer = Series(
        np.pad(series.times, ((0, 0), (0, 3)), constant_values=np.nan),
        np.pad(series.values, ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
        np.pad(series.masks, ((0, 0), (0, 3), (0, 0))),
    )
    wanted = run(CLASSIFIER, variables, packed(series))
    got = run(replace(CLASSIFIER, image_shape=(8, 2, 3)), variables, packed(longer))
    np.testing.assert_array_equal(got, wanted)
    predicted = run(PREDICTOR, random_f64(PREDICTOR), packed(series))
    padded = replace(PREDICTOR, image_shape=(8, 2, 3))
    got = run(padded, random_f64(PREDICTOR), packed(longer))
    np.testing.assert_array_equal(got[:, :10], predicted)


def random_f64(architecture):
    return to_float64(random_variables(architecture))


def test_a_prediction_sees_nothing_of_its_own_row_and_later_ones():
    images, variables = packed(some_series()), random_f64(PREDICTOR)
    images[..., 2] = 1
    changed = images.copy()
    changed[:, 3:, :, 1] += 1.0
    before, after = (run(PREDICTOR, variables, given) for given in (images, changed))
    before, after = before.reshape(3, 5, 2), after.reshape(3, 5, 2)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(before[:, 4] != after[:, 4])


@pytest.mark.parametrize(
    "architecture",
    [
        CLASSIFIER,
        PREDICTOR,
        replace(CLASSIFIER, solver="dopri5", steps=None, rtol=1e-9, atol=1e-9),
        replace(CLASSIFIER, solver="tsit5", steps=None, rtol=1e-9, atol=1e-9, adjoint="backsolve"),
    ],
    ids=["class", "predict", "direct", "backsolve"],
)
def test_gradients_against_finite_differences(architecture):
    images, variables = packed(some_series()), random_f64(architecture)

    def cost(params):
        outputs, _ = apply(
            architecture, variables._replace(params=params), images, execution=EXACTLY
        )
        return jnp.sum(jnp.sin(outputs))

    gradient, cost = quick_jit(jax.grad(cost))(variables.params), quick_jit(cost)
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), variables.params
        )
        ends = (
            float(cost(jax.tree.map(lambda a, b, s=s: a + s * b, variables.params, direction)))
            for s in (1e-5, -1e-5)
        )
        slope = (next(ends) - next(ends)) / 2e-5
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=2e-5)


def test_ocnopt_steps_on_series():
    """A tied segment like others, whose state is a tree."""
    images, labels = packed(some_series(8)).astype(np.float64), np.arange(8) % 3
    problem = Problem(replace(CLASSIFIER, steps=1).system(execution=EXACTLY))
    tx = ocnopt(problem, curvature=identity(), rollout="nonlinear")
    keep = Keep(trajectory=True)

    @quick_jit
    def step(params, state):
        nominal = linearize(problem, params, {}, images, labels, keep)
        given = {"batch": (images, labels), "nominal": nominal}
        updates, state = tx.update(nominal.gradient, state, params, **given)
        return jax.tree.map(jnp.add, params, updates), state, nominal.objective

    params = random_f64(CLASSIFIER).params
    state, objectives = tx.init(params), []
    for _ in range(4):
        params, state, objective = step(params, state)
        objectives.append(float(objective))
    assert objectives == sorted(objectives, reverse=True) and objectives[-1] < objectives[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "rk4", "steps": None}, "solver is 'rk4', which needs steps: how many equal"),
        ({"solver": "dopri5"}, "steps is 2, but belongs to the solvers euler, midpoint and rk4"),
        ({"rtol": 1e-3}, "rtol is 0.001, but belongs to the solvers dopri5 and tsit5"),
        ({"steps": 0}, "steps is 0, but must be a whole number of at least 1."),
        ({"solver": "heun"}, "solver is 'heun', but must be one of euler, midpoint"),
        ({"task": "smoothing"}, "task is 'smoothing', but must be one of classification, pred"),
        ({"width": 0}, "width is 0, but must be a whole number of at least 1."),
        ({"field_layers": 0}, "field_layers is 0, but must be a whole number of at least 1."),
        (
            {"image_shape": (5, 2, 1), "pixel_mean": (0.0,), "pixel_deviation": (1.0,)},
            "image_shape is (5, 2, 1), but a GRU-ODE takes series, which are (rows, features, 3)",
        ),
        ({"pixel_mean": (0.5,)}, "pixel_mean is (0.5,), but of a series only the values are norm"),
        ({"pixel_deviation": (1.0, 2.0, 2.0)}, "its first and last number must be 1."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(CLASSIFIER, **fields)
    assert message in str(refusal.value)


def test_a_solve_that_reaches_its_limit_says_so():
    architecture = replace(CLASSIFIER, solver="dopri5", steps=None, max_steps=1, rtol=1e-9)
    assert architecture.adaptive == AdaptiveSolver("dopri5", rtol=1e-9, max_steps=1)
    assert "raise max_steps" in architecture.not_finite
    outputs = run(architecture, random_f64(architecture), packed(some_series()))
    assert not np.isfinite(outputs).all()
