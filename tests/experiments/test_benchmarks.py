"""The benchmark of a training step, on networks of three blocks."""

import json

import numpy as np
import pytest
from programs import call

from experiments.benchmarks import step
from ocresnet.systems.resnet import ResNetConfig


@pytest.mark.slow
def test_a_part_is_measured_and_written_and_read_the_second_time(tmp_path, monkeypatch):
    """Stage cost over plain, standard and homogeneous: four compiled training steps."""
    output = tmp_path / "jax_0.10"
    arguments = ["--parts=stage_cost", "--blocks=3", "--rounds=2", f"--output={output}"]
    arguments += ["--batch_size=2", "--homogeneous_batch_size=2"]
    code, printed, errors = call(step.main, *arguments)
    assert code == 0, errors
    record = json.loads((tmp_path / "jax_0.10.json").read_text())
    assert [row["of"] for row in record["rows"]] == ["standard", "homogeneous"]
    for row in record["rows"]:
        (line,) = row["lines"]
        assert len(line["seconds"]["plain"]) == 2 and line["milliseconds"] > 0
        assert f"| stage_cost | {line['what']} | {line['value']} |" in printed
    monkeypatch.setattr(step, "make_step", None)
    assert call(step.main, *arguments).code == 0
    assert json.loads((tmp_path / "jax_0.10.json").read_text())["rows"] == record["rows"]


@pytest.mark.parametrize("stage_cost", [0.0, step.GAMMA])
def test_the_network_in_pytorch_is_ours(stage_cost):
    """Two training steps of each: the same loss before and after an update, over three levels."""
    pytest.importorskip("torch")
    from experiments.benchmarks.torch_network import torch_step

    network = ResNetConfig.standard(
        6, (4, 6, 8), image_shape=(8, 8, 3), exits="shared" if stage_cost else "none"
    )
    ours = step.make_step(network, stage_cost, batch_size=4)
    batch = step.images_and_labels(network, 4)
    theirs = torch_step(network, ours.variables, *batch, stage_cost, channels_last=False)
    np.testing.assert_allclose(theirs(), ours.first_objective, rtol=1e-4)
    np.testing.assert_allclose(theirs(), ours(), rtol=1e-3)
