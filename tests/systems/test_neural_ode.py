"""Neural ODEs: what they compute, their depth in time, and what they refuse."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.continuous.evaluations import function_evaluations
from ocresnet.stage_cost.early_exit import predict
from ocresnet.stage_cost.gates import gate_derivatives
from ocresnet.stage_cost.horizon_choice import recommend_horizon
from ocresnet.stage_cost.pruning import prune
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.stage_cost.surgery import remove_blocks
from ocresnet.stage_cost.trajectory import (
    Trajectory,
    logits_over_depth,
    parameter_norms,
    trajectory,
)
from ocresnet.systems.blocks import blocks, with_blocks
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.solver_settings import ADAPTIVE_FIELDS
from ocresnet.systems.system import Execution
from ocresnet.training.config import TrainingConfig
from ocresnet.training.evaluation import evaluate
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.loop import NonFiniteLossError
from tests.conftest import apply, random_images, random_network, random_variables, to_float64
from tests.quick import quick_jit

DENSE = NeuralODEConfig(
    width=4, hidden=3, horizon=1.2, solver="midpoint", steps=4, classes=3, image_shape=(2, 2, 1)
)
CONVOLUTIONAL = NeuralODEConfig(
    vector_field="convolutional",
    strides=(1, 2),
    width=3,
    hidden=2,
    activation="sigmoid",
    solver="euler",
    steps=2,
    classes=3,
    image_shape=(6, 5, 2),
)
ADAPTIVE = replace(DENSE, solver="dopri5", steps=None)
LABELS = np.array([0, 1, 2, 1, 0])
EXACTLY = Execution(precision="float64")


def test_the_dense_network_is_its_formula():
    network, images = random_network(DENSE), random_images(DENSE)
    params = jax.tree.map(np.float64, network.params)

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def slope(time, x):
        theta = params["ode"]["residual"]
        time = np.full((len(x), 1), time)
        inner = np.tanh(dense(theta["layer_1"], np.concatenate([x, time], -1)))
        return dense(theta["layer_2"], np.concatenate([inner, time], -1))

    x, h = dense(params["stem"], images.reshape(5, -1)), 0.3
    wanted = []
    for k in range(4):
        wanted.append(dense(params["head"]["dense"], x))
        x = x + h * slope(k * h + h / 2, x + h / 2 * slope(k * h, x))
    wanted.append(dense(params["head"]["dense"], x))
    got, _ = apply(DENSE, network.variables, images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(DENSE.times, [0, 0.3, 0.6, 0.9, 1.2], rtol=1e-15)


def test_the_convolutional_network_is_the_same_with_convolutions():
    """One pixel far from the border of constant images sees what a dense network would."""
    architecture = replace(CONVOLUTIONAL, image_shape=(33, 33, 1), strides=(1, 1))
    network = random_network(architecture)
    params = jax.tree.map(np.float64, network.params)
    images = np.ones((2, 33, 33, 1), np.float32) * np.array([0.3, -1.0])[:, None, None, None]

    def sum_of(layer, x):
        return x @ layer["kernel"].sum((0, 1)) + layer["bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    x = sum_of(params["stem_1"], sigmoid(sum_of(params["stem_0"], images[:, 0, 0])))
    for time in (0.0, 0.5):
        time, theta = np.full((2, 1), time), params["ode"]["residual"]
        inner = sigmoid(sum_of(theta["layer_1"], np.concatenate([x, time], -1)))
        x = x + 0.5 * sum_of(theta["layer_2"], np.concatenate([inner, time], -1))

    system = architecture.system()
    heads = tuple(segment for segment in system.segments if segment.name != "output_block")
    state = rollout(
        replace(system, segments=heads), network.variables, jnp.asarray(images), train=False
    ).state
    np.testing.assert_allclose(state[:, 16, 16], x, rtol=1e-4, atol=1e-5)
    logits, _ = apply(architecture, network.variables, images)
    pooled = np.maximum(np.float64(state), 0).mean((1, 2))
    head = params["head"]["dense"]
    wanted = pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits[-1], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "architecture",
    [
        replace(DENSE, solver="rk4"),
        CONVOLUTIONAL,
        replace(ADAPTIVE, rtol=1e-9, atol=1e-9),
        replace(ADAPTIVE, rtol=1e-9, atol=1e-9, solver="tsit5", adjoint="backsolve"),
    ],
    ids=["rk4", "convolutional", "direct", "backsolve"],
)
def test_gradients_are_finite_differences(architecture):
    images = random_images(architecture, batch=2)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(architecture))

        def cost(params):
            logits, _ = apply(
                architecture, variables._replace(params=params), images, execution=EXACTLY
            )
            return jnp.sum(jnp.sin(logits))

        value, gradient = quick_jit(cost), quick_jit(jax.grad(cost))(variables.params)
        rng = np.random.default_rng(2)
        for part in variables.params:
            ray = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), variables.params[part])

            def moved(h, part=part, ray=ray):
                own = jax.tree.map(lambda leaf, d: leaf + h * d, variables.params[part], ray)
                return value({**variables.params, part: own})

            wanted = (moved(1e-4) - moved(-1e-4)) / 2e-4
            products = jax.tree.map(lambda g, d: np.sum(g * d), gradient[part], ray)
            got = sum(jax.tree.leaves(products))
            np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=part)


def test_solvers_agree_on_the_network():
    images = random_images(DENSE)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(DENSE))
        exact = replace(ADAPTIVE, rtol=1e-8, atol=1e-8)
        fine = replace(DENSE, solver="rk4", steps=40)
        one, other = (
            apply(architecture, variables, images, execution=EXACTLY)[0]
            for architecture in (exact, fine)
        )
    assert one.shape == (2, 5, 3) and other.shape == (41, 5, 3)
    np.testing.assert_allclose(one, other[:: len(other) - 1], rtol=1e-6, atol=1e-7)


def test_a_cut_in_time_is_a_shorter_horizon_of_the_same_steps():
    network, images = random_network(DENSE), random_images(DENSE)
    whole = logits_over_depth(network, images)
    cut = prune(network, 3)
    assert (cut.architecture.steps, cut.architecture.horizon) == (3, pytest.approx(0.9))
    np.testing.assert_allclose(logits_over_depth(cut, images), whole[:4], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, cut.params, network.params)
    same = remove_blocks(network, [3])
    assert same.architecture == cut.architecture
    jax.tree.map(np.testing.assert_array_equal, same.params, network.params)
    assert prune(network, 4).architecture == DENSE
    early = predict(network, images, confidence=0.5)
    sure = jax.nn.softmax(whole).max(-1) >= 0.5
    wanted = [row.argmax() if row.any() else 4 for row in sure.T]
    np.testing.assert_array_equal(early.blocks, wanted)


def test_other_depth_tools_measure_the_steps():
    network, images = random_network(DENSE), random_images(DENSE)
    measured = trajectory(network, images, LABELS)
    assert measured.accuracies.shape == (5,)
    norms = parameter_norms(DENSE, network.params)
    assert norms.shape == (4,) and (norms == norms[0]).all() and norms[0] > 0
    changes = state_changes(network, images).norms
    # Each is h times a slope of the trajectory.
    assert changes.shape == (4,) and (changes > 0).all()


def test_steps_are_not_changed_one_by_one():
    network = random_network(DENSE)
    for removed in ([0], [1, 3]):
        with pytest.raises(ValueError, match="one after the other in time, and only the last"):
            remove_blocks(network, removed)
    with pytest.raises(ValueError, match="keep at least one"):
        prune(network, 0)
    listed = blocks(network)
    assert len(listed) == 4
    other = jax.tree.map(lambda leaf: 0 * leaf, listed[1])
    with pytest.raises(ValueError, match="'ode' have their parameters in common: one cannot"):
        with_blocks(network, DENSE, [listed[0], other, *listed[2:]])
    with pytest.raises(ValueError, match="segment 'ode' are steps of one equation"):
        gate_derivatives(
            DENSE, network.variables, random_images(DENSE), LABELS, loss=lambda y, t: y[..., 0]
        )


def test_the_depth_rule_proposes_a_horizon():
    shares = np.array([0.5, 0.7, 0.9, 0.91, 0.911])
    measured = Trajectory(1 - shares, shares, shares, np.zeros(4))
    assert recommend_horizon(DENSE, measured) == pytest.approx(0.9)
    assert recommend_horizon(DENSE, measured, tolerance=2) == pytest.approx(0.6)
    assert recommend_horizon(DENSE, measured, tolerance=100) == 0.0
    with pytest.raises(ValueError, match="has 5 outputs, but this network has 3"):
        recommend_horizon(replace(DENSE, steps=2), measured)
    with pytest.raises(ValueError, match="a MLPConfig has no horizon: recommend_depth"):
        recommend_horizon(MLPConfig(), measured)


LIMITED = replace(ADAPTIVE, rtol=1e-8, atol=1e-8, max_steps=2)
LIMIT = "reached the limit of 2 steps"
REMEDY = "raise max_steps, loosen rtol and atol, or choose a shorter horizon"


def test_a_solve_that_reaches_its_limit_is_reported_with_the_remedy():
    network, images = random_network(LIMITED), random_images(LIMITED)
    measure = partial(evaluate, loss=lambda y, t: y[..., 0], devices=jax.devices()[:1])
    for call in (
        lambda: trajectory(network, images, LABELS),
        lambda: predict(network, images),
        lambda: predict(network, images, confidence=1.0),
        lambda: measure(network, images, LABELS),
        lambda: function_evaluations(network, images),
    ):
        with pytest.raises(ValueError, match=f"{LIMIT}.*{REMEDY}"):
            call()


def test_it_is_reported_behind_a_relu_too():
    solver = {name: getattr(LIMITED, name) for name in ("solver", "steps", *ADAPTIVE_FIELDS)}
    limited = replace(CONVOLUTIONAL, **solver)
    with pytest.raises(ValueError, match=f"{LIMIT}.*{REMEDY}"):
        logits_over_depth(random_network(limited), random_images(limited))


@pytest.mark.parametrize("adjoint", ["direct", "backsolve"])
def test_a_training_that_reaches_the_limit_says_so(adjoint, toy_data):
    architecture = for_dataset(replace(LIMITED, adjoint=adjoint), toy_data)
    config = TrainingConfig(epochs=1, batch_size=16)
    with pytest.raises(NonFiniteLossError, match=f"{LIMIT}.*{REMEDY}.*learning_rate"):
        fit(architecture, config, toy_data, progress=False, devices=jax.devices()[:2])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 0.0}, "horizon is 0.0, but must be positive."),
        ({"horizon": -1}, "horizon is -1.0, but must be positive."),
        ({"horizon": float("inf")}, "horizon is (inf,), but must be finite numbers."),
        ({"steps": None}, "solver is 'midpoint', which needs steps: how many equal steps"),
        ({"steps": 0}, "steps is 0, but must be a whole number of at least 1."),
        ({"rtol": 1e-3}, "rtol is 0.001, but belongs to the solvers dopri5 and tsit5: leave it"),
        ({"max_steps": 9}, "max_steps is 9, but belongs to the solvers dopri5 and tsit5"),
        ({"adjoint": "direct"}, "adjoint is 'direct', but belongs to the solvers dopri5 and"),
        ({"solver": "dopri5"}, "steps is 4, but belongs to the solvers euler, midpoint and rk4"),
        ({"solver": "heun"}, "solver is 'heun', but must be one of euler, midpoint, rk4, dopri5"),
        ({"exits": "separate"}, "has one set of parameters for all times: choose none or shared."),
        ({"strides": (2,)}, "strides is (2,), but must be one for each convolution of the stem"),
        ({"vector_field": "convolutional"}, "strides is (), but must be one for each convolution"),
        ({"vector_field": "recurrent"}, "vector_field is 'recurrent', but must be one of dense"),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, tanh, sigmoid."),
        ({"width": 0}, "width is 0, but must be a whole number of at least 1."),
    ],
)
def test_impossible_networks_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(DENSE, **fields)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rtol": 0.0}, "rtol is 0.0, but must be a number above 0 and below 1."),
        ({"atol": 1}, "atol is 1, but must be a number above 0 and below 1."),
        ({"atol": float("nan")}, "atol is nan, but must be a number above 0 and below 1."),
        ({"rtol": "small"}, "rtol is 'small', but must be a number above 0 and below 1."),
        ({"max_steps": 0}, "max_steps is 0, but must be a whole number of at least 1."),
        ({"adjoint": "both"}, "adjoint is 'both', but must be one of direct, backsolve."),
        ({"solver": "rk4"}, "solver is 'rk4', which needs steps"),
    ],
)
def test_impossible_solves_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(ADAPTIVE, **fields)
    assert message in str(refusal.value)
