"""Lemma 2: a SubResNet inside a deeper network computes what it computes alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.embedding import embed
from ocresnet.stage_cost.pruning import prune
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, apply, random_images, random_network
from tests.systems import numpy_resnet


def subresnet(config: ResNetConfig, blocks: int) -> Network:
    return random_network(config.subresnet(blocks), seed=blocks)


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def outputs(network: Network, images: np.ndarray, train: bool) -> np.ndarray:
    """Of the independent implementation, in float64."""
    params, stats = in_float64(network.params), in_float64(network.batch_stats)
    return numpy_resnet.forward(network.architecture, params, stats, images, train)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("exits", ["shared", "separate", "none"])
@pytest.mark.parametrize(("name", "blocks"), [("homogeneous", 2), ("standard", 0), ("standard", 3)])
def test_all_outputs_from_the_cut_on_are_the_subresnets(name, blocks, exits, train):
    config = replace(SMALL[name], exits=exits)
    network = subresnet(config, blocks)
    images = random_images(config, batch=6)
    alone = outputs(network, images, train)
    deep = outputs(embed(network, config), images, train)
    assert len(deep) == config.outputs
    wanted = [*alone, *[alone[-1]] * (config.outputs - len(alone))]
    np.testing.assert_allclose(deep, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_the_library_computes_the_same(train):
    config = SMALL["homogeneous"]
    network = embed(subresnet(config, 2), config)
    images = random_images(config, batch=6)
    logits = apply(config, network.variables, images, train=train)[0]
    np.testing.assert_allclose(logits, outputs(network, images, train), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[3:], [logits[2]] * 2, rtol=1e-6)


def test_only_inference_needs_the_running_statistics_of_the_own_output():
    config = SMALL["homogeneous"]
    deep = embed(subresnet(config, 1), config)
    images = random_images(config, batch=6)
    stats = jax.tree.map(np.array, deep.batch_stats)
    stats["level_0"]["exit"]["norm"]["mean"][2] += 0.5
    other = deep.replace(batch_stats=stats)
    difference = np.abs(outputs(other, images, False) - outputs(deep, images, False))
    assert difference[2].max() > 1e-2
    assert np.delete(difference, 2, axis=0).max() == 0
    np.testing.assert_array_equal(outputs(other, images, True), outputs(deep, images, True))


@pytest.mark.parametrize("exits", ["shared", "separate"])
@pytest.mark.parametrize("name", SMALL)
def test_pruning_undoes_it(name, exits):
    config = replace(SMALL[name], exits=exits)
    for blocks in range(config.depth + 1):
        network = subresnet(config, blocks)
        back = prune(embed(network, config), blocks)
        wanted = prune(network, blocks)  # where exits are separate, without those of the blocks
        assert back.architecture == wanted.architecture
        jax.tree.map(np.testing.assert_array_equal, back.variables, wanted.variables)


def test_it_has_the_arrays_of_a_network_trained_at_that_depth():
    config = replace(SMALL["standard"], exits="separate")
    fresh = jax.eval_shape(lambda: config.init(jax.random.key(0)))
    deep = embed(subresnet(config, 1), config)
    assert jax.tree.map(np.shape, deep.variables) == jax.tree.map(lambda leaf: leaf.shape, fresh)


def test_a_network_that_is_no_subresnet_is_refused():
    config = SMALL["standard"]
    for network in (subresnet(replace(config, exits="none"), 2), subresnet(config, 6)):
        with pytest.raises(ValueError, match="is not a SubResNet of"):
            embed(network, config.subresnet(4))
