"""The paper's plan, and one table and figure made from nothing at the smallest scale."""

import json
from functools import partial

import jax
import numpy as np
import pytest
from programs import Outcome, call

from experiments.common.presets import PRESETS
from experiments.paper import __main__ as binary
from experiments.paper import runs as paper_runs
from experiments.paper.numbers import BOUNDS, TABLE_1
from experiments.paper.plan import SCALES, default_artefacts, plan
from ocresnet import files
from ocresnet.training import records


def test_the_plan_of_table_1_is_that_of_the_presets():
    runs = {run.name: run for run in plan(["table1"], "cifar10", "paper", [0])}
    assert len(runs) == 8
    for name, run in runs.items():
        architecture, kind, _ = name.split("/")
        preset = PRESETS[f"{architecture}{kind}"]
        assert (run.network, run.training) == (preset.network, preset.training)
        assert run.data == "cifar10" and run.cost == pytest.approx(preset.cost)


def test_a_plan_holds_every_run_once():
    artefacts = default_artefacts("cifar10")
    names = [run.name for run in plan(artefacts, "cifar10", "paper", [0, 1])]
    assert len(set(names)) == len(names) == 2 * 2 * (10 + 2)
    depths = {int(name.split("/")[1].split("_")[0]) for name in names if "plain" in name}
    assert depths == set(range(0, 55, 6))


def test_only_the_paper_s_artefacts_are_made_by_default():
    assert default_artefacts("mnist") == ("table1", "table3", "figure3", "figure5")
    with pytest.raises(ValueError, match="no runs on digits"):
        plan(["table1"], "digits", "paper", [0])


def test_small_runs_keep_the_weight_of_all_stage_costs():
    (shared, *_), scale = plan(["table3"], "mnist", "small", [0]), SCALES["small"]
    assert shared.training.stage_cost * scale.blocks == pytest.approx(0.02 * 54)
    assert shared.data == "mnist[:10000]" and shared.network.depth == scale.blocks


def test_printed_bounds_without_a_subresnet_s_blocks_follow_from_its_loss():
    """Rows with M = 0 of Tables 2 and 3 are given by their first column (gamma 0.02, N = 54)."""
    for rows in BOUNDS.values():
        loss = rows[0].loss
        assert rows[0].objective_bound == pytest.approx((1 + 0.02 * 54) * loss, abs=2e-3)
        average = loss + (1 - 0.02) / 0.02 * loss / 55
        assert rows[0].average_loss_bound == pytest.approx(average, abs=2e-3)
    assert all(len(table) == 6 for table in TABLE_1.values())


def paper(*arguments: str) -> Outcome:
    return call(binary.main, "--scale=smoke", "--dataset=digits", *arguments)


@pytest.mark.slow
def test_a_table_and_a_figure_by_one_command(tmp_path, monkeypatch):
    """Planning, training, measuring and writing; the second time nothing is trained."""
    one_device = partial(paper_runs.fit, devices=jax.local_devices()[:1])
    monkeypatch.setattr(paper_runs, "fit", one_device)
    arguments = (f"--workdir={tmp_path}", "--artefact=table3", "--artefact=figure5")
    code, output, errors = paper(*arguments)
    assert code == 0, errors
    assert output.count("to do") == 2 * 4 and "epoch 1/1" in output
    folder = tmp_path / "smoke_digits"
    assert {path.name for path in folder.iterdir()} == {
        "table3.md",
        "table3.csv",
        "table3.json",
        "figure5.png",
        "figure5.pdf",
        "figure5.json",
        "runs.json",
    }
    table = json.loads((folder / "table3.json").read_text())
    assert table["made"]["versions"]["jax"] and len(table["rows"]) == 2
    figure = json.loads((folder / "figure5.json").read_text())
    assert len(figure["curves"]["ResNet-3 stage cost, shared"]["parameter_norms"]) == 3

    # The table's numbers are the measured losses' in the theorems' formulas.
    runs = tmp_path / "smoke" / "digits_homogeneous"
    shared, plain, shallow = (
        json.loads((runs / kind / "seed_0" / "measurements.json").read_text())
        for kind in ("3_shared", "3_plain", "0_plain")
    )
    gamma, decay = 0.02 * 54 / 3, 1e-3
    value = shared["train"]["losses"][-1] + gamma * sum(shared["train"]["losses"][:-1])
    value += decay / 2 * np.sum(np.square(shared["parameter_norms"]))
    losses = plain["train"]["losses"]
    bound = (1 + 0 * gamma) * losses[-1] + gamma * sum(losses[:-1])
    bound += decay / 2 * np.sum(np.square(plain["parameter_norms"]))
    rows = [line.split(",") for line in (folder / "table3.csv").read_text().splitlines()]
    cells = {row[0]: dict(zip(rows[0][:9], row[:9], strict=True)) for row in rows[1:]}
    assert float(cells["3"]["J_N"]) == pytest.approx(value, abs=1e-3)
    assert float(cells["3"]["J_bar"]) == pytest.approx(bound, abs=1e-3)
    loss = shallow["train"]["losses"][0]
    assert float(cells["0"]["J_bar"]) == pytest.approx((1 + 3 * gamma) * loss, abs=1e-3)
    assert len(shared["train_in_training_mode"]["losses"]) == 4

    # From what is kept of all runs together they are made again, without the runs.
    kept = [(folder / name).read_text() for name in ("table3.md", "table3.csv")]
    code, output, errors = paper(
        "--workdir=nowhere", f"--output={tmp_path}", "--redraw", *arguments[1:]
    )
    assert code == 0 and "to do" not in output and output.count("wrote") == 6, errors
    assert [(folder / name).read_text() for name in ("table3.md", "table3.csv")] == kept
    redrawn = json.loads((folder / "figure5.json").read_text())["curves"]
    assert redrawn == figure["curves"]

    again = paper(*arguments).output
    assert "to do" not in again and "epoch 1/1" not in again
    assert again.count("finished") == 2 * 4
    # A run that was made otherwise is not taken for one of these.
    config = runs / "3_shared" / "seed_0" / records.CONFIG
    other = files.read_json(config)
    other["training"]["epochs"] = 2
    files.write_json(config, files.sealed(other))
    code, _, errors = paper(*arguments, "--plan")
    assert code == 1 and "epochs is 2 there and 1 here" in errors


def test_a_run_that_is_interrupted_ends_the_pipeline(tmp_path, monkeypatch):
    class Interrupted:
        interrupted = True

    monkeypatch.setattr(paper_runs, "fit", lambda *args, **kwargs: Interrupted)
    code, output, errors = paper(f"--workdir={tmp_path}", "--artefact=table3")
    assert code == 130 and errors == "interrupted.\n" and "wrote" not in output
