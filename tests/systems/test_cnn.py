"""Convolutional networks against XLA's own convolutions, applied one after the other."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import lax

from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution
from tests.quick import quick_jit

CONFIG = CNNConfig(
    (4, 4, 4, 6, 6), strides=(1, 1, 1, 2, 2), hidden=(7, 5), image_shape=(9, 8, 2), classes=3
)
SEGMENTS = {
    "convolution_0": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "convolution_1": {"kernel": (2, 3, 3, 4, 4), "bias": (2, 4)},
    "convolution_2": {"kernel": (3, 3, 4, 6), "bias": (6,)},
    "convolution_3": {"kernel": (3, 3, 6, 6), "bias": (6,)},
    "hidden_0": {"kernel": (3 * 2 * 6, 7), "bias": (7,)},
    "hidden_1": {"kernel": (7, 5), "bias": (5,)},
    "output": {"kernel": (5, 3), "bias": (3,)},
}


def random_variables(config, seed=0):
    """Biases too are not at a special value."""
    variables = jax.tree.map(np.asarray, quick_jit(config.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), variables.params
    )
    return variables._replace(params=params)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_outputs_are_those_of_the_layers_in_turn(activation, unroll):
    config = replace(CONFIG, activation=activation, pixel_mean=(0.3, 0.1), pixel_deviation=(1.7,))
    system = config.system(execution=Execution(unroll=unroll))
    variables = random_variables(config)
    images = np.random.default_rng(1).normal(size=(5, *config.image_shape)).astype(np.float32)
    result = quick_jit(
        lambda variables: rollout(system, variables, system.initial_state(images), train=True)
    )(variables)

    layers = []
    for name in SEGMENTS:
        entry = variables.params[name]
        rows = range(2) if name == "convolution_1" else [...]
        layers += [jax.tree.map(lambda leaf, row=row: leaf[row], entry) for row in rows]
    sigma = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[activation]
    state = (images - np.float32([0.3, 0.1])) / np.float32(1.7)
    for stride, layer in zip(config.strides, layers[:5], strict=True):
        dimensions = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        state = lax.conv_general_dilated(
            state, layer["kernel"], (stride, stride), padding, dimension_numbers=dimensions
        )
        state = sigma(np.asarray(state) + layer["bias"])
    state = state.reshape(5, -1)
    for layer in layers[5:7]:
        state = sigma(state @ layer["kernel"] + layer["bias"])
    logits = state @ layers[7]["kernel"] + layers[7]["bias"]
    np.testing.assert_allclose(result.state, logits, rtol=1e-4, atol=1e-5)
    assert result.outputs is None and result.batch_stats == {}


def test_initial_parameters():
    params = CONFIG.init(jax.random.key(0)).params
    assert jax.tree.map(np.shape, params) == SEGMENTS
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    for layer in params.values():
        assert not np.any(layer["bias"])
    first, second = params["convolution_1"]["kernel"]
    assert np.all(first != second)
    wide = (
        CNNConfig((50,), (1,), (), image_shape=(2, 2, 50), classes=2).init(jax.random.key(0)).params
    )
    assert list(wide) == ["convolution_0", "output"]
    deviation = (2 / (9 * 50)) ** 0.5
    np.testing.assert_allclose(np.std(wide["convolution_0"]["kernel"]), deviation, rtol=0.03)


def test_convolutions_of_equal_shape_and_unit_stride_are_one_scanned_segment():
    lengths = {segment.name: segment.length for segment in CONFIG.system().segments}
    assert lengths == {name: 2 if name == "convolution_1" else None for name in SEGMENTS}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_shape": (8, 8)}, "image_shape is (8, 8), but must be (height, width, channels)."),
        (
            {"image_shape": (8, 0, 3)},
            "image_shape is (8, 0, 3), but must be whole numbers of at least 1",
        ),
        ({"filters": (4, 1.5)}, "filters is (4, 1.5), but must be whole numbers of at least 1."),
        ({"strides": (1,)}, "filters is (4, 4) and strides is (1,), but each convolution"),
        ({"filters": (), "strides": ()}, "there must be at least one"),
        ({"strides": (1, 0)}, "strides is (1, 0), but must be whole numbers of at least 1."),
        ({"hidden": (0,)}, "hidden is (0,), but must be whole numbers of at least 1."),
        ({"classes": 0}, "classes is 0, but must be a whole number of at least 2."),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, tanh, sigmoid."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    fields = {"image_shape": (8, 8, 3), "filters": (4, 4), "strides": (1, 2), **fields}
    with pytest.raises(ValueError) as refusal:
        CNNConfig(**fields)
    assert message in str(refusal.value)
