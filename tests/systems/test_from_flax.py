"""Systems of Flax modules against the modules' own calls."""

import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ocresnet.systems import layers
from ocresnet.systems.from_flax import from_flax
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Variables

IMAGES = jax.random.normal(jax.random.key(7), (6, 5, 5, 2))


def flatten(x):
    return x.reshape(len(x), -1)


class NNXBlock(nnx.Module):
    """A residual block: modules inside a module, a list, an array of its own."""

    def __init__(self, channels, rngs):
        self.parts = nnx.Sequential(
            nnx.BatchNorm(channels, rngs=rngs),
            jnp.tanh,
            nnx.Conv(channels, channels, (3, 3), rngs=rngs),
        )
        self.scale = nnx.Param(jnp.ones(channels))

    def __call__(self, x):
        return x + self.scale[...] * self.parts(x)


class LinenBlock(linen.Module):
    """The same; told by an argument how to normalise."""

    channels: int

    @linen.compact
    def __call__(self, x, train: bool):
        y = linen.BatchNorm(use_running_average=not train)(x)
        y = linen.Conv(self.channels, (3, 3))(jnp.tanh(y))
        return x + self.param("scale", linen.initializers.ones, (self.channels,)) * y


def nnx_modules(seed=0):
    rngs = nnx.Rngs(seed)
    return [
        nnx.Conv(2, 4, (3, 3), rngs=rngs),
        nnx.BatchNorm(4, momentum=0.9, rngs=rngs),
        jax.nn.relu,
        NNXBlock(4, rngs),
        nnx.Conv(4, 3, (3, 3), strides=2, rngs=rngs),
        flatten,
        nnx.Linear(27, 3, use_bias=False, rngs=rngs),
    ]


def linen_modules():
    return [
        linen.Conv(4, (3, 3)),
        linen.BatchNorm(momentum=0.9),
        jax.nn.relu,
        LinenBlock(4),
        linen.Conv(3, (3, 3), strides=2),
        flatten,
        linen.Dense(3, use_bias=False),
    ]


def converted(kind):
    """System and variables, with nothing at a special value."""
    modules = nnx_modules() if kind == "nnx" else linen_modules()
    system, variables = from_flax(modules, IMAGES, key=jax.random.key(1))
    rng = np.random.default_rng(0)

    def perturb(leaf):
        return leaf + 0.2 * rng.random(leaf.shape).astype(np.float32)

    return modules, system, jax.tree.map(perturb, variables)


def apply_modules(kind, modules, variables, x, train):
    """The modules' own calls; new statistics."""
    batch_stats = {}
    for index, module in enumerate(modules):
        name = f"layer_{index}"
        params, stats = variables.params.get(name, {}), variables.batch_stats.get(name, {})
        if isinstance(module, nnx.Module):
            copy = nnx.clone(module)
            state = nnx.state(copy)
            nnx.replace_by_pure_dict(state, merged_trees(params, stats))
            nnx.update(copy, state)
            copy.train() if train else copy.eval()
            x = copy(x)
            changed = with_string_keys(nnx.to_pure_dict(nnx.state(copy, nnx.BatchStat)))
        elif isinstance(module, linen.Module):
            flags = {}
            if isinstance(module, linen.BatchNorm):
                flags["use_running_average"] = not train
            if isinstance(module, LinenBlock):
                flags["train"] = train
            entry = {"params": params, "batch_stats": stats}
            x, changed = module.apply(entry, x, mutable=["batch_stats"], **flags)
            changed = changed.get("batch_stats", {})
        else:
            x, changed = module(x), {}
        if changed:
            batch_stats[name] = changed
    return x, batch_stats


def merged_trees(first, second):
    merged = dict(first)
    for name, entry in second.items():
        merged[name] = merged_trees(merged[name], entry) if name in merged else entry
    return merged


def with_string_keys(tree):
    if not isinstance(tree, dict):
        return tree
    return {str(name): with_string_keys(entry) for name, entry in tree.items()}


