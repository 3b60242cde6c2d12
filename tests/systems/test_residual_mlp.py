"""The residual MLP against its equations in numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.system import Execution
from tests.conftest import apply, random_images, random_variables, to_float64
from tests.quick import quick_jit

CONFIG = ResidualMLPConfig(
    blocks=3,
    width=5,
    hidden=4,
    classes=3,
    image_shape=(2, 3, 2),
    pixel_mean=(0.2, -0.1),
    pixel_deviation=(1.5, 0.5),
)
DOUBLE = Execution(precision="float64")


def norm(params, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return params["scale"] * (x - mean) / np.sqrt(variance + 1e-5) + params["bias"]


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def forward(config, params, images):
    """All outputs: [outputs, batch, classes]."""
    x = (images - np.array(config.pixel_mean)) / np.array(config.pixel_deviation)
    x = dense(params["stem"], x.reshape(len(x), -1))
    outputs = []
    for k in range(config.blocks):
        own = jax.tree.map(lambda leaf, k=k: leaf[k], params["blocks"])
        head = own["exit"] if config.exits == "separate" else params["head"]
        if config.exits != "none":
            outputs.append(dense(head["dense"], norm(head["norm"], x)))
        branch = own["residual"]
        inner = np.maximum(dense(branch["dense_1"], norm(branch["norm"], x)), 0)
        x = x + dense(branch["dense_2"], inner)
    outputs.append(dense(params["head"]["dense"], norm(params["head"]["norm"], x)))
    return np.stack(outputs)


@pytest.mark.parametrize("exits", ["shared", "separate", "none"])
@pytest.mark.parametrize("blocks", [0, 3])
def test_outputs_are_the_equations(blocks, exits):
    config = replace(CONFIG, blocks=blocks, exits=exits)
    images = random_images(config).astype(np.float64)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))
        logits, stats = apply(config, variables, images, train=True, execution=DOUBLE)
        params = jax.tree.map(np.asarray, variables.params)
        np.testing.assert_allclose(logits, forward(config, params, images), rtol=1e-11, atol=1e-11)
    assert stats == {}


@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_gradients_are_finite_differences_of_the_equations(exits):
    config = replace(CONFIG, exits=exits)
    images = random_images(config).astype(np.float64)
    weights = np.random.default_rng(3).normal(size=(config.outputs, len(images), config.classes))
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))

        @quick_jit
        @jax.grad
        def gradient(params):
            logits, _ = apply(config, variables._replace(params=params), images, execution=DOUBLE)
            return jnp.sum(weights * jnp.tanh(logits))

        slopes = jax.tree.leaves(jax.tree.map(np.asarray, gradient(variables.params)))
        params = jax.tree.map(np.asarray, variables.params)

    leaves, structure = jax.tree.flatten(params)
    rng, step = np.random.default_rng(4), 1e-6
    for index, (leaf, slope) in enumerate(zip(leaves, slopes, strict=True)):
        direction = rng.normal(size=leaf.shape)
        values = []
        for sign in (1, -1):
            moved = [*leaves]
            moved[index] = leaf + sign * step * direction
            outputs = forward(config, jax.tree.unflatten(structure, moved), images)
            values.append(np.sum(weights * np.tanh(outputs)))
        numeric = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(slope * direction), numeric, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_initial_parameters(exits):
    config = ResidualMLPConfig(
        blocks=2, width=100, hidden=200, classes=3, image_shape=(10, 10, 3), exits=exits
    )
    params, stats = config.init(jax.random.key(0))
    head = {"dense": {"kernel": (100, 3), "bias": (3,)}, "norm": {"scale": (100,), "bias": (100,)}}
    residual = {
        "norm": {"scale": (2, 100), "bias": (2, 100)},
        "dense_1": {"kernel": (2, 100, 200), "bias": (2, 200)},
        "dense_2": {"kernel": (2, 200, 100), "bias": (2, 100)},
    }
    own = {"residual": residual}
    if exits == "separate":
        own["exit"] = jax.tree.map(
            lambda shape: (2, *shape), head, is_leaf=lambda s: type(s) is tuple
        )
    stem = {"kernel": (300, 100), "bias": (100,)}
    assert jax.tree.map(np.shape, params) == {"stem": stem, "blocks": own, "head": head}
    assert stats == {}
    branch = params["blocks"]["residual"]
    np.testing.assert_allclose(np.std(params["stem"]["kernel"]), 300**-0.5, rtol=0.03)
    np.testing.assert_allclose(np.std(branch["dense_1"]["kernel"]), 100**-0.5, rtol=0.03)
    np.testing.assert_allclose(np.std(branch["dense_2"]["kernel"]), 200**-0.5, rtol=0.03)
    first, second = branch["dense_1"]["kernel"]
    assert np.all(first != second)
    for layer in (params["stem"], branch["dense_1"], branch["dense_2"], params["head"]["dense"]):
        assert not np.any(layer["bias"])


def test_blocks_are_as_wide_inside_as_outside_unless_told():
    params = jax.eval_shape(ResidualMLPConfig(width=7).init, jax.random.key(0)).params
    assert params["blocks"]["residual"]["dense_1"]["kernel"].shape == (12, 7, 7)


def test_blocks_are_one_scanned_segment():
    segments = [(segment.name, segment.length) for segment in CONFIG.system().segments]
    assert segments == [("stem", None), ("blocks", 3), ("output_block", None)]
    segments = [segment.name for segment in CONFIG.subresnet(0).system().segments]
    assert segments == ["stem", "output_block"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": -1}, "blocks is -1, but must be a whole number of at least 0."),
        ({"blocks": 2.5}, "blocks is 2.5, but must be a whole number of at least 0."),
        ({"blocks": "3"}, "blocks is '3', but must be a whole number of at least 0."),
        ({"blocks": (3,)}, "blocks is (3,), but must be a whole number of at least 0."),
        ({"width": 0}, "width is 0, but must be a whole number of at least 1."),
        ({"width": True}, "width is True, but must be a whole number of at least 1."),
        ({"hidden": -1}, "hidden is -1, but must be a whole number of at least 0."),
        ({"exits": "all"}, "exits is 'all', but must be one of none, shared, separate."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        ResidualMLPConfig(**fields)
    assert message in str(refusal.value)
