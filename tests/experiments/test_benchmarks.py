"""The benchmark of a training step, on networks of three blocks."""

import json

import pytest
from programs import call

from experiments.benchmarks import step


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
    monkeypatch.setattr(step, "Step", None)
    assert call(step.main, *arguments).code == 0
    assert json.loads((tmp_path / "jax_0.10.json").read_text())["rows"] == record["rows"]
