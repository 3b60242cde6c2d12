"""Saving and loading networks."""

import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from ocresnet.systems import network as networks
from ocresnet.systems.counts import multiply_adds
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.summary import summary
from tests.conftest import SMALL, apply, random_images, random_network
from tests.systems.every_family import EVERY
from tests.systems.lemmas import subresnet


def test_a_pruned_network_loads_without_the_original(tmp_path):
    config = SMALL["standard"]
    network = subresnet(random_network(config), 3)
    networks.save(network, tmp_path / "pruned")
    loaded = networks.load(tmp_path / "pruned")
    assert loaded.architecture == network.architecture
    images = random_images(config)
    np.testing.assert_array_equal(
        apply(loaded.architecture, loaded.variables, images)[0],
        apply(network.architecture, network.variables, images)[0],
    )


@pytest.mark.parametrize("name", EVERY)
def test_networks_of_every_family_come_back(name, tmp_path):
    network = random_network(EVERY[name])
    networks.save(network, tmp_path)
    loaded = networks.load(tmp_path)
    assert loaded.architecture == network.architecture
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(network.variables)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
    described = json.loads((tmp_path / networks.ARCHITECTURE_FILE).read_text())
    assert described["classes"] == network.architecture.classes


@dataclass(frozen=True)
class Unlisted(MLPConfig):
    """A family that nobody registered."""


def test_a_family_that_is_not_registered_is_not_saved(tmp_path):
    network = networks.create(Unlisted((), image_shape=(1, 1, 2), classes=2))
    with pytest.raises(ValueError, match="Unlisted is no known family of networks: call"):
        networks.save(network, tmp_path / "network")
    assert not (tmp_path / "network").exists()


@pytest.mark.parametrize("name", EVERY)
def test_a_network_is_shown_as_a_table(name):
    network = random_network(EVERY[name])
    shown = repr(network)
    assert shown == summary(network.architecture)
    lines = shown.splitlines()
    assert lines[0].startswith(f"{type(network.architecture).__name__}(classes=")
    assert len(lines) <= len(network.architecture.system().segments) + 4
    assert "array" not in shown.lower()
    assert f"{multiply_adds(network.architecture).total:,}" in lines[-1]


def test_showing_a_network_reads_none_of_its_arrays():
    whole = random_network(SMALL["standard"])
    assert repr(whole.replace(params=None, batch_stats=None)) == repr(whole)


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
    other = replace(network.architecture, pixel_mean=(0.1,))
    assert networks.fingerprint(networks.load(tmp_path).replace(architecture=other)) != wanted


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no saved network: network\.json"):
        networks.load(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "shape", "other family"])
def test_a_damaged_network_is_refused(tmp_path, damage):
    networks.save(networks.create(SMALL["homogeneous"]), tmp_path)
    file = tmp_path / networks.VARIABLES_FILE
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "shape":
        file = tmp_path / networks.ARCHITECTURE_FILE
        file.write_text(file.read_text().replace("6", "7", 1))
    else:
        networks.save(networks.create(MLPConfig((3,))), tmp_path / "other")
        (tmp_path / "other" / networks.ARCHITECTURE_FILE).replace(
            tmp_path / networks.ARCHITECTURE_FILE
        )
    with pytest.raises(ValueError, match="the saved network in .* is damaged: "):
        networks.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        '{"family": "resnet"',
        '{"family": "transformer"}',
        '{"family": null}',
        '{"family": ["resnet"]}',
        '{"family": "resnet", "blocks": {}, "filters": null}',
        '{"family": "resnet", "blocks": [1e400], "filters": [6]}',
        '{"family": "mlp", "hidden": [1], "depth": 3}',
        '{"family": "mlp", "pixel_mean": ["a"]}',
        '{"family": "mlp", "pixel_mean": [NaN]}',
        '{"family": "mlp", "hidden": [1000000000000000000000000]}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_damaged_descriptions_are_refused(text, tmp_path):
    networks.save(networks.create(MLPConfig((), image_shape=(1, 1, 2), classes=2)), tmp_path)
    file = tmp_path / networks.ARCHITECTURE_FILE
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="the saved network in .* is damaged: "):
        networks.load(tmp_path)
