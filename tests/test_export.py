"""An exported network computes the same, in a process that does not know this package."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import export

from ocresnet.export import TRAILER, export_network, load_exported
from ocresnet.stage_cost.pruning import prune
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL, apply, random_images, random_network
from tests.stage_cost.families import CNN, INCEPTION, MLP, RESIDUAL_MLP, TRANSFORMER

ALONE = """
import sys
from pathlib import Path
import jax, numpy as np
model = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
images = np.load(sys.argv[2])
two, five = model.call(images[:2]), model.call(images)
np.savez(sys.argv[3], two=two, five=five, platforms=model.platforms)
assert not [name for name in sys.modules if name.startswith("ocresnet")]
"""


@pytest.fixture
def network():
    config = replace(SMALL["standard"], pixel_mean=(0.3, -0.2), pixel_deviation=(1.5, 0.7))
    return prune(random_network(config), 3)


def test_a_fresh_process_computes_the_same_for_any_number_of_images(network, tmp_path):
    images = random_images(network.architecture)
    export_network(network, tmp_path / "model")
    np.save(tmp_path / "images.npy", images)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    files = [tmp_path / name for name in ("model", "images.npy", "logits.npz")]
    command = [sys.executable, "-c", ALONE, *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = apply(network.architecture, network.variables, images)[0][-1]
    with np.load(tmp_path / "logits.npz") as logits:
        np.testing.assert_allclose(logits["five"], wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits["two"], wanted[:2], rtol=1e-5, atol=1e-5)
        assert set(logits["platforms"]) == {"cpu", "cuda", "tpu"}


def test_convolutions_are_plain_stablehlo(network, tmp_path):
    """Operations of StableHLO alone: no call into jaxlib, and no primitive of ours."""
    export_network(network, tmp_path / "model", batch_size=2)  # any number needs an assertion
    exported = jax.export.deserialize(bytearray((tmp_path / "model").read_bytes()))
    text = exported.mlir_module()
    assert text.count("stablehlo.convolution") >= 4 and "custom_call" not in text
    assert set(re.findall(r'= "?([a-z]+)\.', text)) == {"func", "stablehlo"}


def test_exits_pixels_and_batch_size_can_be_chosen(network, tmp_path):
    images = np.arange(2 * 9 * 8 * 2).reshape(2, 9, 8, 2).astype(np.uint8)
    export_network(
        network, tmp_path / "m", exits=True, batch_size=2, pixel="uint8", platforms=["cpu"]
    )
    model = load_exported(tmp_path / "m")
    wanted = apply(network.architecture, network.variables, images)[0]
    assert wanted.shape == (4, 2, 3)
    np.testing.assert_allclose(model(images), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(1, 9, 8, 2\), .* needs \[2, 9, 8, 2\]"):
        model(images[:1])


def test_bottlenecks_and_bare_skips_export(tmp_path):
    config = ResNetConfig(
        (1, 0, 1),
        (2, 3, 2),
        block="bottleneck",
        stem="imagenet",
        bare_levels=(1,),
        classes=3,
        image_shape=(16, 16, 1),
        exits="none",
    )
    network = random_network(config)
    images = random_images(config)
    export_network(network, tmp_path / "model")
    logits = load_exported(tmp_path / "model")(images)
    np.testing.assert_allclose(
        logits, apply(config, network.variables, images)[0][0], rtol=1e-5, atol=1e-5
    )


def test_damaged_files_are_refused_before_they_are_read(network, tmp_path, monkeypatch):
    path = tmp_path / "model"
    export_network(network, path, platforms=["cpu"])
    content = path.read_bytes()
    size = len(content)
    damaged = [b"", b"nothing", content[:-1], content[: size // 2], content[1:], content + b"x"]
    for place in (0, 4, 40, size // 3, size // 2, size - 120, size - 90, size - 30, size - 1):
        flipped = bytearray(content)
        flipped[place] ^= 1
        damaged.append(bytes(flipped))
    # Without the checksum of ours the reader would be given anything, and some of it ends it.
    damaged.append(content[: content.rindex(TRAILER)])
    monkeypatch.setattr(export, "deserialize", None)
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"model is damaged, or not a file of export_network"):
            load_exported(path)


OTHERS = {
    "residual_mlp": RESIDUAL_MLP,
    "transformer": TRANSFORMER,
    "mlp": MLP,
    "cnn": CNN,
    "inception": INCEPTION,
}


@pytest.mark.parametrize("architecture", OTHERS.values(), ids=OTHERS)
def test_other_families_export(architecture, tmp_path):
    network = random_network(architecture)
    images = random_images(architecture)
    wanted = apply(architecture, network.variables, images)[0]
    export_network(network, tmp_path / "own")
    logits = load_exported(tmp_path / "own")(images)
    np.testing.assert_allclose(logits, wanted[-1], rtol=1e-5, atol=1e-5)
    if architecture.outputs == 1:
        with pytest.raises(ValueError, match="exporting exits needs residual blocks, and a"):
            export_network(network, tmp_path / "exits", exits=True)
        return
    export_network(network, tmp_path / "exits", exits=True)
    logits = load_exported(tmp_path / "exits")(images)
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def test_impossible_wishes_are_refused(network, tmp_path):
    plain = replace(network, architecture=replace(network.architecture, exits="none"))
    for wish, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"platforms": ("cpu", "abacus")}, "must be some of cpu, cuda, rocm, tpu"),
        ({"platforms": ()}, "must be some of"),
        ({"pixel": "int4"}, "float32, uint8"),
        ({"exits": True}, "has no exits to export"),
    ):
        with pytest.raises(ValueError, match=message):
            export_network(plain, tmp_path / "model", **wish)
    with pytest.raises(FileNotFoundError, match="no exported network"):
        load_exported(tmp_path / "model")
    export_network(random_network(SMALL["homogeneous"]), tmp_path / "model")
    with pytest.raises(ValueError, match=r"this network needs \[batch, 8, 8, 2\]"):
        load_exported(tmp_path / "model")(np.zeros((1, 8, 8, 3)))
