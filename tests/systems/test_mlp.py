"""Fully connected networks against a loop written out in numpy."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution
from tests.quick import quick_jit

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


CONFIG = MLPConfig((4, 4, 4, 5, 5), image_shape=(3, 2, 1), classes=3)


def random_variables(config, seed=0):
    """Biases too are not at a special value."""
    variables = jax.tree.map(np.asarray, quick_jit(config.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), variables.params
    )
    return variables._replace(params=params)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_are_those_of_the_layers_in_turn(activation, unroll):
    config = replace(CONFIG, activation=activation, pixel_mean=(0.3,), pixel_deviation=(1.7,))
    system = config.system(execution=Execution(unroll=unroll))
    variables = random_variables(config)
    images = np.random.default_rng(1).normal(size=(7, 3, 2, 1)).astype(np.float32)
    result = quick_jit(
        lambda variables: rollout(system, variables, system.initial_state(images), train=True)
    )(variables)

    layers = []
    for name in ("hidden_0", "hidden_1", "hidden_2", "hidden_3", "output"):
        entry = variables.params[name]
        rows = range(2) if name == "hidden_1" else [...]
        layers += [jax.tree.map(lambda leaf, row=row: leaf[row], entry) for row in rows]
    state = (images.reshape(7, 6) - 0.3) / 1.7
    for index, layer in enumerate(layers):
        state = state @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if index < len(layers) - 1:
            state = ACTIVATIONS[activation](state)
    np.testing.assert_allclose(result.state, state, rtol=1e-4, atol=1e-5)
    assert result.outputs is None and result.batch_stats == {}


def test_layers_of_equal_width_are_one_scanned_segment():
    lengths = [(segment.name, segment.length) for segment in CONFIG.system().segments]
    assert lengths == [
        ("hidden_0", None),
        ("hidden_1", 2),
        ("hidden_2", None),
        ("hidden_3", None),
        ("output", None),
    ]
    # The last layer has no activation, so that it is never a part of a run.
    even = MLPConfig((3, 3), image_shape=(1, 1, 3), classes=3)
    assert [segment.length for segment in even.system().segments] == [2, None]
    linear = MLPConfig((), image_shape=(1, 1, 3), classes=2)
    assert [segment.name for segment in linear.system().segments] == ["output"]


def test_initial_parameters():
    config = MLPConfig((100, 100, 100), image_shape=(10, 10, 2), classes=3)
    params = config.init(jax.random.key(0)).params
    assert jax.tree.map(np.shape, params) == {
        "hidden_0": {"kernel": (200, 100), "bias": (100,)},
        "hidden_1": {"kernel": (2, 100, 100), "bias": (2, 100)},
        "output": {"kernel": (100, 3), "bias": (3,)},
    }
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    for layer in params.values():
        assert not np.any(layer["bias"])
    np.testing.assert_allclose(np.std(params["hidden_0"]["kernel"]), 200**-0.5, rtol=0.03)
    np.testing.assert_allclose(np.std(params["hidden_1"]["kernel"]), 100**-0.5, rtol=0.03)
    first, second = params["hidden_1"]["kernel"]
    assert np.all(first != second)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (0, 2)}, "hidden is (0, 2), but must be whole numbers of at least 1."),
        ({"hidden": (2.5, 2)}, "hidden is (2.5, 2), but must be whole numbers of at least 1."),
        ({"hidden": (True,)}, "hidden is (True,), but must be whole numbers of at least 1."),
        ({"hidden": 32}, "hidden is 32, but must be a tuple."),
        ({"hidden": "32"}, "hidden is '32', but must be a tuple."),
        ({"activation": "gelu"}, "activation is 'gelu', but must be one of relu, tanh, sigmoid."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        MLPConfig(**fields)
    assert message in str(refusal.value)
