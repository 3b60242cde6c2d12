"""Fully connected networks against a loop written out in numpy."""

import jax
import numpy as np
import pytest

from ocresnet.systems.mlp import MLPConfig, init, mlp_system
from ocresnet.systems.system import rollout, unstack

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def random_variables(config, seed=0):
    """Biases too are not at a special value."""
    variables = init(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), variables.params
    )
    return variables._replace(params=params)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_are_those_of_the_layers_in_turn(activation, unroll):
    config = MLPConfig((6, 4, 4, 4, 5, 5, 3), activation)
    system, variables = mlp_system(config), random_variables(config)
    inputs = np.random.default_rng(1).normal(size=(7, 3, 2)).astype(np.float32)
    x = system.initial_state(inputs)
    result = rollout(system, variables, x, train=True, unroll=unroll)

    layers = []
    for name in ("hidden_0", "hidden_1", "hidden_2", "hidden_3", "output"):
        entry = unstack(system, variables.params)[name]
        layers += entry if isinstance(entry, list) else [entry]
    state = inputs.reshape(7, 6)
    for index, layer in enumerate(layers):
        state = state @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        if index < len(layers) - 1:
            state = ACTIVATIONS[activation](state)
    np.testing.assert_allclose(result.state, state, rtol=1e-4, atol=1e-5)
    assert result.outputs is None and result.batch_stats == {}


def test_layers_of_equal_width_are_one_scanned_segment():
    system = mlp_system(MLPConfig((6, 4, 4, 4, 5, 5, 3)))
    lengths = [(segment.name, segment.length) for segment in system.segments]
    assert lengths == [
        ("hidden_0", None),
        ("hidden_1", 2),
        ("hidden_2", None),
        ("hidden_3", None),
        ("output", None),
    ]
    # The last layer has no activation, so that it is never a part of a run.
    lengths = [segment.length for segment in mlp_system(MLPConfig((3, 3, 3, 3))).segments]
    assert lengths == [2, None]
    assert [segment.name for segment in mlp_system(MLPConfig((3, 2))).segments] == ["output"]


def test_initial_parameters():
    config = MLPConfig((200, 100, 100, 100, 3))
    params = init(config, jax.random.key(0)).params
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
    ("features", "activation", "message"),
    [
        ((3,), "relu", "features is (3,), but must be at least two positive whole numbers"),
        ((3, 0, 2), "relu", "features is (3, 0, 2), but must be"),
        ((3, 2.5, 2), "relu", "features is (3, 2.5, 2), but must be"),
        ((3, 2), "gelu", "activation is 'gelu', but must be one of relu, tanh, sigmoid."),
    ],
)
def test_impossible_architectures_are_refused(features, activation, message):
    with pytest.raises(ValueError) as refusal:
        MLPConfig(features, activation)
    assert message in str(refusal.value)
