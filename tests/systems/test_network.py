"""Saving and loading networks."""

import json
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest

from ocresnet.files import digest, sealed, write_json
from ocresnet.systems import network as networks
from ocresnet.systems.counts import multiply_adds
from ocresnet.systems.families import describe
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
    described = json.loads((tmp_path / networks.ARCHITECTURE_FILE).read_text())["architecture"]
    assert described == json.loads(json.dumps(describe(network.architecture)))


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


@pytest.fixture
def saved(tmp_path):
    """The folder of a network."""
    networks.save(networks.create(MLPConfig((3,), image_shape=(1, 1, 2), classes=2)), tmp_path)
    return tmp_path


def assert_damaged(folder, why=""):
    with pytest.raises(ValueError) as refusal:
        networks.load(folder)
    message = str(refusal.value)
    assert message.startswith(f"the saved network in {folder} is damaged: ") and why in message


@pytest.mark.parametrize("name", [networks.VARIABLES_FILE, networks.ARCHITECTURE_FILE])
def test_every_flipped_bit_is_noticed(saved, name):
    content = (saved / name).read_bytes()
    networks.load(saved)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        if same_json(content, damaged):  # a blank for another
            continue
        (saved / name).write_bytes(damaged)
        assert_damaged(saved)


def same_json(content, damaged):
    try:
        return json.loads(content) == json.loads(damaged)
    except ValueError:
        return False


def test_cut_files_are_noticed(saved):
    for name in (networks.VARIABLES_FILE, networks.ARCHITECTURE_FILE):
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[:-20])
        assert_damaged(saved)
        (saved / name).write_bytes(content)
    networks.load(saved)


def test_files_of_two_networks_do_not_belong_together(saved):
    other = networks.create(MLPConfig((3,), image_shape=(1, 1, 2), classes=2), seed=1)
    networks.save(other, saved / "other")
    (saved / "other" / networks.VARIABLES_FILE).replace(saved / networks.VARIABLES_FILE)
    assert_damaged(saved, f"{networks.VARIABLES_FILE} is damaged: its content does not fit")


@pytest.mark.parametrize("hidden", [(4,), (), (3, 3)])
def test_arrays_of_another_architecture_are_refused(saved, hidden):
    """Though nothing was changed since they were written."""
    described = describe(MLPConfig(hidden, image_shape=(1, 1, 2), classes=2))
    rewrite(saved, described)
    assert_damaged(saved)


def rewrite(folder, described):
    """Put another architecture into `network.json`, with fitting digests."""
    variables = digest((folder / networks.VARIABLES_FILE).read_bytes())
    description = sealed({"architecture": described, "variables": variables})
    write_json(folder / networks.ARCHITECTURE_FILE, description)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "3", '"mlp"', "{}", '{"family": "mlp"}', "[" * 100_000, "\udcff"],
)
def test_descriptions_that_are_none_are_refused(saved, text):
    (saved / networks.ARCHITECTURE_FILE).write_bytes(text.encode(errors="surrogateescape"))
    assert_damaged(saved)


@pytest.mark.parametrize(
    ("described", "why"),
    [
        (None, "must be described with its family"),
        ({"family": "oracle"}, "one of resnet, mlp, cnn, residual_mlp"),
        ({"family": "resnet", "blocks": {}, "filters": None}, "blocks is {}, but must be a tuple"),
        ({"family": "resnet", "blocks": [1.0], "filters": [6]}, "whole numbers of at least 0"),
        ({"family": "mlp", "hidden": [1], "depth": 3}, "unexpected keyword argument 'depth'"),
        ({"family": "mlp", "pixel_mean": [float("nan")]}, "must be finite numbers"),
        ({"family": "mlp", "hidden": [10**24]}, ""),
    ],
)
def test_descriptions_of_impossible_architectures_are_refused(saved, described, why):
    rewrite(saved, described)
    assert_damaged(saved, why)
