"""Runs of flows beside each other."""

import json

from programs import call

from experiments import compare_flows


def run(folder, data, trace, seed, flow, normal, steps=8):
    """The workdir of a finished run, as far as it is read."""
    folder.mkdir()
    architecture = {"trace": trace, "solver": "rk4" if steps else "dopri5", "steps": steps}
    config = {"architecture": architecture, "training": {"seed": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    values = {"flow": flow, "own solver": flow + 0.5, "normal density": normal}
    test = {name: {"mean": value} for name, value in values.items()}
    (folder / "likelihood.json").write_text(json.dumps({"dataset": data, "test": test}))
    return f"--run={folder}"


def test_means_and_deviations_over_seeds(tmp_path):
    runs = [
        run(tmp_path / "a", "moons", "exact", 0, -1.0, -2.0),
        run(tmp_path / "b", "moons", "gaussian", 0, -1.5, -2.0),
        run(tmp_path / "c", "moons", "exact", 1, -1.2, -2.0),
        run(tmp_path / "d", "moons", "exact", 0, -1.7, -2.0, steps=4),
        run(tmp_path / "e", "moons", "exact", 0, -1.1, -2.0, steps=None),
    ]
    outcome = call(compare_flows.main, *runs, f"--output={tmp_path / 'out' / 'table'}")
    assert outcome.code == 0, outcome.errors
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2] == (
        "| moons | exact | rk4, 8 steps | 2 | -1.100 ± 0.141 | -0.600 ± 0.141 | -2.000 ± 0.000 |"
    )
    assert lines[3] == "| moons | gaussian | rk4, 8 steps | 1 | -1.500 | -1.000 | -2.000 |"
    assert lines[4] == "| moons | exact | rk4, 4 steps | 1 | -1.700 | -1.200 | -2.000 |"
    assert lines[5] == "| moons | exact | dopri5 | 1 | -1.100 | -0.600 | -2.000 |"
    record = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [one["seed"] for one in record["runs"]] == [0, 0, 1, 0, 0] and "commit" in record["made"]


def test_runs_are_needed(tmp_path):
    outcome = call(compare_flows.main, f"--output={tmp_path}/x")
    assert outcome.code == 1 and "--run and --output are needed" in outcome.errors
    outcome = call(compare_flows.main, f"--run={tmp_path}", f"--output={tmp_path}/x")
    assert outcome.code == 1 and "likelihood.json" in outcome.errors
