"""The binaries on a small run: what they print and leave, and that it is the library's."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from programs import call, finish, interrupted_at_import_of, start

from experiments import choose_depth, demo, evaluate, export, finetune, prune, surgery, train
from experiments.common.command_line import parse as parse_flags
from experiments.common.flag_kinds import FlagValues
from experiments.common.runs import load_run
from ocresnet import load, load_exported, save
from ocresnet import prune as cut_to
from ocresnet.stage_cost.trajectory import logits_over_depth, trajectory
from ocresnet.systems import counts
from ocresnet.training.restore import restore_network

QUICK = (
    "--preset=digits_homogeneous12_shared",
    "--blocks=3",
    "--filters=8",
    "--epochs=2",
    "--devices=1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    code, output, errors = call(train.main, *QUICK, f"--workdir={workdir}")
    assert code == 0, errors
    assert "epoch 2/2" in output and "images/s" in output and "test accuracy" in output
    return workdir


def read(path: Path):
    return json.loads(path.read_text())


def rows_of(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"], row["images_per_second"]
    return rows


def test_a_run_that_shrank_is_read_as_it_was_measured(tmp_path):
    """Its exits were not trained after the last cut, and are calibrated when it is read."""
    flags = (*QUICK, "--epochs=3", "--shrink=1", "--shrink_tolerance=0", f"--workdir={tmp_path}")
    assert call(train.main, *flags).code == 0
    run = load_run(tmp_path)
    assert run.training.stage_cost > 0
    images, labels = run.data.images("test"), run.data.labels("test")
    measured = read(tmp_path / "trajectory.json")["test"]
    read_back = trajectory(run.network, images, labels)
    np.testing.assert_allclose(read_back.losses, measured["losses"], rtol=1e-5)
    uncalibrated = trajectory(restore_network(tmp_path), images, labels)
    assert np.abs(uncalibrated.losses[:-1] / read_back.losses[:-1] - 1).max() > 0.01


def test_train_leaves_metrics_figures_network_and_checkpoints(finished):
    assert [row["epoch"] for row in rows_of(finished)] == [1, 2]
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "depth.png",
        "epochs.png",
        "convergence.png",
    }
    for name in ("config.json", "run.json", "trajectory.json", "network/network.json"):
        assert (finished / name).is_file()
    assert read(finished / "config.json")["architecture"]["blocks"] == [3]


def test_evaluate_reads_the_run_and_tries_early_exits(finished):
    code, output, errors = call(evaluate.main, f"--workdir={finished}", "--exit_budget=0.9")
    assert code == 0, errors
    assert "early exit at confidence" in output
    evaluation = read(finished / "evaluation.json")
    trajectory = read(finished / "trajectory.json")
    np.testing.assert_allclose(
        evaluation["test"]["losses"], trajectory["test"]["losses"], rtol=1e-5
    )
    assert evaluation["early_exit"]["calibration"]["cost"] <= 0.9
    np.testing.assert_allclose(evaluation["parameter_norms"], trajectory["parameter_norms"])
    assert [len(values) for values in evaluation["state_changes"].values()] == [3, 3, 3]
    assert evaluation["made"]["versions"]["jax"]


def test_evaluate_takes_a_confidence_as_it_is(finished):
    """A threshold that every sample reaches at the first exit: no block is computed."""
    code, output, errors = call(evaluate.main, f"--workdir={finished}", "--confidence=0.01")
    assert code == 0, errors
    early = read(finished / "evaluation.json")["early_exit"]
    assert early["confidence"] == 0.01 and early["mean_blocks"] == 0
    assert "calibrated_on" not in early and "chosen on" not in output
    first = read(finished / "trajectory.json")["test"]["accuracies"][0]
    assert early["test_accuracy_early"] == pytest.approx(first)


def test_prune_writes_a_network_that_loads_alone(finished):
    code, output, errors = call(prune.main, f"--workdir={finished}", "--blocks=1")
    assert code == 0, errors
    assert "| residual blocks | 3 | 1 | 0.33 |" in output
    assert load(finished / "pruned").architecture.blocks == (1,)
    report, trajectory = read(finished / "pruning.json"), read(finished / "trajectory.json")
    np.testing.assert_allclose(
        report["pruned"]["accuracy"], trajectory["test"]["accuracies"][1], atol=1e-6
    )
    code, output, errors = call(prune.main, f"--workdir={finished}", "--tolerance=100")
    assert code == 0 and "depth rule: 0 of 3 blocks" in output, errors


def test_prune_finds_the_best_network_of_a_price(finished):
    whole = load(finished / "network").architecture
    cost = counts.multiply_adds(whole.subresnet(2)).total
    code, output, errors = call(prune.main, f"--workdir={finished}", f"--multiply_adds={cost}")
    assert code == 0 and f"at most {cost:.3g} multiply-adds on the validation set" in output, errors
    report = read(finished / "pruning.json")
    accuracies = read(finished / "trajectory.json")["validation"]["accuracies"][:3]
    assert report["pruned"]["blocks"] == np.argmax(accuracies) and report["tolerance"] is None
    assert report["multiply_adds"] == cost >= report["pruned"]["multiply_adds"]
    code, _, errors = call(prune.main, f"--workdir={finished}", "--blocks=1", "--multiply_adds=1e9")
    assert code == 1 and "give one of --blocks, --tolerance and --multiply_adds" in errors


@pytest.mark.slow
def test_finetune_trains_the_cut_network_with_the_whole_as_teacher(finished, tmp_path):
    """Cutting, training on with distillation, the accuracies; the same command again."""
    arguments = [f"--workdir={finished}", f"--output={tmp_path}", "--blocks=1", "--epochs=2"]
    arguments += ["--devices=1", "--distillation=0.5"]
    code, output, errors = call(finetune.main, *arguments)
    assert code == 0, errors
    measured = read(tmp_path / "finetuning.json")
    trajectory = read(finished / "trajectory.json")
    for name, blocks in (("whole", 3), ("cut", 1)):
        assert measured[name]["blocks"] == blocks
        for part in ("validation", "test"):
            np.testing.assert_allclose(
                measured[name][part], trajectory[part]["accuracies"][blocks], atol=1e-6
            )
    assert rows_of(tmp_path)[-1]["test"]["accuracies"] == [measured["fine-tuned"]["test"]]
    assert f"| fine-tuned | 1 | {100 * measured['fine-tuned']['validation']:.2f} |" in output
    assert load(tmp_path / "network").architecture.blocks == (1,)
    code, output, errors = call(finetune.main, *arguments)
    assert code == 0 and "epoch 1/2" not in output, errors
    assert read(tmp_path / "finetuning.json") == measured
    # What it leaves is a run like any other, on the same data with the same split.
    code, _, errors = call(evaluate.main, f"--workdir={tmp_path}")
    assert code == 0, errors
    # A run without distillation is another one.
    code, _, errors = call(finetune.main, *arguments[:-1])
    assert code == 1 and "distillation is 0.5 there and 0.0 here" in errors


def test_export_writes_the_whole_or_the_pruned_network(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "network", run / "network")
    save(cut_to(load(finished / "network"), 2), run / "pruned")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    for arguments, name, blocks in (((), "pruned", 2), (("--nopruned",), "whole", 3)):
        code, output, errors = call(
            export.main, f"--workdir={run}", "--pixel=uint8", "--images=3", *arguments
        )
        assert code == 0 and f"wrote the {name} network of {blocks} blocks" in output, errors
        logits = load_exported(run / "model.stablehlo")(images)
        network = load(run / ("pruned" if name == "pruned" else "network"))
        wanted = logits_over_depth(network, images)[-1]
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_surgery_compares_the_criteria_and_cuts(finished, monkeypatch):
    """Every order and its accuracies, table, figure and the network that is left; again."""
    few = (f"--workdir={finished}", "--samples=40", "--statistics=60", "--test_samples=100")
    code, output, errors = call(surgery.main, *few, "--keep=2")
    assert code == 0, errors
    result = read(finished / "surgery.json")
    names = {f"{row['criterion']} ({row['order']})" for row in result["rows"]}
    assert len(result["rows"]) == len(names) == 12
    for row in result["rows"]:
        assert row["kept"] == [3, 2, 1, 0] and len(row["accuracy"]) == 4
        assert f"| {row['criterion']} ({row['order']}) |" in output
    whole = {row["accuracy"][0] for row in result["rows"]}
    assert len(whole) == 1
    cut = read(finished / "surgical.json")
    (removed,) = cut["removed"]
    greedy = next(
        row
        for row in result["rows"]
        if row["criterion"] == "loss_increase" and row["order"] == "greedy"
    )
    assert removed == greedy["removed"][0] and cut["order"] == "greedy"
    assert load(finished / "surgical").architecture.blocks == (2,)
    assert (finished / "surgery.md").read_text() in output
    assert (finished / "figures" / "surgery.png").is_file()
    # The same settings again: the orders are read, only the cut is another one.
    monkeypatch.setattr(surgery, "greedy_removal_order", None)
    code, output, errors = call(
        surgery.main, *few, "--tolerance=100", "--criterion=taylor", "--order=greedy"
    )
    assert code == 0 and "taylor (greedy)" in output, errors
    assert load(finished / "surgical").architecture.blocks == (0,)


@pytest.mark.slow
def test_choose_depth_sweeps_and_recommends_and_reads_what_is_there(tmp_path, monkeypatch):
    """Two stage costs, each a run of its own; a second time nothing is trained."""
    arguments = (*QUICK, f"--workdir={tmp_path}", "--tolerance=100", "--gamma=0.5", "--gamma=0")
    code, output, errors = call(choose_depth.main, *arguments)
    assert code == 0, errors
    record = read(tmp_path / "choose_depth.json")
    assert [row["stage_cost"] for row in record["rows"]] == [0.5, 0.0]
    for row, name in zip(record["rows"], ("0.5_constant", "0_constant"), strict=True):
        trajectory = read(tmp_path / name / "trajectory.json")
        for part in ("validation", "test"):
            np.testing.assert_allclose(row[part], trajectory[part]["accuracies"])
    assert "0 blocks." in output  # with such a tolerance everything can go
    monkeypatch.setattr(choose_depth, "fit", None)
    assert call(choose_depth.main, *arguments).code == 0
    assert read(tmp_path / "choose_depth.json")["rows"] == record["rows"]


@pytest.mark.parametrize("flag", ["--shrink=1", "--recipe=shrink"])
def test_choosing_a_depth_compares_whole_networks(tmp_path, flag):
    """The recipe of a preset is left out; cuts that are asked for are refused."""
    small = ("--preset=mnist_homogeneous12_small", f"--workdir={tmp_path}")
    code, _, errors = call(choose_depth.main, *small, "--dataset=digits", flag)
    assert code == 1 and "leave out --shrink and --recipe=shrink" in errors
    values = FlagValues()
    flags = choose_depth.Flags(values)
    parse_flags(values, small)
    trials = list(flags.trials(flags.wanted(recipe="paper").training))
    assert {trial.shrink for trial in trials} == {()} and min(t.stage_cost for t in trials) == 0


def test_the_demo_is_three_commands_and_ends_with_the_first_that_fails(monkeypatch, tmp_path):
    called = []

    class Binary:
        def __init__(self, name, status):
            self.__name__, self.status = f"experiments.{name}", status

        def main(self, arguments):
            called.append((self.__name__, arguments))
            return self.status

    names = [binary.__name__ for binary, _ in demo.COMMANDS]
    assert names == ["experiments.train", "experiments.prune", "experiments.evaluate"]
    commands = ((Binary("one", 0), ["--x=1"]), (Binary("two", 130), []), (Binary("three", 0), []))
    monkeypatch.setattr(demo, "COMMANDS", commands)
    code, output, _ = call(demo.main, f"--workdir={tmp_path}")
    assert code == 130
    workdir = f"--workdir={tmp_path}"
    assert called == [("experiments.one", ["--x=1", workdir]), ("experiments.two", [workdir])]
    assert f"$ python -m experiments.one --x=1 {workdir}" in output
    monkeypatch.setattr(demo, "COMMANDS", commands[:1])
    code, output, _ = call(demo.main, f"--workdir={tmp_path}")
    assert code == 0 and "done in" in output


@pytest.mark.slow
def test_ctrl_c_while_figures_are_drawn_is_one_line_and_status_130(finished, tmp_path):
    """A process that gets SIGINT after its work, when it first needs matplotlib."""
    environment = interrupted_at_import_of("matplotlib.figure", tmp_path)
    arguments = (f"--workdir={finished}", "--blocks=1")
    code, output, errors = finish(start("experiments.prune", *arguments, **environment))
    assert (code, errors) == (130, "interrupted.\n") and "| residual blocks |" in output


@pytest.mark.slow
def test_a_real_sigkill_loses_no_finished_epoch(finished, tmp_path):
    """SIGKILL at an arbitrary moment, then the same command: the same metrics, to the bit."""
    process = start("experiments.train", *QUICK, f"--workdir={tmp_path}")
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metrics.read_text().count("\n") >= 1
    code, _, errors = call(train.main, *QUICK, f"--workdir={tmp_path}")
    assert code == 0, errors
    assert rows_of(tmp_path) == rows_of(finished)


def test_too_many_blocks_and_a_damaged_checkpoint_get_one_sentence(finished, tmp_path):
    code, _, errors = call(prune.main, f"--workdir={finished}", "--blocks=4")
    assert code == 1 and "cannot keep 4 blocks: this network has 3" in errors
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    for file in (damaged / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    code, _, errors = call(evaluate.main, f"--workdir={damaged}")
    assert code == 1 and "cannot be read" in errors and errors.count("\n") == 1
