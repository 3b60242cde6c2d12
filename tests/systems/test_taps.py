"""What taps record, against the sums over samples and locations written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems import layers
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution, Segment, System, Variables
from ocresnet.systems.taps import Tap, join, merge, split
from tests.quick import quick_jit

BATCH = 3


def outer_sums(arrays, reading):
    """Sums of x delta^T, x x^T and delta delta^T, and the number of rows."""
    x, delta = reading.rows()
    assert x.shape[:2] == delta.shape[:2]
    return {
        "gradient": jnp.einsum("bli,blo->io", x, delta),
        "inputs": jnp.einsum("bli,blj->ij", x, x),
        "outputs": jnp.einsum("blo,blp->op", delta, delta),
        "rows": jnp.asarray(float(x.shape[0] * x.shape[1])),
    }


def tap(rows_in, channels_out, *length):
    shapes = {
        "gradient": (rows_in, channels_out),
        "inputs": (rows_in, rows_in),
        "outputs": (channels_out, channels_out),
        "rows": (),
    }
    zeros = {name: jnp.zeros((*length, *shape)) for name, shape in shapes.items()}
    return Tap(zeros, outer_sums)


def recorded(cost, params, taps):
    """The cost with and without taps, and what they record."""
    value, record = jax.value_and_grad(lambda taps: cost(merge(params, taps)))(taps)
    return cost(params), value, {path: entry.arrays for path, entry in record.items()}


def with_ones(x):
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def assert_records(arrays, x, delta, **tolerances):
    """`arrays` are the sums over the rows of x [rows, rows_in] and delta [rows, channels_out]."""
    tolerances = {"rtol": 1e-10, "atol": 1e-12, **tolerances}
    np.testing.assert_allclose(arrays["gradient"], x.T @ delta, **tolerances)
    np.testing.assert_allclose(arrays["inputs"], x.T @ x, **tolerances)
    np.testing.assert_allclose(arrays["outputs"], delta.T @ delta, **tolerances)
    assert arrays["rows"] == len(x)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(BATCH, 4), (BATCH, 2, 5, 4)])
def test_dense_layer(rng, bias, shape):
    params = {"layer": {"kernel": rng.normal(size=(4, 2))}}
    if bias:
        params["layer"]["bias"] = rng.normal(size=2)
    x, delta = rng.normal(size=shape), rng.normal(size=(*shape[:-1], 2))

    def cost(params):
        return jnp.sum(delta * layers.dense(params["layer"], x))

    plain, tapped, record = recorded(cost, params, {"layer": tap(4 + bias, 2)})
    assert plain == tapped
    rows = (with_ones(x) if bias else x).reshape(-1, 4 + bias)
    assert_records(record["layer"], rows, delta.reshape(-1, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(rng, bias, stride):
    params = {"layer": {"kernel": rng.normal(size=(3, 3, 2, 4))}}
    if bias:
        params["layer"]["bias"] = rng.normal(size=4)
    x = rng.normal(size=(BATCH, 5, 6, 2))
    size = (-(-5 // stride), -(-6 // stride))
    delta = rng.normal(size=(BATCH, *size, 4))

    def cost(params):
        return jnp.sum(delta * layers.Convolution(stride=stride)(params["layer"], x))

    plain, tapped, record = recorded(cost, params, {"layer": tap(18 + bias, 4)})
    assert plain == tapped
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [
        padded[:, row * stride : row * stride + 3, column * stride : column * stride + 3]
        for row, column in np.ndindex(*size)
    ]
    rows = np.stack([window.reshape(BATCH, -1) for window in windows], axis=1)
    rows = (with_ones(rows) if bias else rows).reshape(-1, 18 + bias)
    assert_records(record["layer"], rows, delta.reshape(-1, 4))
    # Inputs and output gradients belong together: their product is the kernel's gradient.
    kernel = jax.grad(cost)(params)["layer"]["kernel"]
    np.testing.assert_allclose(record["layer"]["gradient"][:18].reshape(3, 3, 2, 4), kernel)


def test_layers_without_a_tap_record_nothing(rng):
    params = {"one": layers.init_dense(jax.random.key(0), 4, 4)}
    params["other"] = layers.init_dense(jax.random.key(1), 4, 2)
    x = rng.normal(size=(BATCH, 4))

    def cost(params):
        return jnp.sum(layers.dense(params["other"], jnp.tanh(layers.dense(params["one"], x))) ** 2)

    merged = merge(params, {"other": tap(5, 2)})
    assert "tap" not in params["other"] and "tap" not in merged["one"]
    gradient, plain = jax.grad(cost)(merged), jax.grad(cost)(params)
    np.testing.assert_array_equal(gradient["one"]["kernel"], plain["one"]["kernel"])
    np.testing.assert_array_equal(gradient["other"]["kernel"], plain["other"]["kernel"])


def test_rules_read_the_arrays_of_their_tap(rng):
    def scaled(arrays, reading):
        return {"scale": arrays["scale"] * jnp.sum(reading.inputs)}

    params = {"layer": {"kernel": rng.normal(size=(4, 2))}}
    x = rng.normal(size=(BATCH, 4))

    def cost(params):
        return jnp.sum(layers.dense(params["layer"], x))

    taps = {"layer": Tap({"scale": jnp.asarray(3.0)}, scaled)}
    _, _, record = recorded(cost, params, taps)
    np.testing.assert_allclose(record["layer"]["scale"], 3 * np.sum(x), rtol=1e-12)


# x_{k+1} = tanh(x_k W_k + b_k); in "shared" every transition adds x_k C with the same C.


def own_layer(stage, x):
    return jnp.tanh(layers.dense(stage.params["layer"], x)), {}


def own_and_shared_layer(stage, x):
    mixed = layers.dense(stage.shared["mix"], x)
    return jnp.tanh(layers.dense(stage.params["layer"], x) + mixed), {}


@pytest.mark.parametrize("remat", ["none", "convolutions", "everything"])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_in_a_system(rng, shared, unroll, remat):
    transition = own_and_shared_layer if shared else own_layer
    segments = (Segment("first", transition), Segment("run", transition, length=3))
    execution = Execution(unroll=unroll, remat=remat)
    system = System(segments, ("mix",) if shared else (), execution=execution)
    params = {
        "first": {"layer": {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)}},
        "run": {"layer": {"kernel": rng.normal(size=(3, 4, 4)), "bias": rng.normal(size=(3, 4))}},
    }
    if shared:
        params["mix"] = {"kernel": rng.normal(size=(4, 4))}
    params = jax.tree.map(jnp.asarray, params)
    x, target = rng.normal(size=(2, BATCH, 4))

    def cost(params):
        variables = Variables(params, {})
        result = rollout(system, variables, x, train=True)
        return jnp.sum((result.state - target) ** 2)

    taps = {"first/layer": tap(5, 4), "run/layer": tap(5, 4, 3)}
    if shared:
        taps["mix"] = tap(4, 4)
    plain, tapped, record = quick_jit(recorded, static_argnums=0)(cost, params, taps)
    np.testing.assert_allclose(tapped, plain, rtol=1e-12)

    # The recursion and its derivative, written out.
    own = [params["first"]["layer"]]
    own += [{name: leaf[k] for name, leaf in params["run"]["layer"].items()} for k in range(3)]
    mix = np.asarray(params["mix"]["kernel"]) if shared else np.zeros((4, 4))
    own = [jax.tree.map(np.asarray, layer) for layer in own]
    states = [x]
    for layer in own:
        states.append(np.tanh(states[-1] @ (layer["kernel"] + mix) + layer["bias"]))
    costate, deltas = 2 * (states[-1] - target), []
    for layer, after in zip(reversed(own), reversed(states), strict=False):
        deltas.insert(0, costate * (1 - after**2))
        costate = deltas[0] @ (layer["kernel"] + mix).T

    assert_records(record["first/layer"], with_ones(states[0]), deltas[0])
    for k in range(3):
        arrays = jax.tree.map(lambda leaf, k=k: leaf[k], record["run/layer"])
        assert_records(arrays, with_ones(states[k + 1]), deltas[k + 1])
    if shared:
        assert_records(record["mix"], np.concatenate(states[:4]), np.concatenate(deltas))


def test_parallel_layers_record_as_one(rng):
    """Each part sees what the layer alone would see, with equal labels for the same input."""
    layer = layers.Parallel(
        (("one", layers.dense), ("other", layers.dense), ("window", layers.Convolution())),
        reads=("x", "pooled", "x"),
    )
    shapes = {"one": (2, 4), "other": (3, 2), "window": (3, 3, 2, 4)}
    params = {name: {"kernel": rng.normal(size=shape)} for name, shape in shapes.items()}
    params["other"]["bias"] = rng.normal(size=2)
    inputs = {"x": rng.normal(size=(BATCH, 5, 6, 2)), "pooled": rng.normal(size=(BATCH, 5, 6, 3))}
    deltas = {name: rng.normal(size=(BATCH, 5, 6, shapes[name][-1])) for name in shapes}

    def by_part(arrays, reading):
        return {name: outer_sums(arrays[name], part) for name, part in reading.parts().items()}

    def cost(params, apply):
        y = apply(params["layer"], inputs)
        return sum(jnp.sum(deltas[name] * y[name]) for name in shapes)

    def alone(params, inputs):
        return {
            name: part(params[name], inputs[label])
            for (name, part), label in zip(layer.layers, layer.reads, strict=True)
        }

    own_taps = {"one": tap(2, 4), "other": tap(4, 2), "window": tap(18, 4)}
    together = Tap({name: own.arrays for name, own in own_taps.items()}, by_part)
    plain, tapped, record = recorded(
        lambda params: cost(params, layer), {"layer": params}, {"layer": together}
    )
    alone_taps = {f"layer/{name}": own for name, own in own_taps.items()}
    separate, _, wanted = recorded(
        lambda params: cost(params, alone), {"layer": params}, alone_taps
    )
    assert plain == tapped == separate
    for name in shapes:
        assert np.abs(wanted[f"layer/{name}"]["gradient"]).max() > 0.1
        jax.tree.map(np.testing.assert_array_equal, record["layer"][name], wanted[f"layer/{name}"])


def test_declared_layers_one_by_one():
    kernel = layers.Convolution()
    parallel = layers.Parallel((("a", layers.dense), ("b", kernel)), reads=("x", "x"))
    assert layers.one_by_one({"": parallel}) == {"a": layers.dense, "b": kernel}
    assert layers.one_by_one({"": kernel, "branch/deep": parallel}) == {
        "": kernel,
        "branch/deep/a": layers.dense,
        "branch/deep/b": kernel,
    }


@pytest.mark.parametrize(
    ("names", "reads", "message"),
    [
        (("a", "a"), ("x", "x"), "different names"),
        (("a", "b/c"), ("x", "x"), "different names"),
        ((), (), "different names"),
        (("a", "b"), ("x",), "as many labels"),
    ],
)
def test_impossible_parallel_layers_are_refused(names, reads, message):
    with pytest.raises(ValueError, match=message):
        layers.Parallel(tuple((name, layers.dense) for name in names), reads)


def test_taps_are_taken_out_and_put_back():
    layer = {"kernel": 1, "bias": 2}
    tapped = merge({"a": {"b": layer}, "c": layer, "d": 3}, {"a/b": Tap(4, outer_sums)})
    plain, recording = split(tapped)
    assert plain == {"a": {"b": layer}, "c": layer, "d": 3}
    assert recording == {"a": {"b": {"tap": Tap(4, outer_sums)}}}
    assert join(plain, recording) == tapped
