"""Bottlenecks and the ResNets for ImageNet: known sizes, pruning, exits at every depth."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.systems import counts
from ocresnet.systems.counts import multiply_adds
from ocresnet.systems.network import Network
from ocresnet.systems.network import apply as apply_network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import apply, random_images, random_variables
from tests.systems.lemmas import subresnet

SMALL = ResNetConfig(
    (2, 2), (4, 8), classes=3, image_shape=(16, 16, 3), block="bottleneck", stem="imagenet"
)

LEVELS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)
PIXELS = (56 * 56, 28 * 28, 14 * 14, 7 * 7)

PARAMETERS = {18: 11689512, 34: 21797672, 50: 25557032, 101: 44549160, 152: 60192808}
"""Of the networks of He et al. 2016a, as torchvision has them (also called v1)."""

MULTIPLY_ADDS = {18: 1.814, 34: 3.664, 50: 4.089, 101: 7.801, 152: 11.514}
"""10^9 of them, for an image of 224x224 pixels, likewise."""


def kernels_and_norms(depth):
    """Numbers in all kernels, in the norms of v1, and in those of v2 (ours), in plain numbers."""
    expansion = 4 if depth >= 50 else 1
    kernels, norms_1, norms_2 = 7 * 7 * 3 * 64, 2 * 64, 2 * 64
    before = 64
    for width, blocks in zip(WIDTHS, LEVELS[depth], strict=True):
        after = expansion * width
        for block in range(blocks):
            if expansion == 4:
                kernels += before * width + 9 * width * width + width * after
                norms_1 += 2 * (width + width + after)
                norms_2 += 2 * (before + width + width)
            else:
                kernels += 9 * before * width + 9 * width * width
                norms_1 += 2 * (width + width)
                norms_2 += 2 * (before + width)
            if block == 0 and before != after:
                kernels += before * after
                norms_1 += 2 * after  # v1 normalises projections too; here they stay linear
            before = after
    norms_2 += 2 * before  # of the output block
    return kernels, norms_1, norms_2


def initial(config):
    return jax.eval_shape(config.init, jax.random.key(0))


@pytest.mark.parametrize("depth", LEVELS)
def test_parameters_are_those_of_the_known_networks_but_for_the_places_of_the_norms(depth):
    config = ResNetConfig.imagenet(depth)
    assert config.blocks == LEVELS[depth] and config.exits == "shared"
    kernels, norms_1, norms_2 = kernels_and_norms(depth)
    dense = 512 * (4 if depth >= 50 else 1) * 1000 + 1000
    assert kernels + norms_1 + dense == PARAMETERS[depth]
    assert counts.parameter_count(initial(config).params) == kernels + norms_2 + dense


@pytest.mark.parametrize("depth", LEVELS)
def test_multiply_adds_are_those_of_the_known_networks(depth):
    config = ResNetConfig.imagenet(depth)
    cost = multiply_adds(config)
    assert round(cost.total / 1e9, 3) == MULTIPLY_ADDS[depth]
    assert cost.stem == 112 * 112 * 49 * 3 * 64
    assert len(cost.blocks) == len(cost.exits) == sum(LEVELS[depth]) == config.depth


def test_multiply_adds_of_bottlenecks_and_exits_by_hand():
    config = ResNetConfig.imagenet(50)
    cost = multiply_adds(config)
    first = PIXELS[0] * (64 * 64 + 9 * 64 * 64 + 64 * 256 + 64 * 256)
    # The opening 1x1 convolution comes before the stride of the 3x3 one.
    second = PIXELS[0] * 256 * 128 + PIXELS[1] * (9 * 128 * 128 + 128 * 512 + 256 * 512)
    assert cost.blocks[0] == first and cost.blocks[3] == second
    projections = [64 * 256, 256 * 512, 512 * 1024, 1024 * 2048]
    heads = [49 * sum(projections[level:]) + 2048 * 1000 for level in range(5)]
    starts = np.cumsum((0, *LEVELS[50]))
    np.testing.assert_array_equal(cost.exits[0], heads[0])
    for level in range(4):
        rest = cost.exits[starts[level] + 1 : starts[level + 1]]
        np.testing.assert_array_equal(rest, heads[level + 1])
    assert cost.output_block == heads[4]


def test_resnet_50_gives_an_exit_at_every_depth():
    config = ResNetConfig.imagenet(50)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
    variables = initial(config)
    logits, stats = jax.eval_shape(
        lambda variables, images: apply_network(config, variables, images, train=True),
        variables,
        images,
    )
    assert logits.shape == (17, 2, 1000)
    assert shapes(stats) == shapes(variables.batch_stats)


@pytest.mark.parametrize("exits", ["shared", "separate"])
def test_lemma_2_holds_for_bottlenecks(exits):
    config = replace(SMALL, exits=exits)
    network = Network(config, *random_variables(config))
    images = random_images(config)
    outputs, _ = apply(config, network.variables, images)
    for blocks in range(config.depth + 1):
        cut = subresnet(network, blocks)
        fresh = initial(cut.architecture)
        assert shapes(fresh.params) == shapes(cut.params)
        assert shapes(fresh.batch_stats) == shapes(cut.batch_stats)
        logits, _ = apply(cut.architecture, cut.variables, images)
        np.testing.assert_allclose(logits[-1], outputs[blocks], rtol=1e-5, atol=1e-6)
    assert subresnet(network, 0).architecture.state_level == -1


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="depth is 20, but must be one of 18, 34, 50, 101, 152"):
        ResNetConfig.imagenet(20)


def test_fields_of_the_imagenet_networks_can_be_changed():
    config = ResNetConfig.imagenet(18, classes=10, exits="none")
    assert (config.classes, config.exits, config.block) == (10, "none", "basic")


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
