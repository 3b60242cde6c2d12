"""Baselines: what they build against plain optax, which arrays Muon takes for matrices, and that
each of them learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from ocresnet.data.sources import load_dataset
from ocresnet.problem import Problem
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.adaptive_optimizers import (
    DoWG,
    MoMo,
    MoMoAdam,
    Muon,
    PolyakSGD,
    Prodigy,
    ScheduleFreeAdamW,
    evaluation_params,
    matrix_dimensions,
)
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import for_dataset
from ocresnet.training.optimizers import Optimizer
from ocresnet.training.sweep import sweep
from tests.conftest import random_variables

STEPS = 6
RATES = optax.cosine_decay_schedule(0.5, STEPS)
START = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
PROBLEM = Problem(MLPConfig().system())


def loss(params):
    return 0.5 * jnp.sum((params["w"] - 3.0) ** 2) + jnp.sum(jnp.abs(params["b"])) + 0.1


def trained(transformation: optax.GradientTransformation, start=START):
    """Parameters and state after the steps of a small problem."""
    transformation = optax.with_extra_args_support(transformation)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(gradient, state, params, value=value, batch=None)
        return optax.apply_updates(params, updates), state

    params, state = start, jax.jit(transformation.init)(start)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def polyak_by_hand(params):
    """The length is the loss above 0.05 over the gradient's squared norm, at most 0.7."""
    for step in range(STEPS):
        value, gradient = jax.value_and_grad(loss)(params)
        square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
        length = min(max(float(value) - 0.05, 0) / square, 0.7)
        params = jax.tree.map(
            lambda w, g, length=length, rate=float(RATES(step)): w - rate * (length * g + 0.2 * w),
            params,
            gradient,
        )
    return params