def assert_equal_trees(ours, theirs, **tolerances):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, **{"rtol": 1e-5, "atol": 1e-5, **tolerances})


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_outputs_statistics_and_gradients_are_those_of_the_modules(kind, train):
    modules, system, variables = converted(kind)

    def ours(params):
        result = rollout(system, variables._replace(params=params), IMAGES, train=train)
        return jnp.sum(jnp.sin(result.state)), (result.state, result.batch_stats)

    def theirs(params):
        current = variables._replace(params=params)
        x, stats = apply_modules(kind, modules, current, IMAGES, train)
        return jnp.sum(jnp.sin(x)), (x, stats)

    gradient, (x, stats) = jax.jit(jax.grad(ours, has_aux=True))(variables.params)
    expected, (own_x, own_stats) = jax.jit(jax.grad(theirs, has_aux=True))(variables.params)
    assert_equal_trees(x, own_x)
    assert_equal_trees(stats, own_stats)
    assert_equal_trees(gradient, expected, rtol=1e-4, atol=1e-4)
    if not train:
        assert_equal_trees(stats, variables.batch_stats, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_parameters_have_names_and_layers_are_recognised(kind):
    _, system, variables = converted(kind)
    assert [segment.name for segment in system.segments] == [f"layer_{k}" for k in range(7)]
    declared = {segment.name: segment.layers for segment in system.segments if segment.layers}
    assert declared == {
        "layer_0": {"": layers.Convolution((3, 3))},
        "layer_4": {"": layers.Convolution((3, 3), stride=2)},
        "layer_6": {"": layers.dense},
    }
    shapes = jax.tree.map(np.shape, variables.params)
    assert shapes["layer_0"] == {"kernel": (3, 3, 2, 4), "bias": (4,)}
    assert shapes["layer_6"] == {"kernel": (27, 3)}
    assert set(shapes) == {"layer_0", "layer_1", "layer_3", "layer_4", "layer_6"}
    assert set(variables.batch_stats) == {"layer_1", "layer_3"}
    assert jax.tree.map(np.shape, variables.batch_stats["layer_1"]) == {"mean": (4,), "var": (4,)}
    if kind == "nnx":
        assert shapes["layer_3"]["parts"]["layers"]["2"]["kernel"] == (3, 3, 4, 4)


def test_the_users_modules_are_neither_changed_nor_aliased():
    modules = nnx_modules()
    before = [jax.tree.map(np.array, nnx.state(module)) for module in modules[:2]]
    system, variables = from_flax(modules, IMAGES)
    rollout(system, variables, IMAGES, train=True)
    jax.tree.map(lambda leaf: leaf.delete(), variables)
    for state, module in zip(before, modules[:2], strict=True):
        assert_equal_trees(jax.tree.map(np.array, nnx.state(module)), state, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "size", "known"),
    [
        ({}, 6, True),
        ({"kernel_size": (1, 5), "use_bias": False}, 6, True),
        ({"strides": 2}, 5, True),
        ({"strides": 2}, 6, False),
        ({"strides": (2, 2), "padding": 1}, 6, True),
        ({"strides": 2, "padding": ((1, 0), (1, 0))}, 6, True),
        ({"strides": 2, "padding": ((1, 1), (1, 1))}, 5, True),
        ({"strides": (1, 2)}, 5, False),
        ({"kernel_size": (1, 1), "strides": 3}, 6, True),
        ({"kernel_size": (2, 2)}, 6, False),
        ({"padding": "VALID"}, 6, False),
        ({"padding": "CIRCULAR"}, 6, False),
        ({"padding": "REFLECT"}, 6, False),
        ({"padding": 0}, 6, False),
        ({"kernel_dilation": 2}, 6, False),
        ({"input_dilation": (2, 2), "padding": 1}, 6, False),
        ({"kernel_dilation": (1, 1), "strides": None}, 6, True),
        ({"feature_group_count": 2}, 6, False),
        ({"precision": "highest"}, 6, False),
        ({"mask": jnp.ones((3, 3, 2, 4))}, 6, False),
        ({"dtype": jnp.bfloat16}, 6, True),
    ],
)
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_convolutions_are_known_if_and_only_if_they_are_the_same(kind, settings, size, known):
    settings = {"kernel_size": (3, 3), **settings}
    x = jax.random.normal(jax.random.key(0), (2, size, size, 2))
    if kind == "nnx":
        module = nnx.Conv(2, 4, **settings, rngs=nnx.Rngs(0))
        system, variables = from_flax([module], x)
        expected = module(x)
    else:
        module = linen.Conv(4, **settings)
        system, variables = from_flax([module], x, key=jax.random.key(0))
        expected = module.apply({"params": variables.params["layer_0"]}, x)
    y = rollout(system, variables, x, train=True).state
    assert bool(system.segments[0].layers) is known
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y.astype(float), expected.astype(float), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, True),
        ({"strides": 2}, False),
        ({"strides": 2, "padding": 1}, True),
        ({"strides": 3, "kernel_size": (1, 1)}, True),
    ],
)
def test_without_inputs_a_convolution_is_known_if_it_is_the_same_for_every_size(settings, known):
    module = nnx.Conv(2, 4, **{"kernel_size": (3, 3), **settings}, rngs=nnx.Rngs(0))
    system, variables = from_flax([module])
    assert bool(system.segments[0].layers) is known
    for size in (6, 7, 8):
        x = jax.random.normal(jax.random.key(0), (2, size, size + 1, 2))
        y = rollout(system, variables, x, train=True).state
        np.testing.assert_allclose(y, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_dense_layers_compute_in_the_dtype_that_flax_chooses(kind):
    for settings, dtype, known in (
        ({}, jnp.bfloat16, True),
        ({}, jnp.int32, True),
        ({"dtype": jnp.bfloat16}, jnp.float32, True),
        ({"dtype": np.dtype("float16")}, jnp.float32, True),
        ({"param_dtype": jnp.bfloat16}, jnp.float32, True),
        ({"precision": "highest"}, jnp.float32, False),
    ):
        x = (3 * jax.random.normal(jax.random.key(0), (2, 4, 5))).astype(dtype)
        if kind == "nnx":
            module = nnx.Linear(5, 3, **settings, rngs=nnx.Rngs(0))
            system, variables = from_flax([module])
            expected = module(x)
        else:
            module = linen.Dense(3, **settings)
            system, variables = from_flax([module], x, key=jax.random.key(0))
            expected = module.apply({"params": variables.params["layer_0"]}, x)
        y = rollout(system, variables, x, train=True).state
        assert bool(system.segments[0].layers) is known
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y.astype(float), expected.astype(float))


