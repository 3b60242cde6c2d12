"""What holds for the networks of every registered family."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ocresnet.systems import families
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.layers import one_by_one
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Execution
from ocresnet.systems.taps import Tap, merge
from tests.conftest import apply, random_images, random_variables, to_float64
from tests.quick import quick_jit
from tests.systems.every_family import EVERY

every_architecture = pytest.mark.parametrize("name", EVERY)
one_of_each = pytest.mark.parametrize(
    "name", ["levels", "residual_mlp", "transformer", "mlp", "cnn", "inception", "neural_ode"]
)
KERNEL_GRADIENT = {"rtol": 1e-9, "atol": 1e-9}


def declared_layers(architecture):
    """{path in the network's parameters: (layer, length of its leading axis or None)}."""
    system = architecture.system()
    own = {
        "/".join(filter(None, (segment.name, path))): (
            layer,
            segment.length if segment.stacked else None,
        )
        for segment in system.segments
        for path, layer in one_by_one(segment.layers).items()
    }
    return own | {path: (layer, None) for path, layer in one_by_one(system.shared_layers).items()}


def at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


@every_architecture
def test_every_kernel_is_declared_and_nothing_else(name):
    params = jax.eval_shape(EVERY[name].init, jax.random.key(0)).params
    paths = traverse_util.flatten_dict(params, sep="/")
    kernels = {path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")}
    assert set(declared_layers(EVERY[name])) == kernels


def kernel_gradient(arrays, reading):
    x, delta = reading.rows()
    gradient = jnp.einsum("bli,blo->io", x, delta)
    return {"gradient": gradient, "readings": jnp.ones((), gradient.dtype)}


@every_architecture
def test_declared_layers_are_those_that_are_read(name):
    """Each once by its transition or output, but for shared and tied ones; what they read and got
    back is their gradient."""
    architecture, declared = EVERY[name], declared_layers(EVERY[name])
    images = random_images(architecture)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(architecture))

        def zeros(path, length):
            layer = at(variables.params, path)
            shape = layer["kernel"].shape if length is None else layer["kernel"].shape[1:]
            rows = np.prod(shape[:-1], dtype=int) + ("bias" in layer)
            axes = () if length is None else (length,)
            return {"gradient": jnp.zeros((*axes, rows, shape[-1])), "readings": jnp.zeros(axes)}

        taps = {
            path: Tap(zeros(path, length), kernel_gradient)
            for path, (_, length) in declared.items()
        }

        @quick_jit
        def both(params, taps):
            def cost(params, taps):
                logits, _ = apply(
                    architecture,
                    variables._replace(params=merge(params, taps)),
                    images,
                    train=True,
                    execution=Execution(precision="float64"),
                )
                return jnp.sum(jnp.sin(logits))

            return jax.grad(cost, (0, 1))(params, taps)

        gradient, record = jax.tree.map(np.asarray, both(variables.params, taps))
    system = architecture.system()
    tied = tuple(f"{segment.name}/" for segment in system.segments if segment.tied)
    for path, (_, length) in declared.items():
        arrays, layer = record[path].arrays, at(gradient, path)
        wanted = layer["kernel"].reshape(
            *(() if length is None else (length,)), -1, layer["kernel"].shape[-1]
        )
        if "bias" in layer:
            wanted = np.concatenate([wanted, layer["bias"][..., None, :]], axis=-2)
        np.testing.assert_allclose(arrays["gradient"], wanted, **KERNEL_GRADIENT, err_msg=path)
        if path in system.shared_layers or path.startswith(tied):
            assert arrays["readings"] > 0
        else:
            np.testing.assert_array_equal(arrays["readings"], 1, err_msg=path)


@every_architecture
def test_initial_arrays_are_float32_also_where_float64_is_enabled(name):
    with jax.enable_x64(True):
        variables = jax.eval_shape(EVERY[name].init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


@one_of_each
def test_initial_arrays_share_no_memory(name):
    """A training step gives them away, each once."""
    leaves = jax.tree.leaves(EVERY[name].init(jax.random.key(0)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@every_architecture
def test_scanned_and_unrolled_are_equal(name):
    architecture = EVERY[name]
    images = random_images(architecture)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(architecture))

        def run(unroll):
            def cost(params):
                logits, stats = apply(
                    architecture,
                    variables._replace(params=params),
                    images,
                    train=True,
                    execution=Execution(precision="float64", unroll=unroll),
                )
                return jnp.mean(jnp.sin(logits)), (logits, stats)

            return quick_jit(jax.grad(cost, has_aux=True))(variables.params)

        scanned, unrolled = jax.tree.map(np.asarray, (run(False), run(True)))
    assert scanned[1][0].shape == (architecture.outputs, len(images), architecture.classes)
    for got, wanted in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@one_of_each
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(name):
    architecture = EVERY[name]
    variables, images = random_variables(architecture), random_images(architecture)
    half = Execution(precision="bfloat16")
    state = architecture.system(execution=half).initial_state(images)
    assert state.dtype == jnp.bfloat16
    logits, stats = apply(architecture, variables, images, execution=half)
    exact, _ = apply(architecture, variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, stats))} == {np.dtype("float32")}
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05


@one_of_each
def test_float64_is_refused_where_it_is_not_enabled(name):
    architecture = EVERY[name]
    system = architecture.system(execution=Execution(precision="float64"))
    with pytest.raises(ValueError, match="precision float64 needs jax_enable_x64, which is off"):
        system.initial_state(random_images(architecture))


@one_of_each
def test_images_of_another_shape_are_refused(name):
    architecture = EVERY[name]
    variables = random_variables(architecture)
    shape = ", ".join(map(str, architecture.image_shape))
    for images, what in (
        (np.zeros((2, 5, 5, 9)), "have shape (2, 5, 5, 9)"),
        (np.zeros(architecture.image_shape), f"have shape {architecture.image_shape}"),
        ({"images": 1}, "are a dict"),
    ):
        with pytest.raises(ValueError) as refusal:
            architecture.check_images(images)
        assert str(refusal.value) == f"images {what}, but this network needs [batch, {shape}]."
    with pytest.raises(ValueError, match="this network needs"):
        apply(architecture, variables, np.zeros((2, 5, 5, 9)))


@every_architecture
def test_descriptions_in_json_come_back(name):
    described = json.loads(json.dumps(families.describe(EVERY[name])))
    assert families.from_description(described) == EVERY[name]
    assert families.FAMILIES[described["family"]] is type(EVERY[name])


RESNET = families.describe(ResNetConfig((1,), (4,)))
UNKNOWN = f"must be described with its family, one of {', '.join(families.FAMILIES)}"


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, UNKNOWN),
        ([], UNKNOWN),
        (3, UNKNOWN),
        ({}, UNKNOWN),
        ({**RESNET, "family": "oracle"}, UNKNOWN + ", but it is 'oracle'."),
        ({**RESNET, "family": ["resnet"]}, UNKNOWN),
        ({**RESNET, "width": 3}, "the description of an architecture is wrong"),
        ({"family": "resnet"}, "the description of an architecture is wrong"),
        ({**RESNET, "blocks": None}, "blocks is None, but must be a tuple."),
        ({**RESNET, "blocks": [[1]]}, "blocks is ([1],), but must be whole numbers of at least 0."),
        ({**RESNET, "exits": ["shared"]}, "exits is ['shared'], but must be one of none, shared"),
        ({**RESNET, "pixel_mean": [None]}, "pixel_mean is (None,), but must be finite numbers."),
    ],
)
def test_wrong_descriptions_are_refused(described, message):
    with pytest.raises(ValueError) as refusal:
        families.from_description(described)
    assert message in str(refusal.value)


