"""The residual network: Table 1's sizes, an independent implementation, Lemmas 1 and 2."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems import counts
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Execution, Variables
from tests.conftest import SMALL, apply, random_images, random_variables, to_float64
from tests.quick import quick_jit
from tests.systems import numpy_resnet
from tests.systems.lemmas import subresnet, zero_branches

MNIST = {"image_shape": (28, 28, 1), "filters": 32}
DOUBLE = Execution(precision="float64")


def millions(config: ResNetConfig) -> float:
    shapes = jax.eval_shape(config.init, jax.random.key(0))
    return counts.parameter_count(shapes.params) / 1e6


@pytest.mark.parametrize(
    ("config", "table", "decimals"),
    [
        (ResNetConfig.standard(54, exits="none"), 1.7, 1),
        (ResNetConfig.standard(54), 1.7, 1),
        (ResNetConfig.standard(54, exits="separate"), 1.9, 1),
        (ResNetConfig.standard(54).subresnet(12), 0.06, 2),
        (ResNetConfig.homogeneous(54), 4.0, 1),
        (ResNetConfig.homogeneous(54, exits="separate"), 4.0, 1),
        (ResNetConfig.homogeneous(54, classes=100), 4.0, 1),
        (ResNetConfig.homogeneous(54, classes=100, exits="separate"), 4.4, 1),
        (ResNetConfig.homogeneous(54).subresnet(12), 0.9, 1),
        (ResNetConfig.homogeneous(54, **MNIST), 1.0, 1),
        (ResNetConfig.homogeneous(12, **MNIST), 0.2, 1),
    ],
)
def test_parameter_counts_of_table_1(config, table, decimals):
    assert round(millions(config), decimals) == table


BOTTLENECK = ResNetConfig(
    (2, 1, 2), (2, 3, 2), classes=3, image_shape=(17, 14, 2), block="bottleneck", stem="imagenet"
)

CASES = [
    (SMALL["homogeneous"], "shared"),
    (SMALL["homogeneous"], "none"),
    (SMALL["standard"], "shared"),
    (SMALL["standard"], "separate"),
    (replace(SMALL["standard"], blocks=(3, 0, 0), stem_stride=2), "separate"),
    (BOTTLENECK, "separate"),
    (replace(SMALL["standard"], blocks=(2, 1, 0)), "shared"),
    (replace(BOTTLENECK, blocks=(1, 0, 2), bare_levels=(0, 1)), "shared"),
    (replace(BOTTLENECK, blocks=(0, 0, 0), stem="convolution", stem_stride=2), "shared"),
]


@pytest.mark.parametrize(("config", "exits"), CASES)
@pytest.mark.parametrize("train", [False, True])
def test_forward_pass_is_that_of_the_independent_implementation(config, exits, train):
    config = replace(config, exits=exits, pixel_mean=(0.2, -0.1), pixel_deviation=(1.5, 0.5))
    images = random_images(config)
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))
        logits, _ = apply(
            config, variables, images.astype(np.float64), train=train, execution=DOUBLE
        )
        params, stats = jax.tree.map(np.asarray, tuple(variables))
        oracle = numpy_resnet.forward(config, params, stats, images.astype(np.float64), train)
        assert logits.shape == (config.outputs, len(images), config.classes)
        np.testing.assert_allclose(logits, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("config", "exits"), CASES[2:6])
def test_gradients_are_finite_differences_of_the_independent_implementation(config, exits):
    config = replace(config, exits=exits)
    images = random_images(config).astype(np.float64)
    weights = np.random.default_rng(3).normal(size=(config.outputs, len(images), config.classes))
    with jax.enable_x64(True):
        variables = to_float64(random_variables(config))

        def objective(params):
            logits, _ = apply(
                config,
                Variables(params, variables.batch_stats),
                images,
                train=True,
                execution=DOUBLE,
            )
            return jnp.sum(weights * jnp.tanh(logits))

        gradient = jax.tree.map(np.asarray, quick_jit(jax.grad(objective))(variables.params))
        params, stats = jax.tree.map(np.asarray, tuple(variables))

    def oracle(params):
        logits = numpy_resnet.forward(config, params, stats, images, train=True)
        return np.sum(weights * np.tanh(logits))

    leaves, structure = jax.tree.flatten(params)
    slopes = jax.tree.leaves(gradient)
    rng = np.random.default_rng(4)
    step = 1e-6
    for index, (leaf, slope) in enumerate(zip(leaves, slopes, strict=True)):
        if not leaf.size:
            continue
        direction = rng.normal(size=leaf.shape)

        def moved(sign, index=index, leaf=leaf, direction=direction):
            changed = [*leaves]
            changed[index] = leaf + sign * step * direction
            return oracle(jax.tree.unflatten(structure, changed))

        numeric = (moved(1) - moved(-1)) / (2 * step)
        np.testing.assert_allclose(np.sum(slope * direction), numeric, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        ("homogeneous", "float32", 1e-6),
        ("standard", "float64", 1e-12),
        pytest.param("homogeneous", "float64", 1e-12, marks=pytest.mark.slow),
        pytest.param("standard", "float32", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_scanned_and_unrolled_are_equal(name, precision, tolerance):
    """Logits, batch statistics and gradients, relative to their largest entry."""
    config = replace(SMALL[name], exits="separate")
    with jax.enable_x64(precision == "float64"):
        variables = config.init(jax.random.key(0))
        if precision == "float64":
            variables = to_float64(variables)
        images = random_images(config).astype(precision)

        def run(unroll):
            execution = Execution(precision=precision, unroll=unroll, remat="none")

            def mean_logit(params):
                logits, stats = apply(
                    config,
                    Variables(params, variables.batch_stats),
                    images,
                    train=True,
                    execution=execution,
                )
                return jnp.mean(jnp.square(logits)), (logits, stats)

            return quick_jit(jax.grad(mean_logit, has_aux=True))(variables.params)

        scanned, unrolled = jax.tree.map(np.asarray, (run(False), run(True)))
    for got, wanted in zip(jax.tree.leaves(scanned), jax.tree.leaves(unrolled), strict=True):
        scale = max(np.max(np.abs(wanted), initial=0), 1.0)
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("remat", ["convolutions", "everything"])
def test_remat_changes_no_gradient(remat):
    config = SMALL["standard"]
    variables = random_variables(config)
    images = random_images(config)

    def gradient(remat):
        def objective(params):
            execution = Execution(remat=remat)
            logits, _ = apply(
                config,
                Variables(params, variables.batch_stats),
                images,
                train=True,
                execution=execution,
            )
            return jnp.mean(logits**2)

        return quick_jit(jax.grad(objective))(variables.params)

    for got, wanted in zip(
        jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient("none")), strict=True
    ):
        scale = np.max(np.abs(wanted), initial=1e-6)
        np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("blocks_before", [0, 1, 2, 3])
def test_lemma_1_zero_residual_branches_leave_every_later_output_equal(name, blocks_before):
    """With one set of statistics for all heads, the outputs from M on are equal."""
    config = SMALL[name]
    variables = random_variables(config)
    removed = range(blocks_before, config.depth)
    params = zero_branches(config, variables.params, removed)
    stats = dict(variables.batch_stats)
    for segment in config.system().blocks:
        shape = (segment.length,) if segment.stacked else ()
        exit_stats = jax.tree.map(
            lambda leaf, s=shape: jnp.broadcast_to(leaf, s + leaf.shape), stats["output_block"]
        )
        stats[segment.name] = {**stats[segment.name], "exit": exit_stats}
    logits, _ = apply(config, Variables(params, stats), random_images(config))
    later = np.asarray(logits[blocks_before:])
    # The states are equal to the bit; each head is compiled for itself, and may round otherwise.
    np.testing.assert_allclose(later, np.broadcast_to(later[0], later.shape), rtol=0, atol=2.5e-7)
    if blocks_before:
        assert np.abs(logits[blocks_before - 1] - logits[blocks_before]).max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_lemma_1_holds_in_training_mode_too(name):
    config = SMALL[name]
    variables = random_variables(config)
    params = zero_branches(config, variables.params, range(2, config.depth))
    images = random_images(config)
    logits, _ = apply(config, Variables(params, variables.batch_stats), images, train=True)
    # Each head takes its own moments of the same state; XLA may sum them in another order.
    np.testing.assert_allclose(
        logits[2:], np.broadcast_to(logits[2], logits[2:].shape), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_lemma_2_a_subresnet_computes_the_intermediate_output(name, exits):
    config = replace(SMALL[name], exits=exits)
    network = Network(config, *random_variables(config))
    images = random_images(config)
    outputs, _ = apply(config, network.variables, images)
    for blocks in range(config.depth + 1):
        cut = subresnet(network, blocks)
        logits, _ = apply(cut.architecture, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[blocks], rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    config = SMALL["standard"]
    variables = config.init(jax.random.key(0))
    images = random_images(config)
    execution = Execution(precision="bfloat16")
    logits, stats = apply(config, variables, images, train=True, execution=execution)
    exact, _ = apply(config, variables, images, train=True)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype("float32")}
    difference = np.abs(logits - exact).max()
    assert 0 < difference < 0.1


def test_running_statistics_move_by_the_momentum():
    config = SMALL["homogeneous"]
    variables = config.init(jax.random.key(0))
    images = random_images(config)
    _, stats = apply(config, variables, images, train=True, momentum=0.75)
    stem = numpy_resnet.convolve(
        images.astype(np.float64), np.asarray(variables.params["stem"]["convolution"]["kernel"])
    )
    running = stats["stem"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.25 * stem.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(running["variance"], 0.75 + 0.25 * stem.var((0, 1, 2)), rtol=1e-5)
    _, unchanged = apply(config, variables, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables.batch_stats)


def test_subresnet_keeps_the_later_projections_in_its_head():
    config = ResNetConfig.standard(54).subresnet(20)
    assert config.blocks == (18, 2, 0)
    assert config.filters == (16, 32, 64)
    assert config.state_level == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"blocks": (3,), "filters": (4, 8)}, "same number of levels"),
        ({"blocks": (-1,), "filters": (4,)}, "blocks is .* at least 0"),
        ({"blocks": (3.5,), "filters": (4,)}, "whole numbers"),
        ({"blocks": (1,), "filters": (4,), "image_shape": ()}, "image_shape is"),
        ({"blocks": (1,), "filters": (4,), "pixel_deviation": (float("nan"),)}, "finite"),
        ({"blocks": (2, 0, 1), "filters": (4, 4, 4)}, "only the last levels"),
        ({"blocks": (1,), "filters": (0,)}, "filters is"),
        ({"blocks": (1,), "filters": (4,), "classes": 1}, "classes is 1"),
        ({"blocks": (1,), "filters": (4,), "exits": "all"}, "none, shared, separate"),
        ({"blocks": (1,), "filters": (4,), "block": "wide"}, "basic, bottleneck"),
        ({"blocks": (1,), "filters": (4,), "stem": "patches"}, "convolution, imagenet"),
        ({"blocks": (1,), "filters": (4,), "stem": "imagenet", "stem_stride": 2}, "leave it at 1"),
        ({"blocks": (0, 1), "filters": (4, 4), "block": "bottleneck"}, "only the last levels"),
        ({"blocks": (1,), "filters": (4,), "stem_stride": 0}, "stem_stride is 0"),
        ({"blocks": (1,), "filters": (4,), "image_shape": (8, 8)}, "height, width, channels"),
        ({"blocks": (1,), "filters": (4,), "pixel_mean": (0.0, 0.0)}, "each of the 3 channels"),
        ({"blocks": (1,), "filters": (4,), "pixel_deviation": (0.0,)}, "must be positive"),
    ],
)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**fields)


def test_more_blocks_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="cannot keep 13 blocks: this network has 12"):
        ResNetConfig.homogeneous(12).subresnet(13)


def test_uneven_levels_are_refused():
    with pytest.raises(ValueError, match="divisible by the 3 levels"):
        ResNetConfig.standard(blocks=10)


def test_images_of_another_shape_are_refused():
    config = SMALL["homogeneous"]
    variables = config.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"this network needs \[batch, 8, 8, 2\]"):
        apply(config, variables, np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="float64 needs jax_enable_x64"):
        apply(config, variables, random_images(config), execution=DOUBLE)
