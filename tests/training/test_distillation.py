"""Distillation: its loss against numpy, in a step, on several devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.costs import Cost, make_cost
from ocresnet.data.batches import Batch
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.distillation import (
    check_teacher,
    distillation_cost,
    distillation_loss,
)
from ocresnet.training.optimizers import SGD
from ocresnet.training.step import (
    AXIS_NAME,
    StepInfo,
    TrainState,
    init_state,
    make_train_step,
    map_over_devices,
    training_problem,
)
from tests.conftest import random_images, random_network
from tests.systems import numpy_resnet

SHAPE = {"image_shape": (8, 8, 2), "classes": 3}
STUDENT = ResNetConfig.homogeneous(2, 4, **SHAPE)
TEACHER = replace(
    ResNetConfig.homogeneous(3, 5, **SHAPE), exits="separate", pixel_mean=(0.3,), stem_stride=2
)
CONFIG = TrainingConfig(
    stage_cost=0.2,
    distillation=0.7,
    temperature=3.0,
    optimizer=SGD(learning_rate=0.02),
    batch_size=8,
)
BATCH = 8


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def divergence(logits: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    q, p = softmax(logits / temperature), softmax(teacher / temperature)
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1)


def test_the_loss_is_the_divergence_from_the_teacher():
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(4, 5, 3)), rng.normal(size=(5, 3))
    for temperature in (0.5, 1.0, 4.0):
        got = distillation_loss(jnp.asarray(logits), jnp.asarray(teacher), temperature)
        assert got.shape == (4, 5)
        np.testing.assert_allclose(got, divergence(logits, teacher, temperature), rtol=1e-4)
    np.testing.assert_allclose(distillation_loss(teacher, teacher + 7, 2.0), 0, atol=1e-6)
    # Far from zero logits, too: a divergence of one-hot distributions is finite.
    assert np.isfinite(distillation_loss(jnp.array([300.0, 0, 0]), jnp.array([0, 300.0, 0]), 1.0))


def test_hot_distributions_match_logits():
    """For a large temperature it is half the squared distance of centred logits, over classes."""
    rng = np.random.default_rng(0)
    logits, teacher = rng.normal(size=(2, 6, 4))
    distance = (logits - logits.mean(-1, keepdims=True)) - (
        teacher - teacher.mean(-1, keepdims=True)
    )
    wanted = 0.5 * (distance**2).sum(-1) / 4
    np.testing.assert_allclose(divergence(logits, teacher, 1e3), wanted, rtol=1e-2)
    np.testing.assert_allclose(distillation_loss(logits, teacher, 100.0), wanted, rtol=5e-2)


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_the_factors_are_those_of_its_hessian(loss):
    cost = distillation_cost(make_cost(loss), 0.7, 3.0)
    logits, teacher = np.random.default_rng(0).normal(size=(2, 4))
    targets = (jnp.int32(2), jnp.asarray(teacher))
    hessian = jax.hessian(lambda logits: cost.value(logits, targets))(jnp.asarray(logits))
    columns = cost.exact(jnp.asarray(logits))
    np.testing.assert_allclose(columns.T @ columns, hessian, atol=1e-5)
    keys = jax.random.split(jax.random.key(0), 20000)
    drawn = jax.vmap(cost.sampled, in_axes=(0, None))(keys, jnp.asarray(logits))
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), np.zeros(4), atol=0.03)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), hessian, atol=0.03)


def test_a_loss_without_factors_stays_without():
    cost = distillation_cost(Cost(lambda logits, labels: logits[..., 0]), 0.5, 1.0)
    assert cost.exact is None and cost.sampled is None and cost.lower_bound is None


def test_the_teacher_s_part_can_become_zero():
    smooth = make_cost("cross_entropy", 0.1)
    assert distillation_cost(smooth, 0.25, 2.0).lower_bound(3) == 0.75 * smooth.lower_bound(3)


def take_steps(steps: int, devices: int) -> tuple[TrainState, list[StepInfo], Network]:
    student, teacher = random_network(STUDENT), random_network(TEACHER, seed=1)
    problem = training_problem(STUDENT, CONFIG, axis_name=AXIS_NAME)
    optimizer = CONFIG.optimizer.build(problem, CONFIG.optimizer.schedule_over(CONFIG.epochs, 10))
    variables = jax.tree.map(jnp.array, student.variables)
    state = init_state(problem, CONFIG, variables, optimizer)
    step = map_over_devices(
        make_train_step(problem, CONFIG, optimizer, axis_name=AXIS_NAME), jax.devices()[:devices]
    )
    infos = []
    for index in range(steps):
        images = random_images(STUDENT, batch=BATCH, seed=index)
        labels = np.arange(BATCH) % 3
        split = (devices, BATCH // devices)
        batch = Batch(
            jnp.asarray(images.reshape(*split, *STUDENT.image_shape)),
            jnp.asarray(labels.reshape(split)),
        )
        state, info = step(state, batch, teacher)
        infos.append(info)
    return state, infos, teacher


def test_the_objective_of_a_step_mixes_labels_and_teacher_at_every_output():
    state, infos, teacher = take_steps(1, devices=1)
    images = random_images(STUDENT, batch=BATCH, seed=0).astype(np.float64)

    def forward(network, train):
        params, stats = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), tuple(network.variables)
        )
        return numpy_resnet.forward(network.architecture, params, stats, images, train)

    plain = replace(teacher.architecture, exits="none", stem_stride=2)
    logits, (targets,) = (
        forward(random_network(STUDENT), True),
        forward(teacher.replace(architecture=plain), False),
    )
    right = softmax(logits)[:, np.arange(BATCH), np.arange(BATCH) % 3]
    losses = 0.3 * -np.log(right).mean(-1) + 0.7 * divergence(logits, targets, 3.0).mean(-1)
    np.testing.assert_allclose(state.totals.losses, losses, rtol=1e-4)
    wanted = losses[-1] + 0.2 * losses[:-1].sum()
    np.testing.assert_allclose(infos[0].objective, wanted, rtol=1e-4)


def test_eight_devices_give_the_run_of_one():
    one, one_infos, _ = take_steps(2, devices=1)
    eight, eight_infos, _ = take_steps(2, devices=8)
    for got, wanted in zip(
        jax.tree.leaves((eight, eight_infos)), jax.tree.leaves((one, one_infos)), strict=True
    ):
        scale = np.max(np.abs(wanted), initial=1.0)
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=2e-5)


def test_teachers_that_do_not_fit_are_refused():
    teacher = random_network(TEACHER)
    check_teacher(STUDENT, CONFIG, teacher)
    with pytest.raises(ValueError, match=r"distillation is 0\.7, but there is no teacher"):
        check_teacher(STUDENT, CONFIG, None)
    with pytest.raises(ValueError, match="distillation is 0, which would ignore it"):
        check_teacher(STUDENT, replace(CONFIG, distillation=0.0), teacher)
    with pytest.raises(ValueError, match="teacher has classes 3, but the network to train has"):
        check_teacher(replace(STUDENT, classes=4), CONFIG, teacher)
    with pytest.raises(ValueError, match=r"teacher has images of shape \(8, 8, 2\), but"):
        check_teacher(replace(STUDENT, image_shape=(8, 9, 2)), CONFIG, teacher)