PLAIN = {
    "momo": (
        MoMo(momentum=0.8, lower_bound=0.1, weight_decay=0.2),
        contrib.momo(RATES, beta=0.8, lower_bound=0.1, weight_decay=0.2),
    ),
    "momo_adam": (
        MoMoAdam(
            decay_of_mean=0.8,
            decay_of_square=0.9,
            epsilon=1e-3,
            lower_bound=0.1,
            weight_decay=0.2,
        ),
        contrib.momo_adam(RATES, b1=0.8, b2=0.9, eps=1e-3, lower_bound=0.1, weight_decay=0.2),
    ),
    "prodigy": (
        Prodigy(decay_of_mean=0.8, decay_of_square=0.9, epsilon=1e-3, weight_decay=0.2),
        contrib.prodigy(RATES, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2),
    ),
    "dowg": (DoWG(epsilon=1e-2), contrib.dowg(RATES, eps=1e-2)),
    "schedule_free_adamw": (
        ScheduleFreeAdamW(interpolation=0.7, decay_of_square=0.9, epsilon=1e-3, weight_decay=0.2),
        contrib.schedule_free_adamw(RATES, b1=0.7, b2=0.9, eps=1e-3, weight_decay=0.2),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_optaxs(name):
    optimizer, plain = PLAIN[name]
    (got, state), (wanted, wanted_state) = trained(optimizer.build(PROBLEM, RATES)), trained(plain)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, START)
    assert max(moved.values()) > 1e-6
    ours, theirs = evaluation_params(got, state), evaluation_params(wanted, wanted_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    averaged = any(np.any(a != b) for a, b in zip(ours.values(), got.values(), strict=True))
    assert averaged == (name == "schedule_free_adamw")


@pytest.mark.parametrize("name", PLAIN)
def test_rate_and_decay_can_be_traced(name):
    optimizer, _ = PLAIN[name]

    @jax.jit
    def traced(rate, decay):
        schedule = optimizer.schedule_over(2, STEPS // 2, rate)
        return trained(optimizer.build(PROBLEM, schedule, weight_decay=decay))[0]

    own = replace(optimizer, learning_rate=0.5, weight_decay=0.3)
    wanted, _ = trained(own.build(PROBLEM, own.schedule_over(2, STEPS // 2)))
    for a, b in zip(traced(0.5, 0.3).values(), wanted.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_polyak_multiplies_the_step_that_the_loss_gives():
    optimizer = PolyakSGD(largest_step=0.7, lower_bound=0.05, weight_decay=0.2)
    got, _ = trained(optimizer.build(PROBLEM, RATES))
    for a, b in zip(got.values(), polyak_by_hand(START).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_weight_decay_of_dowg_does_not_count_in_its_step():
    decayed, _ = trained(DoWG(weight_decay=0.2).build(PROBLEM, lambda step: 0.5 * (step == 0)))
    plain, _ = trained(DoWG().build(PROBLEM, lambda step: 0.5 * (step == 0)))
    for name, start in START.items():
        np.testing.assert_allclose(decayed[name], plain[name] - 0.5 * 0.2 * start, rtol=1e-5)


@jax.jit
def orthogonal_step(gradient):
    """Muon's first step for one matrix [in, out], at rate 1."""
    transformation = contrib.muon(1.0, consistent_rms=0.2)
    updates, _ = transformation.update(gradient, transformation.init(gradient), gradient)
    return updates


@pytest.mark.parametrize(
    "architecture",
    [
        MLPConfig(hidden=(4, 4, 4), image_shape=(2, 2, 1), classes=3),
        CNNConfig(filters=(3, 3, 3), strides=(1, 1, 1), hidden=(4,), image_shape=(4, 4, 1)),
        ResidualMLPConfig(blocks=3, width=4, image_shape=(2, 2, 1), exits="separate"),
        ResNetConfig.homogeneous(2, 3, image_shape=(4, 4, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_muon_takes_each_kernel_of_a_stack_for_itself(architecture):
    """Kernels [(length), (height, width), in, out] become [height width in, out], one by one; all
    else has the step of AdamW."""
    params = random_variables(architecture).params
    problem = Problem(architecture.system())
    stacked = {segment.name for segment in problem.system.segments if segment.stacked}
    optimizer = Muon(weight_decay=0.3)
    transformation = optimizer.build(problem, optax.constant_schedule(0.1))
    gradient = random_variables(architecture, seed=1).params
    adam = optax.adamw(1.0, weight_decay=0.0, nesterov=True)
    updates, adams = (
        jax.jit(own.update)(gradient, own.init(params), params)[0] for own in (transformation, adam)
    )
    kernels = 0
    for path, update in jax.tree.leaves_with_path(updates):
        keys = [part.key for part in path]
        weight, slope, wanted = params, gradient, adams
        for key in keys:
            weight, slope, wanted = weight[key], slope[key], wanted[key]
        if keys[-1] == "kernel":
            kernels += 1
            length = slope.shape[0] if keys[0] in stacked else 1
            matrices = slope.reshape(length, -1, slope.shape[-1])
            wanted = jnp.stack([orthogonal_step(matrix) for matrix in matrices])
            wanted = wanted.reshape(slope.shape)
        np.testing.assert_allclose(update, 0.1 * (wanted - 0.3 * weight), rtol=1e-3, atol=1e-5)
    assert kernels > 1 and stacked


def test_arrays_without_a_declared_layer_are_no_matrices():
    """Scales of a stack of norms [length, width] least of all."""
    architecture = ResidualMLPConfig(blocks=3, width=4, image_shape=(2, 2, 1))
    params = random_variables(architecture).params
    dimensions = matrix_dimensions(Problem(architecture.system()), params)
    branch = dimensions["blocks"]["residual"]
    assert branch["norm"]["scale"] is None and branch["dense_1"]["bias"] is None
    assert branch["dense_1"]["kernel"] == contrib.MuonDimensionNumbers((1,), (2,))
    assert dimensions["head"]["dense"]["kernel"] == contrib.MuonDimensionNumbers((0,), (1,))


@pytest.mark.parametrize("kind", [MoMo, MoMoAdam, PolyakSGD])
def test_a_step_from_the_loss_wants_the_whole_gradient(kind):
    with pytest.raises(ValueError, match="gradient_clip is 1.0, but must be 0: this optimizer"):
        kind(gradient_clip=1.0)
    with pytest.raises(ValueError, match="lower_bound is None, but must be a number"):
        kind(lower_bound=None)


@pytest.mark.parametrize("kind", [MoMo, MoMoAdam, Prodigy])
def test_a_decay_inside_the_optimizer_is_of_all_parameters(kind):
    with pytest.raises(ValueError, match="weight_decay_on is 'residual_branches', but must be"):
        kind(weight_decay_on="residual_branches")


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        (Muon, "momentum", 1.0, r"in \[0, 1\)"),
        (MoMo, "momentum", -0.1, r"in \[0, 1\)"),
        (MoMoAdam, "decay_of_mean", 1.0, r"in \[0, 1\)"),
        (MoMoAdam, "epsilon", 0.0, "positive"),
        (Prodigy, "decay_of_square", 1.0, r"in \[0, 1\)"),
        (DoWG, "epsilon", 0.0, "positive"),
        (ScheduleFreeAdamW, "interpolation", 0.0, r"in \(0, 1\)"),
        (ScheduleFreeAdamW, "decay_of_square", 1.0, r"in \[0, 1\)"),
        (PolyakSGD, "largest_step", 0.0, "positive"),
    ],
)
def test_impossible_values_are_refused(kind, name, value, message):
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        kind(**{name: value})


@pytest.mark.parametrize(
    "optimizer",
    [
        Muon(learning_rate=0.01),
        MoMo(),
        MoMoAdam(),
        Prodigy(),
        DoWG(),
        ScheduleFreeAdamW(),
        PolyakSGD(),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_it_learns_digits(optimizer: Optimizer):
    data = load_dataset("digits").first(480)
    found = sweep(
        for_dataset(MLPConfig(hidden=(16, 16)), data),
        TrainingConfig(epochs=12, batch_size=32, optimizer=optimizer, stage_cost=0.0),
        data,
        learning_rates=[optimizer.learning_rate],
        weight_decays=[0.0],
        seeds=[0],
    )
    assert found.accuracies.item() > 0.6
    assert found.objectives[0, 0, 0, -15:].mean() < 0.5 * found.objectives[0, 0, 0, :5].mean()
