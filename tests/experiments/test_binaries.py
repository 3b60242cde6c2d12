"""The binaries as a user starts them, in processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ocresnet import load, load_exported, prune, save
from ocresnet.stage_cost.trajectory import logits_over_depth

ROOT = Path(__file__).parents[2]
QUICK = (
    "--preset=digits_homogeneous12_shared",
    "--blocks=3",
    "--filters=8",
    "--epochs=2",
    "--milestones=1",
)


def start(program: str, *arguments: object) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{program}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(program: str, *arguments: object) -> tuple[int, str, str]:
    process = start(program, *arguments)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("run")
    code, output, errors = finish("train", *QUICK, f"--workdir={workdir}")
    assert code == 0, errors
    assert "epoch 2/2" in output and "images/s" in output and "test accuracy" in output
    return workdir


@pytest.mark.slow
def test_train_leaves_metrics_figures_network_and_checkpoints(finished):
    """Training, the records and the figures, end to end."""
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "depth.png",
        "epochs.png",
        "convergence.png",
    }
    for name in ("config.json", "run.json", "trajectory.json", "network/network.json"):
        assert (finished / name).is_file()
    command = json.loads((finished / "run.json").read_text())["sessions"][0]["command"]
    assert "--blocks=3" in command


@pytest.mark.slow
def test_evaluate_reads_the_run_and_tries_early_exits(finished):
    """Restoring, trajectories, calibration and early-exit inference."""
    code, output, errors = finish("evaluate", f"--workdir={finished}", "--exit_budget=0.9")
    assert code == 0, errors
    assert "early exit at confidence" in output
    evaluation = json.loads((finished / "evaluation.json").read_text())
    trajectory = json.loads((finished / "trajectory.json").read_text())
    np.testing.assert_allclose(
        evaluation["test"]["losses"], trajectory["test"]["losses"], rtol=1e-5
    )
    assert evaluation["early_exit"]["calibration"]["cost"] <= 0.9
    np.testing.assert_allclose(evaluation["parameter_norms"], trajectory["parameter_norms"])
    assert [len(values) for values in evaluation["state_changes"].values()] == [3, 3, 3]


@pytest.mark.slow
def test_prune_writes_a_network_that_loads_alone(finished):
    """The depth rule, a given depth, the report and the pruned network."""
    code, output, errors = finish("prune", f"--workdir={finished}", "--blocks=1")
    assert code == 0, errors
    assert "| residual blocks | 3 | 1 | 0.33 |" in output
    assert load(finished / "pruned").config.blocks == (1,)
    trajectory = json.loads((finished / "trajectory.json").read_text())
    report = json.loads((finished / "pruning.json").read_text())
    np.testing.assert_allclose(
        report["pruned"]["accuracy"], trajectory["test"]["accuracies"][1], atol=1e-6
    )
    code, output, errors = finish("prune", f"--workdir={finished}", "--tolerance=100")
    assert code == 0 and "depth rule: 0 of 3 blocks" in output, errors


@pytest.mark.slow
def test_finetune_trains_the_cut_network_with_the_whole_as_teacher(finished, tmp_path):
    """Cutting, training on with distillation, the accuracies; the same command again."""
    arguments = (f"--workdir={finished}", "--blocks=1", "--epochs=2", "--distillation=0.5")
    code, output, errors = finish("finetune", *arguments, f"--output={tmp_path}")
    assert code == 0, errors
    measured = json.loads((tmp_path / "finetuning.json").read_text())
    trajectory = json.loads((finished / "trajectory.json").read_text())
    for name, blocks in (("whole", 3), ("cut", 1)):
        assert measured[name]["blocks"] == blocks
        for part in ("validation", "test"):
            np.testing.assert_allclose(
                measured[name][part], trajectory[part]["accuracies"][blocks], atol=1e-6
            )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test"]["accuracies"] == [measured["fine-tuned"]["test"]]
    assert f"| fine-tuned | 1 | {100 * measured['fine-tuned']['validation']:.2f} |" in output
    assert load(tmp_path / "network").config.blocks == (1,)
    code, output, errors = finish("finetune", *arguments, f"--output={tmp_path}")
    assert code == 0 and "epoch 1/2" not in output, errors
    assert json.loads((tmp_path / "finetuning.json").read_text()) == measured
    # What it leaves is a run like any other, on the same data with the same split.
    code, _, errors = finish("evaluate", f"--workdir={tmp_path}")
    assert code == 0, errors
    # A run without distillation is another one.
    code, _, errors = finish("finetune", *arguments[:-1], f"--output={tmp_path}")
    assert code == 1 and "training.distillation is 0.5 there and 0.0 here" in errors


@pytest.mark.slow
def test_export_writes_the_whole_or_the_pruned_network(finished, tmp_path):
    """The exported file of a run, which gives the network's logits."""
    run = tmp_path / "run"
    shutil.copytree(finished / "network", run / "network")
    save(prune(load(finished / "network"), 2), run / "pruned")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    for arguments, name, blocks in (((), "pruned", 2), (("--nopruned",), "whole", 3)):
        code, output, errors = finish("export", f"--workdir={run}", "--pixel=uint8", *arguments)
        assert code == 0 and f"wrote the {name} network of {blocks} blocks" in output, errors
        logits = load_exported(run / "model.stablehlo")(images)
        network = load(run / ("pruned" if name == "pruned" else "network"))
        wanted = logits_over_depth(network, images)[-1]
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_surgery_compares_the_criteria_and_cuts(finished):
    """Every order and its accuracies, the table, the figure and the network that is left."""
    few = ("--samples=40", "--statistics=60", "--test_samples=100")
    code, output, errors = finish("surgery", f"--workdir={finished}", *few, "--keep=2")
    assert code == 0, errors
    result = json.loads((finished / "surgery.json").read_text())
    names = {f"{row['criterion']} ({row['order']})" for row in result["rows"]}
    assert len(result["rows"]) == len(names) == 12
    for row in result["rows"]:
        assert row["kept"] == [3, 2, 1, 0] and len(row["accuracy"]) == 4
        assert f"| {row['criterion']} ({row['order']}) |" in output
    whole = {row["accuracy"][0] for row in result["rows"]}
    assert len(whole) == 1
    (removed,) = result["cut"]["removed"]
    greedy = next(
        row
        for row in result["rows"]
        if row["criterion"] == "loss_increase" and row["order"] == "greedy"
    )
    assert removed == greedy["removed"][0] and result["cut"]["order"] == "greedy"
    assert load(finished / "surgical").config.blocks == (2,)
    assert (finished / "surgery.md").read_text() in output
    assert (finished / "figures" / "surgery.png").is_file()
    code, output, errors = finish(
        "surgery", f"--workdir={finished}", *few, "--tolerance=100", "--criterion=taylor"
    )
    assert code == 0, errors
    assert load(finished / "surgical").config.blocks == (0,)