def test_a_convolution_refuses_sizes_that_it_would_pad_otherwise():
    module = nnx.Conv(2, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    system, variables = from_flax([module], IMAGES)
    with pytest.raises(ValueError, match="layer_0 does not pad inputs of shape .6, 8, 8, 2."):
        rollout(system, variables, jnp.ones((6, 8, 8, 2)), train=False)
    bigger = jnp.ones((6, 7, 9, 2))
    y = rollout(system, variables, bigger, train=False).state
    np.testing.assert_allclose(y, module(bigger), rtol=1e-5, atol=1e-5)


class NNXDropoutBlock(nnx.Module):
    """Draws twice, from a stream that it keeps."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jnp.concatenate([self.first(x), self.second(x)], axis=-1)


class LinenDropoutBlock(linen.Module):
    """The same; `deterministic` is an argument."""

    @linen.compact
    def __call__(self, x, deterministic: bool):
        drop = linen.Dropout(0.5), linen.Dropout(0.5)
        return jnp.concatenate([part(x, deterministic) for part in drop], axis=-1)


def dropouts(kind, block):
    if kind == "nnx":
        rngs = nnx.Rngs(3)
        if block:
            return [NNXDropoutBlock(rngs), NNXDropoutBlock(rngs)]
        return [nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)]
    if block:
        return [LinenDropoutBlock(), LinenDropoutBlock()]
    return [linen.Dropout(0.5, deterministic=False), linen.Dropout(0.5)]


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_dropout_has_one_mask_for_the_same_statistics(kind, block):
    modules = dropouts(kind, block)
    x = jnp.ones((8, 100))
    system, variables = from_flax(modules, x, key=jax.random.key(0))
    assert variables.params == {}
    for stats in variables.batch_stats.values():
        assert list(stats) == ["key"]

    def run(stats, train=True):
        return rollout(system, Variables({}, stats), x, train=train)

    first, again = run(variables.batch_stats), jax.jit(run)(variables.batch_stats)
    np.testing.assert_array_equal(first.state, again.state)
    following = run(first.batch_stats)
    kept, wide = np.asarray(first.state) > 0, 4 if block else 1
    assert set(np.unique(first.state)) == {0, 4}
    np.testing.assert_allclose(np.mean(kept), 0.25, atol=0.04)
    # Other masks: in the next pass, in the second layer, and in every part of a block.
    assert 0.2 < np.mean((np.asarray(following.state) > 0) != kept) < 0.55
    parts = kept.reshape(8, wide, 100).transpose(1, 0, 2)
    for one, other in pairwise(parts):
        assert not np.array_equal(one, other)

    still = run(variables.batch_stats, train=False)
    np.testing.assert_array_equal(still.state, np.tile(x, (1, wide)))
    for name, stats in variables.batch_stats.items():
        assert still.batch_stats[name]["key"] == stats["key"]
        assert first.batch_stats[name]["key"] != stats["key"]


def test_the_mask_of_a_dropout_layer_is_that_of_flax():
    x = jnp.ones((8, 100))
    module = linen.Dropout(0.5)
    system, variables = from_flax([module], x, key=jax.random.key(0))
    key = jax.random.split(variables.batch_stats["layer_0"]["key"])[1]
    expected = module.apply({}, x, deterministic=False, rngs={"dropout": key})
    np.testing.assert_array_equal(rollout(system, variables, x, train=True).state, expected)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_the_systems_train_decides_whatever_the_module_was_made_with(kind):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (50, 4))
    for fixed in (False, True):
        if kind == "nnx":
            module = nnx.BatchNorm(4, use_running_average=fixed, rngs=nnx.Rngs(0))
        else:
            module = linen.BatchNorm(use_running_average=fixed)
        system, variables = from_flax([module], x, key=jax.random.key(0))
        result = rollout(system, variables, x, train=True)
        np.testing.assert_allclose(np.mean(result.state, axis=0), 0, atol=1e-5)
        # Updated once: 0.99 of the old statistics, 0 and 1, and 0.01 of the batch's.
        stats = result.batch_stats["layer_0"]
        np.testing.assert_allclose(stats["mean"], 0.01 * np.mean(x, axis=0), rtol=1e-4)
        np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * np.var(x, axis=0), rtol=1e-4)
        result = rollout(system, variables, x, train=False)
        np.testing.assert_allclose(result.state, x, rtol=1e-4)
        assert_equal_trees(result.batch_stats, variables.batch_stats, rtol=0, atol=0)


def test_batch_norm_over_devices_can_be_converted():
    module = linen.BatchNorm(axis_name="batch")
    system, variables = from_flax([module], jnp.ones((4, 2)), key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(0), (8, 5, 2))

    def run(x):
        return rollout(system, variables, x, train=True).state

    y = jax.vmap(run, axis_name="batch")(x)
    np.testing.assert_allclose(np.mean(y, axis=(0, 1)), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        (nnx.Sequential(), TypeError, "modules is a Sequential, but must be a list or tuple"),
        ([], ValueError, "modules is empty, but must have at least one module."),
        ([3], TypeError, "layer_0 is 3, but must be a Flax module that can be called"),
        ([flatten, "relu"], TypeError, "layer_1 is 'relu', but must be a Flax module"),
        ([nnx.Linear], TypeError, "layer_0 is the class Linear, but must be a Flax module"),
        ([nnx.Module()], TypeError, "layer_0 is a Module, but must be a Flax module that can be"),
        ([linen.Dense(3)], ValueError, "layer_0 is a Dense of Linen, whose parameters are made"),
    ],
)
def test_what_is_not_a_module_is_refused(modules, error, message):
    with pytest.raises(error) as refusal:
        from_flax(modules)
    assert message in str(refusal.value)


class Cached(linen.Module):
    """Has a collection that is not known."""

    @linen.compact
    def __call__(self, x):
        self.variable("cache", "last", jnp.zeros, x.shape)
        self.sow("intermediates", "x", x)
        return x


def test_unknown_variables_are_refused():
    with pytest.raises(ValueError, match="layer_0 has Linen variables of the collection 'cache'"):
        from_flax([Cached()], IMAGES, key=jax.random.key(0))


@pytest.mark.parametrize("kind", ["nnx", "linen", "nested"])
def test_shared_parameters_are_refused(kind):
    layer = linen.Dense(2) if kind == "linen" else nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    modules = [layer, jnp.tanh, nnx.Sequential(layer) if kind == "nested" else layer]
    with pytest.raises(ValueError, match="layer_0 and layer_2 share parameters"):
        from_flax(modules, IMAGES, key=jax.random.key(0))


def test_flax_modules_are_imported_only_where_they_are_needed():
    names = ("flax.nnx", "ocresnet.systems.from_flax")
    code = f"import sys, ocresnet; print([name for name in {names} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
