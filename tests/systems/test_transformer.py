"""The vision transformer against the same network of Flax modules."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from ocresnet.systems.system import Execution
from ocresnet.systems.transformer import TransformerConfig, attention, patches
from tests.conftest import apply, random_images, random_variables, to_float64
from tests.quick import quick_jit

CONFIG = TransformerConfig(
    blocks=3,
    width=6,
    heads=2,
    hidden=5,
    patch=2,
    classes=3,
    image_shape=(4, 6, 2),
    pixel_mean=(0.2, -0.1),
    pixel_deviation=(1.5, 0.5),
)
DOUBLE = Execution(precision="float64")


class FlaxBlock(linen.Module):
    """A pre-norm encoder block."""

    config: TransformerConfig

    @linen.compact
    def __call__(self, x):
        config = self.config
        normed = linen.LayerNorm(1e-5, name="norm_1")(x)
        x = x + linen.MultiHeadDotProductAttention(config.heads, name="attention")(normed)
        inner = linen.Dense(config.hidden, name="dense_1")(linen.LayerNorm(1e-5, name="norm_2")(x))
        return x + linen.Dense(config.width, name="dense_2")(linen.gelu(inner))


class FlaxHead(linen.Module):
    """Mean over tokens, layer norm, dense layer."""

    classes: int

    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(1e-5, name="norm")(x.mean(1))
        return linen.Dense(self.classes, name="dense")(x)


class FlaxTransformer(linen.Module):
    """All outputs, [outputs, batch, classes], of normalised images."""

    config: TransformerConfig

    def setup(self):
        config = self.config
        side = (config.patch, config.patch)
        self.embedding = linen.Conv(config.width, side, side, padding="VALID")
        shape = (config.tokens, config.width)
        self.positions = self.param("positions", linen.initializers.normal(0.02), shape)
        self.blocks = [FlaxBlock(config) for _ in range(config.blocks)]
        self.head = FlaxHead(config.classes)
        self.exits = [
            FlaxHead(config.classes)
            for _ in range(config.blocks if config.exits == "separate" else 0)
        ]

    def __call__(self, images):
        x = self.embedding(images)
        x = x.reshape(len(x), -1, x.shape[-1]) + self.positions
        outputs = []
        for index, block in enumerate(self.blocks):
            if self.config.exits != "none":
                outputs.append((self.exits[index] if self.exits else self.head)(x))
            x = block(x)
        return jnp.stack([*outputs, self.head(x)])


def flax_params(config, params):
    """Our parameters as those of `FlaxTransformer`: every array is one of there, reshaped."""
    side, heads, width = config.patch, config.heads, config.width
    stem, own = params["stem"], params.get("blocks")
    embedding = stem["embedding"]
    kernel = embedding["kernel"].reshape(side, side, config.image_shape[2], width)

    def block(branch):
        into = {
            name: {
                "kernel": branch["attention"][name]["kernel"].reshape(width, heads, -1),
                "bias": branch["attention"][name]["bias"].reshape(heads, -1),
            }
            for name in ("query", "key", "value")
        }
        out = branch["attention"]["out"]
        out = {**out, "kernel": out["kernel"].reshape(heads, -1, width)}
        return {**branch, "attention": {**into, "out": out}}

    mapped = {
        "embedding": {**embedding, "kernel": kernel},
        "positions": stem["positions"],
        "head": params["head"],
    }
    for index in range(config.blocks):
        of_block = jax.tree.map(lambda leaf, k=index: leaf[k], own)
        mapped[f"blocks_{index}"] = block(of_block["residual"])
        if config.exits == "separate":
            mapped[f"exits_{index}"] = of_block["exit"]
    return mapped


def flax_outputs(config, params, images):
    images = (images - np.array(config.pixel_mean)) / np.array(config.pixel_deviation)
    return FlaxTransformer(config).apply({"params": flax_params(config, params)}, images)


@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("exits", ["shared", "separate", "none"])
def test_parameters_are_those_of_the_flax_module(blocks, exits):
    """Each array of one is an array of the other, none is left over."""
    config = replace(CONFIG, blocks=blocks, exits=exits)

    def shapes(of):
        return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(of))

    ours = shapes(lambda: flax_params(config, config.init(jax.random.key(0)).params))
    images = jnp.zeros((1, *config.image_shape))
    theirs = shapes(lambda: FlaxTransformer(config).init(jax.random.key(0), images)["params"])
    assert ours == theirs


@pytest.mark.parametrize(
    ("blocks", "exits"), [(0, "shared"), (3, "shared"), (3, "separate"), (3, "none")]
)
def test_outputs_and_gradients_are_those_of_the_flax_module(blocks, exits):
    config = replace(CONFIG, blocks=blocks, exits=exits)
    images = random_images(config).astype(np.float64)
    weights = np.random.default_rng(3).normal(size=(config.outputs, len(images), config.classes))
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))

        def cost(run):
            @quick_jit
            @jax.value_and_grad
            def of_outputs(params):
                outputs = run(params)
                return jnp.sum(weights * jnp.tanh(outputs))

            return jax.tree.map(np.asarray, (run(variables.params), of_outputs(variables.params)))

        def own(params):
            logits, stats = apply(
                config, variables._replace(params=params), images, train=True, execution=DOUBLE
            )
            assert stats == {}
            return logits

        ours, theirs = cost(own), cost(lambda params: flax_outputs(config, params, images))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-11, atol=1e-11)
    (value, gradient), (wanted_value, wanted) = ours[1], theirs[1]
    np.testing.assert_allclose(value, wanted_value, rtol=1e-11)
    for (path, got), expected in zip(
        jax.tree.leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10, err_msg=name)
        # Scores do not change with the same number added to all of a query's.
        assert np.abs(expected).max() > 1e-3 or "'key']['bias']" in name


def test_tokens_of_an_image_are_its_patches():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = patches(jnp.asarray(images), 2)
    assert cut.shape == (2, 6, 12)
    np.testing.assert_array_equal(cut[1, 4], images[1, 2:4, 2:4].ravel())  # second row, second


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_softmax_is_at_least_single_precision(dtype):
    """Its exponentials; what comes in and goes out is in the dtype of the activations."""
    params = random_variables(CONFIG).params["blocks"]["residual"]["attention"]
    params = jax.tree.map(lambda leaf: leaf[0], params)
    x = jnp.ones((2, 3, CONFIG.width), dtype)
    program = jax.make_jaxpr(lambda x: attention(params, x, 2))(x)
    exponentials = [
        equation.invars[0].aval.dtype
        for equation in jax.tree.leaves(program.jaxpr.eqns, is_leaf=lambda e: hasattr(e, "invars"))
        if equation.primitive.name == "exp"
    ]
    assert exponentials == [np.dtype("float32")]
    assert program.out_avals[0].dtype == dtype


@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_initial_parameters(exits):
    config = TransformerConfig(
        blocks=2, width=100, heads=5, patch=5, classes=3, image_shape=(10, 50, 3), exits=exits
    )
    params, stats = config.init(jax.random.key(0))
    head = {"dense": {"kernel": (100, 3), "bias": (3,)}, "norm": {"scale": (100,), "bias": (100,)}}
    norm = {"scale": (2, 100), "bias": (2, 100)}
    square = {"kernel": (2, 100, 100), "bias": (2, 100)}
    residual = {
        "norm_1": norm,
        "attention": dict.fromkeys(("query", "key", "value", "out"), square),
        "norm_2": norm,
        "dense_1": {"kernel": (2, 100, 400), "bias": (2, 400)},
        "dense_2": {"kernel": (2, 400, 100), "bias": (2, 100)},
    }
    own = {"residual": residual}
    if exits == "separate":
        own["exit"] = jax.tree.map(
            lambda shape: (2, *shape), head, is_leaf=lambda s: type(s) is tuple
        )
    stem = {"embedding": {"kernel": (75, 100), "bias": (100,)}, "positions": (20, 100)}
    assert jax.tree.map(np.shape, params) == {"stem": stem, "blocks": own, "head": head}
    assert stats == {}
    branch = params["blocks"]["residual"]
    np.testing.assert_allclose(np.std(params["stem"]["positions"]), 0.02, rtol=0.05)
    dense = [params["stem"]["embedding"], *branch["attention"].values(), branch["dense_1"]]
    for layer in (*dense, branch["dense_2"]):
        inputs = layer["kernel"].shape[-2]
        np.testing.assert_allclose(np.std(layer["kernel"]), inputs**-0.5, rtol=0.03)
        assert not np.any(layer["bias"])
    kernels = [kernel for layer in branch["attention"].values() for kernel in layer["kernel"]]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == 8


def test_blocks_are_one_scanned_segment():
    segments = [(segment.name, segment.length) for segment in CONFIG.system().segments]
    assert segments == [("stem", None), ("blocks", 3), ("output_block", None)]
    segments = [segment.name for segment in CONFIG.subresnet(0).system().segments]
    assert segments == ["stem", "output_block"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": -1}, "blocks is -1, but must be a whole number of at least 0."),
        ({"width": 0}, "width is 0, but must be a whole number of at least 1."),
        ({"hidden": -1}, "hidden is -1, but must be a whole number of at least 0."),
        ({"heads": 0}, "heads is 0, but must be a whole number of at least 1."),
        ({"heads": 2.0}, "heads is 2.0, but must be a whole number of at least 1."),
        ({"heads": 5}, "heads is 5, but must divide width, which is 64."),
        ({"patch": (4, 4)}, "patch is (4, 4), but must be a whole number of at least 1."),
        ({"exits": "all"}, "exits is 'all', but must be one of none, shared, separate."),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        TransformerConfig(**fields)
    assert str(refusal.value) == message


@pytest.mark.parametrize(("patch", "shape"), [(4, (28, 30, 1)), (4, (30, 28, 1)), (5, (4, 4, 1))])
def test_patches_that_do_not_cover_the_images_are_refused(patch, shape):
    """By all that needs them, and not before: `for_dataset` may still change the images."""
    config = TransformerConfig(patch=patch, image_shape=shape)
    message = (
        f"patch is {patch}, but must divide the height and the width of an image, which are "
        f"{shape[0]} and {shape[1]}."
    )
    for use in (config.system, lambda: config.init(jax.random.key(0))):
        with pytest.raises(ValueError) as refusal:
            use()
        assert str(refusal.value) == message
    fitting = replace(config, image_shape=(2 * patch, 3 * patch, 1))
    assert fitting.tokens == 6 and fitting.system().segments
