"""The training step: gamma = 0, devices, averaging, all on small networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.data.batches import Batch
from ocresnet.systems import network as networks
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Variables
from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import OPTIMIZERS, SGD
from ocresnet.training.step import (
    AXIS_NAME,
    TrainState,
    init_state,
    make_train_step,
    map_over_devices,
    training_problem,
)
from tests.conftest import SMALL, random_images

BATCH = 16
TWO_LEVELS = replace(SMALL["standard"], blocks=(2, 1, 0))
"""Every kind of block there is, in three blocks."""


def train(network: ResNetConfig, config: TrainingConfig, steps: int = 3, devices: int = 1):
    """The state and infos after a few steps from the same start."""
    problem = training_problem(network, config, axis_name=AXIS_NAME)
    optimizer = config.optimizer.build(problem, config.optimizer.schedule_over(config.epochs, 10))
    state = init_state(problem, config, network.init(jax.random.key(0)), optimizer)
    step = map_over_devices(
        make_train_step(problem, config, optimizer, axis_name=AXIS_NAME), jax.devices()[:devices]
    )
    infos = []
    for index in range(steps):
        images = random_images(network, batch=BATCH, seed=index)
        labels = (np.arange(BATCH) + index) % network.classes
        split = (devices, BATCH // devices)
        batch = Batch(
            jnp.asarray(images.reshape(*split, *network.image_shape)),
            jnp.asarray(labels.reshape(split)),
        )
        state, info = step(state, batch)
        infos.append(info)
    return state, infos


def backbone(state: TrainState):
    """What networks with and without exits have in common."""
    params, stats = state.variables
    strip = {
        name: {key: value for key, value in entry.items() if key != "exit"}
        for name, entry in params.items()
    }
    strip_stats = {
        name: {key: value for key, value in entry.items() if key != "exit"}
        for name, entry in stats.items()
    }
    return strip, strip_stats


def test_gamma_0_is_standard_training_to_the_bit():
    network, config = TWO_LEVELS, TrainingConfig(stage_cost=0.0)
    plain, plain_infos = train(replace(network, exits="none"), config)
    shared, shared_infos = train(network, config)
    jax.tree.map(np.testing.assert_array_equal, backbone(shared), backbone(plain))
    jax.tree.map(np.testing.assert_array_equal, shared_infos, plain_infos)


def test_sgd_takes_the_step_of_value_and_grad_to_the_bit():
    """Offering the trajectory to the optimizer costs one that does not want it nothing."""
    network, config = SMALL["homogeneous"], TrainingConfig(optimizer=SGD(gradient_clip=1.0))
    problem = training_problem(network, config, axis_name=AXIS_NAME)
    optimizer = config.optimizer.build(problem, config.optimizer.schedule_over(config.epochs, 10))

    def plain_step(variables, opt_state, images, labels):
        def loss(params):
            logits, stats = networks.apply(
                network,
                Variables(params, variables.batch_stats),
                images,
                train=True,
                axis_name=AXIS_NAME,
                execution=config.execution,
            )
            losses = jnp.mean(problem.cost.value(logits, labels), axis=-1)
            return losses[-1] + (problem.stage_costs * losses[:-1]).sum(), stats

        (_, stats), gradient = jax.value_and_grad(loss, has_aux=True)(variables.params)
        gradient = jax.lax.pmean(gradient, AXIS_NAME)
        updates, opt_state = optimizer.update(gradient, opt_state, variables.params)
        return Variables(optax.apply_updates(variables.params, updates), stats), opt_state

    mapped = jax.pmap(
        plain_step,
        AXIS_NAME,
        in_axes=(None, None, 0, 0),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    variables = network.init(jax.random.key(0))
    opt_state = optimizer.init(variables.params)
    for index in range(3):
        images = random_images(network, batch=BATCH, seed=index)[None]
        labels = (np.arange(BATCH)[None] + index) % network.classes
        variables, opt_state = mapped(variables, opt_state, images, labels)
    state, _ = train(network, config)
    jax.tree.map(np.testing.assert_array_equal, state.variables, variables)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, opt_state)


def test_gamma_changes_the_result():
    network = TWO_LEVELS
    with_cost, _ = train(network, TrainingConfig(stage_cost=0.02))
    without, _ = train(network, TrainingConfig(stage_cost=0.0))
    stem = [
        state.variables.params["stem"]["convolution"]["kernel"] for state in (with_cost, without)
    ]
    assert np.abs(stem[0] - stem[1]).max() > 1e-5


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [("constant", [1, 1, 1, 1]), ("linear", [0.4, 0.8, 1.2, 1.6]), ("terminal", [0, 0, 0, 4])],
)
def test_the_gradient_is_that_of_equation_3(schedule, shares):
    """One step without momentum and decay moves every parameter by -alpha dJ/dw, dJ/dw computed
    exit by exit from separate losses."""
    network = SMALL["homogeneous"]
    gamma = 0.3
    config = TrainingConfig(
        stage_cost=gamma,
        stage_cost_schedule=schedule,
        optimizer=SGD(momentum=0.0, weight_decay=0.0),
    )
    start = network.init(jax.random.key(0))
    images = random_images(network, batch=BATCH, seed=0)
    labels = np.arange(BATCH) % network.classes

    @jax.jit
    def gradient_of_exit(params, index):
        def loss(params):
            variables = start._replace(params=params)
            logits, _ = networks.apply(network, variables, images, train=True)
            log_probabilities = jax.nn.log_softmax(logits[index])
            return -jnp.mean(log_probabilities[jnp.arange(BATCH), labels])

        return jax.grad(loss)(params)

    total = jax.tree.map(jnp.zeros_like, start.params)
    for index in range(network.depth + 1):
        weight = 1.0 if index == network.depth else gamma * shares[index]
        part = gradient_of_exit(start.params, index)
        total = jax.tree.map(lambda t, p, w=weight: t + w * p, total, part)
    state, _ = train(network, config, steps=1)
    for after, before, slope in zip(
        *map(jax.tree.leaves, (state.variables.params, start.params, total)), strict=True
    ):
        np.testing.assert_allclose((before - after) / 0.1, slope, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("network", "exits"),
    [
        (TWO_LEVELS, "shared"),
        pytest.param(SMALL["standard"], "shared", marks=pytest.mark.slow),
        pytest.param(SMALL["standard"], "separate", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_run_of_one(network, exits):
    """Batch norm sees the whole batch, gradients are means over it: only rounding differs."""
    network = replace(network, exits=exits)
    config = TrainingConfig(optimizer=SGD(learning_rate=0.01), average_decay=0.5)
    one, one_infos = train(network, config, devices=1)
    eight, eight_infos = train(network, config, devices=8)
    assert jax.tree.map(jnp.shape, one) == jax.tree.map(jnp.shape, eight)
    for got, wanted in zip(
        jax.tree.leaves((eight, eight_infos)), jax.tree.leaves((one, one_infos)), strict=True
    ):
        scale = np.max(np.abs(wanted), initial=1.0)
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_buffer_is_in_the_state_twice(name):
    """The step gives its argument's buffers away: with one twice, the first step of a process with
    one device fails."""
    architecture = SMALL["homogeneous"]
    if name == "snopt":  # it wants a differential equation
        architecture = NeuralODEConfig(width=4, image_shape=(4, 4, 1), solver="rk4", steps=2)
    config = TrainingConfig(optimizer=OPTIMIZERS[name](), average_decay=0.9)
    problem = training_problem(architecture, config)
    optimizer = config.optimizer.build(problem, optax.constant_schedule(0.1))
    state = init_state(problem, config, architecture.init(jax.random.key(0)), optimizer)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_the_average_follows_parameters_and_statistics():
    network, decay = SMALL["homogeneous"], 0.2
    config = TrainingConfig(average_decay=decay)
    expected = network.init(jax.random.key(0))
    for steps in range(1, 5):
        state, _ = train(network, config, steps=steps)
        # At first (1 + t) / (10 + t), so that the random start does not stay in the average.
        now = min(decay, steps / (9 + steps))
        expected = jax.tree.map(
            lambda average, value, now=now: now * average + (1 - now) * value,
            expected,
            state.variables,
        )
    jax.tree.map(
        lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6),
        state.average,
        expected,
    )


def test_totals_are_sums_over_the_steps():
    network = SMALL["homogeneous"]
    state, infos = train(network, TrainingConfig())
    np.testing.assert_allclose(
        state.totals.objective, sum(float(info.objective) for info in infos), rtol=1e-6
    )
    np.testing.assert_allclose(
        state.totals.accuracies[-1], sum(float(info.accuracy) for info in infos), rtol=1e-6
    )
    gamma = TrainingConfig().stage_cost
    losses = state.totals.losses
    np.testing.assert_allclose(
        state.totals.objective, losses[-1] + gamma * losses[:-1].sum(), rtol=1e-5
    )
