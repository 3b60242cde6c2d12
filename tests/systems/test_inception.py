"""Inception networks against XLA's own convolutions and pooling, branch by branch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from ocresnet.control.checks import check_params
from ocresnet.problem import Problem, objective
from ocresnet.systems.counts import multiply_adds
from ocresnet.systems.fold import stages
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.layers import max_pool
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution
from tests.conftest import apply, random_images, random_variables, to_float64
from tests.quick import quick_jit

CONFIG = InceptionConfig((3, 4), (2, 5), (2, 1), stem_filters=6, image_shape=(9, 8, 2), classes=3)
SHAPES = {
    "stem": {"kernel": (3, 3, 2, 6), "bias": (6,)},
    "block_0_reduce": {
        "branch_1": {"kernel": (6, 3), "bias": (3,)},
        "reduce_3": {"kernel": (6, 2), "bias": (2,)},
        "reduce_5": {"kernel": (6, 2), "bias": (2,)},
        "pool": {"kernel": (6, 3), "bias": (3,)},
    },
    "block_0_expand": {
        "branch_3": {"kernel": (3, 3, 2, 3), "bias": (3,)},
        "branch_5": {"kernel": (5, 5, 2, 3), "bias": (3,)},
    },
    "block_1_reduce": {
        "branch_1": {"kernel": (12, 4), "bias": (4,)},
        "reduce_3": {"kernel": (12, 5), "bias": (5,)},
        "reduce_5": {"kernel": (12, 5), "bias": (5,)},
        "pool": {"kernel": (12, 4), "bias": (4,)},
    },
    "block_1_expand": {
        "branch_3": {"kernel": (3, 3, 5, 4), "bias": (4,)},
        "branch_5": {"kernel": (5, 5, 5, 4), "bias": (4,)},
    },
    "output": {"kernel": (16, 3), "bias": (3,)},
}


def convolution(layer, x):
    """Also of what is kept as a matrix."""
    kernel = layer["kernel"]
    kernel = kernel if kernel.ndim == 4 else kernel[None, None]
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
    return np.maximum(y + layer["bias"], 0)


def pooled(x, stride, size=3):
    windows, steps = (1, size, size, 1), (1, stride, stride, 1)
    border = (size // 2,) * 2
    padding = ((0, 0), border, border, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, windows, steps, padding)


def reference(config, params, images):
    x = convolution(params["stem"], (images - np.float32(0.3)) / np.float32(1.7))
    for block, stride in enumerate(config.strides):
        x = pooled(x, stride) if stride > 1 else x
        first, second = params[f"block_{block}_reduce"], params[f"block_{block}_expand"]
        branches = [
            convolution(first["branch_1"], x),
            convolution(second["branch_3"], convolution(first["reduce_3"], x)),
            convolution(second["branch_5"], convolution(first["reduce_5"], x)),
            convolution(first["pool"], pooled(x, 1)),
        ]
        x = np.concatenate(branches, axis=-1)
    return x.mean((1, 2)) @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("strides", [(2, 1), (1, 3)])
def test_outputs_are_those_of_the_branches_in_turn(strides):
    config = replace(CONFIG, strides=strides, pixel_mean=(0.3,), pixel_deviation=(1.7,))
    system = config.system()
    variables, images = random_variables(config), random_images(config)
    result = quick_jit(
        lambda variables: rollout(system, variables, system.initial_state(images), train=True)
    )(variables)
    wanted = reference(config, variables.params, images)
    np.testing.assert_allclose(result.state, wanted, rtol=1e-4, atol=1e-5)
    assert result.outputs is None and result.batch_stats == {}
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2


def test_gradients_are_those_of_finite_differences():
    config = replace(CONFIG, filters=(2, 1), reduced_filters=(1, 2), stem_filters=2)
    problem = Problem(config.system(execution=Execution(precision="float64")))
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))
        images, labels = random_images(config), np.arange(len(random_images(config))) % 3
        flat, unravel = ravel_pytree(variables.params)

        def cost(flat):
            return objective(problem, unravel(flat), {}, images, labels)

        step = 1e-6
        units = jnp.eye(flat.size)
        above, below = (
            np.asarray(quick_jit(jax.vmap(lambda unit, h=h: cost(flat + h * unit)))(units))
            for h in (step, -step)
        )
        gradient = np.asarray(quick_jit(jax.grad(cost))(flat))
    assert np.mean(np.abs(gradient) > 1e-3) > 0.5
    np.testing.assert_allclose(gradient, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


def test_initial_parameters():
    params = CONFIG.init(jax.random.key(0)).params
    assert jax.tree.map(np.shape, params) == SHAPES
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == np.float32
        assert np.any(leaf) == (path[-1].key == "kernel")
    first, second = (params[name]["branch_5"]["kernel"] for name in list(SHAPES)[2:5:2])
    assert not np.any(np.isin(first, second))
    wide = InceptionConfig((40,), (60,), (1,), stem_filters=50).init(jax.random.key(0)).params
    for layer, rows in (
        (wide["block_0_reduce"]["reduce_3"], 50),
        (wide["block_0_expand"]["branch_5"], 25 * 60),
    ):
        np.testing.assert_allclose(np.std(layer["kernel"]), (2 / rows) ** 0.5, rtol=0.05)


def test_a_block_is_two_stages_and_its_branches_are_players():
    segments = CONFIG.system().segments
    assert [segment.name for segment in segments] == list(SHAPES)
    reduce, expand = ("reduce_3", "reduce_5", "pool"), ("branch_5",)
    players = [segment.players for segment in segments]
    assert players == [(), reduce, expand, reduce, expand, ()]  # and who is not named
    check_params(CONFIG.system(), random_variables(CONFIG).params, needs_all=True)


def test_states_inside_a_block_are_dictionaries_of_its_branches():
    config = replace(CONFIG, strides=(3, 2))
    variables, system = random_variables(config), config.system()
    state, shapes = system.initial_state(random_images(config)), []
    for segment in system.segments:
        state, _ = segment.transition(stages(system, variables)[segment.name], state)
        shapes.append(jax.tree.map(lambda leaf: leaf.shape[1:], state))
    assert shapes == [
        (3, 3, 6),
        {"branch_1": (3, 3, 3), "reduce_3": (3, 3, 2), "reduce_5": (3, 3, 2), "pool": (3, 3, 3)},
        (2, 2, 12),
        {"branch_1": (2, 2, 4), "reduce_3": (2, 2, 5), "reduce_5": (2, 2, 5), "pool": (2, 2, 4)},
        (2, 2, 16),
        (3,),
    ]


def test_multiply_adds_by_hand():
    cost = multiply_adds(CONFIG)
    assert cost.stem == 72 * 9 * 2 * 6
    first = 20 * (6 * (3 + 2 + 2 + 3) + (9 + 25) * 2 * 3)
    second = 20 * (12 * (4 + 5 + 5 + 4) + (9 + 25) * 5 * 4)
    assert cost.output_block == first + second + 16 * 3


def test_samples_do_not_see_each_other():
    variables, images = random_variables(CONFIG), random_images(CONFIG)
    together, _ = apply(CONFIG, variables, images, train=True)
    alone, _ = apply(CONFIG, variables, images[1:2], train=True)
    np.testing.assert_allclose(together[:, 1:2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (3, 3), (5, 2), (1, 2)])
@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 1, 2, 1), (1, 8, 8, 2)])
def test_max_pooling_is_that_of_xla_with_its_derivatives(size, stride, shape):
    rng = np.random.default_rng(0)
    x, tangent = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    got, pull_back = jax.vjp(lambda x: max_pool(x, size, stride), x)
    wanted, pull_back_wanted = jax.vjp(lambda x: pooled(x, stride, size), x)
    np.testing.assert_array_equal(got, wanted)
    cotangent = jnp.asarray(rng.normal(size=got.shape), jnp.float32)
    np.testing.assert_allclose(
        pull_back(cotangent)[0], pull_back_wanted(cotangent)[0], rtol=1e-6, atol=1e-6
    )
    moved, moved_wanted = (
        jax.jvp(function, (x,), (tangent,))[1]
        for function in (lambda x: max_pool(x, size, stride), lambda x: pooled(x, stride, size))
    )
    np.testing.assert_array_equal(moved, moved_wanted)


def test_max_pooling_of_equal_pixels_and_of_what_is_no_number():
    equal = jnp.zeros((1, 3, 3, 1))
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2)))(equal)
    assert jnp.sum(gradient) == 4 and set(np.unique(gradient)) <= {0.0, 1.0, 2.0, 4.0}
    for pixel in np.ndindex(3, 3):
        wrong = equal.at[0, *pixel, 0].set(jnp.nan)
        np.testing.assert_array_equal(max_pool(wrong, 3, 1), pooled(wrong, 1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"filters": (4, 1.5)}, "filters is (4, 1.5), but must be whole numbers of at least 1."),
        ({"filters": 4}, "filters is 4, but must be a tuple."),
        ({"reduced_filters": (0, 1)}, "reduced_filters is (0, 1), but must be whole numbers of at"),
        ({"strides": (1, True)}, "strides is (1, True), but must be whole numbers of at least 1."),
        ({"stem_filters": 0}, "stem_filters is 0, but must be a whole number of at least 1."),
        ({"stem_filters": (4,)}, "stem_filters is (4,), but must be a whole number of at least 1."),
        (
            {"strides": (1,)},
            "filters is (4, 4), reduced_filters is (2, 2) and strides is (1,), but each block "
            "needs one of all three, and there must be at least one.",
        ),
        ({"filters": (), "reduced_filters": (), "strides": ()}, "there must be at least one."),
        ({"classes": 1}, "classes is 1, but must be a whole number of at least 2."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    fields = {"filters": (4, 4), "reduced_filters": (2, 2), "strides": (1, 2), **fields}
    with pytest.raises(ValueError) as refusal:
        InceptionConfig(**fields)
    assert message in str(refusal.value)