@dataclass(frozen=True)
class Tiny(MLPConfig):
    """A family from outside the package."""


def test_families_from_outside_are_registered_once(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    with pytest.raises(ValueError, match="Tiny is no known family of networks: call ocresnet"):
        families.describe(Tiny())
    families.register("tiny", Tiny)
    families.register("tiny", Tiny)
    tiny = Tiny(hidden=(3,))
    assert families.from_description(families.describe(tiny)) == tiny
    with pytest.raises(ValueError, match="there is a family 'tiny' already: choose another name"):
        families.register("tiny", MLPConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": "10"}, "classes is '10', but must be a whole number of at least 2."),
        ({"classes": True}, "classes is True, but must be a whole number of at least 2."),
        ({"classes": (10,)}, "classes is (10,), but must be a whole number of at least 2."),
        ({"classes": 10.0}, "classes is 10.0, but must be a whole number of at least 2."),
        ({"image_shape": "28x28"}, "image_shape is '28x28', but must be a tuple."),
        ({"image_shape": 28}, "image_shape is 28, but must be a tuple."),
        ({"image_shape": (28, 28)}, "image_shape is (28, 28), but must be (height, width, chan"),
        ({"image_shape": (28, 28, True)}, "must be whole numbers of at least 1."),
        ({"image_shape": (28, -28, 1)}, "must be whole numbers of at least 1."),
        ({"pixel_mean": 0.5}, "pixel_mean is 0.5, but must be a tuple."),
        ({"pixel_mean": ()}, "pixel_mean has 0 values, but must have one, or one for each of"),
        ({"pixel_mean": ("0.5",)}, "pixel_mean is ('0.5',), but must be finite numbers."),
        ({"pixel_mean": (True,)}, "pixel_mean is (True,), but must be finite numbers."),
        ({"pixel_mean": (float("nan"),)}, "pixel_mean is (nan,), but must be finite numbers."),
        ({"pixel_deviation": (float("inf"),)}, "pixel_deviation is (inf,), but must be finite"),
        ({"pixel_deviation": (0,)}, "pixel_deviation (0.0,) must be positive."),
    ],
)
@one_of_each
def test_impossible_values_are_refused(name, fields, message):
    with pytest.raises(ValueError) as refusal:
        replace(EVERY[name], **fields)
    assert message in str(refusal.value)


def test_lists_and_numpy_numbers_become_plain_values():
    mean = np.float32([0.5, 0.25])
    config = MLPConfig(hidden=[3], image_shape=[2, 2, 2], pixel_mean=[*mean], pixel_deviation=[1])
    assert config == MLPConfig((3,), image_shape=(2, 2, 2), pixel_mean=(0.5, 0.25))
    assert json.dumps(families.describe(config))


def test_an_architecture_is_no_family_by_itself():
    with pytest.raises(TypeError, match="abstract"):
        Architecture()
