"""Runs with and without stage cost beside each other."""

import json

import pytest
from programs import call

from experiments import compare_depth


def run(folder, accuracies):
    """The workdir of a finished run, as far as it is read."""
    folder.mkdir()
    measured = {"test": {"accuracies": accuracies}}
    (folder / "trajectory.json").write_text(json.dumps(measured))
    return folder


def test_means_over_seeds_in_a_table_a_record_and_a_figure(tmp_path):
    runs = [run(tmp_path / f"with_{i}", [0.5, 0.9 + 0.02 * i]) for i in range(2)]
    plain = run(tmp_path / "plain", [0.1, 0.9])
    output = tmp_path / "out" / "depth"
    arguments = [f"--run={folder}" for folder in runs] + [f"--plain={plain}"]
    outcome = call(compare_depth.main, *arguments, f"--output={output}")
    assert outcome.code == 0, outcome.errors
    assert "| 1 | 91.00 ± 1.41 | 90.00 |" in output.with_suffix(".md").read_text()
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["with"] == [[50.0, 90.0], [50.0, 92.0]] and "commit" in record["made"]
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("accuracies", [[0.1, 0.5, 0.9], [0.1]])
def test_networks_of_other_depths_are_refused(tmp_path, accuracies):
    one, other = run(tmp_path / "one", [0.5, 0.9]), run(tmp_path / "other", accuracies)
    outcome = call(compare_depth.main, f"--run={one}", f"--plain={other}", f"--output={tmp_path}/x")
    assert outcome.code == 1 and "one depth" in outcome.errors
