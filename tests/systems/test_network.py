"""Saving and loading networks."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.pruning import prune
from ocresnet.systems import network as networks
from tests.conftest import SMALL, apply, random_images, random_network, random_variables


def test_a_pruned_network_loads_without_the_original(tmp_path):
    config = SMALL["standard"]
    network = prune(networks.Network(config, *random_variables(config)), 3)
    networks.save(network, tmp_path / "pruned")
    loaded = networks.load(tmp_path / "pruned")
    assert loaded.config == network.config
    images = random_images(config)
    np.testing.assert_array_equal(
        apply(loaded.config, loaded.variables, images)[0],
        apply(network.config, network.variables, images)[0],
    )


def test_create_depends_on_the_seed_alone():
    first, again, other = (networks.create(SMALL["homogeneous"], seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    stem = [network.params["stem"]["convolution"]["kernel"] for network in (first, other)]
    assert np.abs(stem[0] - stem[1]).max() > 0.1


def test_the_fingerprint_is_that_of_architecture_and_arrays(tmp_path):
    network = random_network(SMALL["homogeneous"])
    networks.save(network, tmp_path)
    wanted = networks.fingerprint(network)
    assert networks.fingerprint(networks.load(tmp_path)) == wanted
    assert networks.fingerprint(jax.device_put(network)) == wanted
    bias = network.params["head"]["dense"]["bias"]
    bias[0] = np.nextafter(bias[0], np.float32(np.inf))
    assert networks.fingerprint(network) != wanted
    config = replace(network.config, pixel_mean=(0.1,))
    assert networks.fingerprint(networks.load(tmp_path).replace(config=config)) != wanted


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no saved network: network\.json"):
        networks.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "config", "shape"])
def test_a_damaged_network_is_refused(tmp_path, damage):
    networks.save(networks.create(SMALL["homogeneous"]), tmp_path)
    if damage == "cut":
        file = tmp_path / networks.VARIABLES_FILE
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file = tmp_path / networks.CONFIG_FILE
        text = file.read_text()
        file.write_text(text[:-10] if damage == "config" else text.replace("6", "7", 1))
    with pytest.raises(ValueError, match="damaged"):
        networks.load(tmp_path)