@pytest.mark.slow
def test_a_real_sigkill_loses_no_finished_epoch(finished, tmp_path):
    """SIGKILL at an arbitrary moment, then the same command: the same metrics, to the bit."""
    process = start("train", *QUICK, f"--workdir={tmp_path}")
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert metrics.read_text().count("\n") >= 1
    code, _, errors = finish("train", *QUICK, f"--workdir={tmp_path}")
    assert code == 0, errors

    def rows(folder):
        parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in parsed:
            del row["seconds"], row["images_per_second"]
        return parsed

    assert rows(tmp_path) == rows(finished)


def test_help_is_grouped_and_names_presets():
    code, output, _ = finish("train", "--help")
    assert code == 0
    for part in ("Run:", "Network:", "Objective:", "Optimizer:", "--stage_cost", "Table 1"):
        assert part in output
    for program in ("evaluate", "prune", "finetune", "surgery", "demo", "write_tfds", "export"):
        code, output, _ = finish(program, "--help")
        assert code == 0 and "python -m experiments." in output


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("train", (), "--preset is needed"),
        ("surgery", (), "--workdir is needed"),
        ("surgery", ("--keep=2", "--budget=0.5"), "only one of --keep, --budget and --tolerance"),
        ("surgery", ("--samples=0",), "--samples is 0"),
        ("train", ("--preset=digits_homogeneous12_shared", "--exits=some"), "none|shared|separate"),
        ("train", ("--preset=digits_homogeneous12_shared", "--batch_size=0"), "batch_size is 0"),
        ("train", ("--preset=digits_homogeneous12_shared", "--devices=3"), "this machine has 1"),
        ("train", ("--preset=mnist_homogeneous54_shared", "--data_dir=/none"), "is not a folder"),
        ("train", ("--preset=digits_homogeneous12_shared", "--workdir=/dev/null/x"), "cannot be"),
        ("train", ("surprise",), "unexpected argument 'surprise'"),
        ("train", ("--preset=digits_homogeneous12_shared", "--exits=none"), "has no exits to pay"),
        ("train", ("--blokcs=3",), "blokcs"),
        ("demo", ("--blocks=3",), "--blocks is not a flag of this program"),
        ("prune", ("--workdir=w", "--blocks=3", "--tolerance=1"), "not both"),
        ("evaluate", (), "--workdir is needed"),
        ("finetune", (), "--workdir is needed"),
        ("finetune", ("--workdir=w", "--blocks=3", "--tolerance=1"), "not both"),
        ("export", (), "--workdir is needed"),
        ("export", ("--workdir=/none", "--pruned"), "/none/pruned holds no saved network"),
        ("prune", ("--workdir=/none",), "there is no config.json in /none"),
    ],
)
def test_bad_input_gets_one_sentence(program, arguments, message):
    code, _, errors = finish(program, *arguments)
    assert code == 1
    assert message in errors and "Traceback" not in errors
    assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.slow
def test_too_many_blocks_and_a_damaged_checkpoint_get_one_sentence(finished, tmp_path):
    """Errors that need a finished run."""
    code, _, errors = finish("prune", f"--workdir={finished}", "--blocks=4")
    assert code == 1 and "cannot keep 4 blocks: this network has 3" in errors
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    for file in (damaged / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    code, _, errors = finish("evaluate", f"--workdir={damaged}")
    assert code == 1 and "cannot be read" in errors and "Traceback" not in errors
