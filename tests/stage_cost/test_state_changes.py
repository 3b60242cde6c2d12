"""Changes of the state against the independent implementation, block by block."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.embedding import embed
from ocresnet.stage_cost.state_changes import state_changes
from ocresnet.systems.network import Network
from tests.conftest import SMALL, random_images, random_network
from tests.systems import numpy_resnet as oracle


def changes_of(network: Network, images: np.ndarray, train: bool) -> np.ndarray:
    """Norms, relative norms and cosines of every sample: [blocks, 3, batch]."""
    config, images = network.architecture, images.astype(np.float64)
    params, stats = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), tuple(network.variables)
    )
    x = oracle.convolve(images, params["stem"]["convolution"]["kernel"])
    x = oracle.relu(oracle.batch_norm(params["stem"]["norm"], stats["stem"]["norm"], x, train))
    values = []
    for block, block_stats, before, stage in oracle.blocks_in_order(config, params, stats):
        change = oracle.branch(
            block["residual"], block_stats["residual"], x, 1 + (before != stage), train
        )
        if before != stage:
            x = oracle.project(params["projections"][f"level_{stage}"]["kernel"], x, stage)
        flat_x, flat_change = x.reshape(len(x), -1), change.reshape(len(x), -1)
        norm, before_norm = np.linalg.norm(flat_change, axis=1), np.linalg.norm(flat_x, axis=1)
        cosines = (flat_x * flat_change).sum(1) / before_norm / norm
        values.append([norm, norm / before_norm, cosines])
        x = x + change
    return np.array(values)


@pytest.mark.parametrize(("name", "exits"), [("homogeneous", "shared"), ("standard", "separate")])
def test_they_are_those_of_the_independent_implementation(name, exits):
    network = random_network(replace(SMALL[name], exits=exits))
    images = random_images(network.architecture, batch=7)
    wanted = changes_of(network, images, train=False).mean(-1)
    assert np.ptp(wanted[:, 2]) > 0.1
    got = state_changes(network, images, batch_size=3)
    np.testing.assert_allclose(got, wanted.T, rtol=1e-4, atol=1e-5)
    # With the statistics of each batch; the seventh image is left out.
    parts = [changes_of(network, images[i : i + 3], train=True) for i in (0, 3)]
    got = state_changes(network, images, batch_size=3, mode="training")
    np.testing.assert_allclose(got, np.mean(parts, (0, -1)).T, rtol=1e-4, atol=1e-5)


def test_blocks_that_do_nothing_change_nothing():
    config = SMALL["homogeneous"]
    network = embed(random_network(config.subresnet(1)), config)
    got = state_changes(network, random_images(config))
    assert all(values[0] != 0 and np.all(values[1:] == 0) for values in got)


def test_a_network_without_blocks_has_no_changes():
    config = SMALL["standard"].subresnet(0)
    got = state_changes(random_network(config), random_images(config))
    assert [values.shape for values in got] == [(0,)] * 3


def test_what_does_not_fit_is_refused():
    network = random_network(SMALL["homogeneous"])
    images = random_images(network.architecture)
    with pytest.raises(ValueError, match="images have shape"):
        state_changes(network, images[:, :4])
    with pytest.raises(ValueError, match="no samples"):
        state_changes(network, images[:0])
    with pytest.raises(ValueError, match="mode is 'train', but must be one of inference, training"):
        state_changes(network, images, mode="train")
