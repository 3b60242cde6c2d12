"""The notebooks: they run as they are, and are kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "notebooks"
DEPTH, TIME = "depth_on_digits", "continuous_time"

RUN = """
import json, sys

names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        names.update(json.loads(sys.argv[2]).get(cell["id"], {}))
import matplotlib.pyplot as plt

"""

REPORT_ON_DEPTH = """
accuracy = names["test_accuracy"]
networks = ("network", "small", "surgical", "single")
measured = {name: accuracy(names[name]) for name in networks}
measured |= {name: accuracy(names[name].network) for name in ("tuned", "distilled")}
kept = {name: choice.blocks for name, choice in names["chosen"].items()}
early = float((names["early"].labels == names["data"].test_labels).mean())
print(json.dumps({"accuracy": measured, "kept": kept, "early": early,
                  "blocks": float(names["early"].blocks.mean()),
                  "figures": len(plt.get_fignums())}))
"""

REPORT_ON_TIME = """
print(json.dumps({name: names[name] for name in ("of_flow", "of_normal", "mass", "horizon")} | {
    "base": names["base"].std(axis=0).tolist(), "figures": len(plt.get_fignums()),
    "accuracy": [names["test_accuracy"](names[name]) for name in ("short",)]
    + [names["test_accuracy"](names["run"].network)]}))
"""


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[DEPTH, TIME])
def cells(request) -> list[dict]:
    return read(request.param)["cells"]


def run(name: str, report: str, quick: dict[str, dict]) -> dict:
    """Every cell in a process of its own, and what the report says in the end.

    Args:
      name: of the notebook.
      report: what follows its cells.
      quick: {cell: names that are given these values after it}.
    """
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-c", RUN + report, str(FOLDER / f"{name}.ipynb"), json.dumps(quick)],
        cwd=ROOT,
        env={**environment, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {DEPTH, TIME}


@pytest.mark.parametrize("name", [DEPTH, TIME])
def test_it_is_kept_without_outputs_and_with_names_for_its_cells(name):
    notebook = read(name)
    cells = notebook["cells"]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    names = [cell["id"] for cell in cells]
    assert len(set(names)) == len(names)
    # Jupyter gives new cells random names: a name here says what the cell is about.
    assert all(name.replace("-", "").isalpha() for name in names)


def test_its_first_code_cell_reports_the_backend(cells, capsys):
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    exec(compile("".join(first["source"]), first["id"], "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("backend: cpu")
    assert len(lines) == 9 and all(line.startswith("device: ") for line in lines[1:])


def test_on_colab_it_installs_what_a_tpu_needs_from_the_repository(cells, monkeypatch):
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    calls = []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: calls.append((*args, kwargs)))
    exec(compile("".join(first["source"]), first["id"], "exec"), {})
    ((command, options),) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert (ROOT / command[command.index("-r") + 1]).is_file()
    assert options == {"cwd": Path(sys.path[0]), "check": True}


@pytest.mark.slow
def test_the_one_on_depth_runs_and_tells_its_story():
    """Training twice, cuts, fine-tuning, early exits."""
    measured = run(DEPTH, REPORT_ON_DEPTH, {})
    accuracy, kept = measured["accuracy"], measured["kept"]
    assert accuracy["network"] > 94
    assert kept["with stage cost"] <= 8 < kept["without"]
    for name in ("small", "surgical"):
        assert accuracy[name] > accuracy["network"] - 2, name
    assert accuracy["single"] < accuracy["network"] - 1
    assert accuracy["tuned"] > accuracy["single"] - 1
    assert accuracy["distilled"] > accuracy["single"]
    assert measured["early"] > accuracy["network"] / 100 - 0.02 and measured["blocks"] < 8
    assert measured["figures"] == 2


@pytest.mark.slow
def test_the_one_on_continuous_time_runs_and_tells_its_story():
    """A flow and a Neural ODE, both trained for a part of the notebook's epochs."""
    measured = run(TIME, REPORT_ON_TIME, {"settings": {"FLOW_EPOCHS": 8, "ODE_EPOCHS": 20}})
    assert measured["of_flow"] > measured["of_normal"] + 0.3
    assert abs(measured["mass"] - 1) < 0.01
    assert all(0.7 < deviation < 1.3 for deviation in measured["base"])
    assert 0 < measured["horizon"] < 1
    short, whole = measured["accuracy"]
    assert whole > 80 and short > whole - 3
    assert measured["figures"] == 1  # that of the flow is shown by its cell
