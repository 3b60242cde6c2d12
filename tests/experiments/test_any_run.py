"""The binaries on runs of any optimizer and any family of networks."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import call, finish, kill_after_an_epoch, start

from experiments import evaluate, export, finetune, prune, surgery, train
from ocresnet.systems.families import FAMILIES
from ocresnet.systems.network import load
from tests.training.test_fit import Killed, killed_after

OCNOPT = (
    "--preset=digits_homogeneous12_shared",
    "--dataset=digits[:192]",
    "--optimizer=ocnopt",
    "--curvature=ekfac",
    "--filters=4",
    "--blocks=2",
    "--epochs=2",
    "--validation=0.16",
)
RESIDUAL_MLP = (
    "--dataset=digits[:192]",
    "--architecture=residual_mlp",
    "--blocks=2",
    "--width=8",
    "--epochs=2",
    "--batch_size=32",
    "--validation=0.16",
)
TRANSFORMER = (
    "--dataset=digits[:192]",
    "--architecture=transformer",
    "--optimizer=ocnopt",
    "--blocks=2",
    "--width=8",
    "--heads=2",
    "--hidden=8",
    "--epochs=2",
    "--batch_size=32",
    "--validation=0.16",
)
FEW = ("--samples=20", "--statistics=20", "--test_samples=20")
RUNS = {"ocnopt": OCNOPT, "residual_mlp": RESIDUAL_MLP, "transformer": TRANSFORMER}


def train_to(workdir: Path, *arguments: str, devices: int = 1) -> None:
    code, _, errors = call(train.main, *arguments, f"--workdir={workdir}", f"--devices={devices}")
    assert code == 0, errors


def rows_of(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if "second" not in key} for row in rows]


def assert_same_network(workdir: Path, other: Path) -> None:
    name = "network/variables.msgpack"
    assert (workdir / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(
    scope="module",
    params=["ocnopt", "residual_mlp", pytest.param("transformer", marks=pytest.mark.slow)],
)
def finished(request, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """The workdir of a finished run, and the flags that made it."""
    workdir = tmp_path_factory.mktemp(request.param)
    train_to(workdir, *RUNS[request.param])
    return workdir, RUNS[request.param]


def test_killed_and_resumed_it_is_the_same_to_the_bit(finished, tmp_path, monkeypatch):
    workdir, flags = finished
    with monkeypatch.context() as patch:
        killed_after(patch, 7)  # in the middle of the second epoch of five steps
        with pytest.raises(Killed):
            train_to(tmp_path, *flags)
    assert len(rows_of(tmp_path)) == 1
    train_to(tmp_path, *flags)
    assert rows_of(tmp_path) == rows_of(workdir)
    assert_same_network(tmp_path, workdir)


@pytest.mark.slow
def test_eight_devices_give_the_run_of_one(finished, tmp_path):
    workdir, flags = finished
    train_to(tmp_path, *flags, devices=8)
    sessions = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert sessions[-1]["devices"] == 8
    for row, wanted in zip(rows_of(tmp_path), rows_of(workdir), strict=True):
        for part in ("train", "validation", "test"):
            np.testing.assert_allclose(row[part]["losses"], wanted[part]["losses"], rtol=1e-3)


def test_every_binary_works_on_it(finished):
    workdir, _ = finished
    one_device = "--devices=1"
    for binary, arguments, leaves in (
        (evaluate, ("--exit_budget=0.9",), "evaluation.json"),
        (prune, ("--blocks=1",), "pruned/network.json"),
        (finetune, ("--epochs=1", one_device), "finetuned/finetuning.json"),
        (
            surgery,
            ("--keep=1", "--criterion=loss_increase", "--order=once", *FEW),
            "surgical/network.json",
        ),
        (export, (), "model.stablehlo"),
    ):
        code, _, errors = call(binary.main, f"--workdir={workdir}", *arguments)
        assert code == 0, (binary.__name__, errors)
        assert (workdir / leaves).is_file()
    for cut in ("pruned", "surgical", "finetuned/network"):
        assert load(workdir / cut).architecture.depth == 1
    # Fine-tuning goes on with the run's own optimizer, at a tenth of its rate.
    whole, tuned = (
        json.loads((folder / "config.json").read_text())["training"]["optimizer"]
        for folder in (workdir, workdir / "finetuned")
    )
    assert tuned["name"] == whole["name"]
    assert tuned["learning_rate"] == pytest.approx(whole["learning_rate"] / 10)


@pytest.mark.parametrize(
    ("family", "small"),
    [
        ("mlp", ("--hidden=6",)),
        ("cnn", ("--filters=2,3", "--strides=2,1")),
        ("inception", ("--filters=2", "--reduced_filters=2", "--strides=2", "--stem_filters=3")),
    ],
)
def test_networks_without_residual_blocks_are_trained_and_cannot_be_cut(family, small, tmp_path):
    flags = ("--dataset=digits[:192]", f"--architecture={family}", *small, "--epochs=1")
    code, output, errors = call(train.main, *flags, f"--workdir={tmp_path}", "--devices=1")
    assert code == 0, errors
    assert "test accuracy" in output and "blocks" not in output
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"]["family"] == family
    code, output, errors = call(evaluate.main, f"--workdir={tmp_path}")
    assert code == 0 and "test accuracy" in output, errors
    code, output, errors = call(export.main, f"--workdir={tmp_path}")
    assert code == 0 and "wrote the whole network to" in output, errors
    for binary, what, arguments in (
        (prune, "pruning", ()),
        (surgery, "surgery", ()),
        (finetune, "cutting a network", ()),
        (evaluate, "leaving early", ("--confidence=0.9",)),
    ):
        code, _, errors = call(binary.main, f"--workdir={tmp_path}", *arguments)
        name = FAMILIES[family].__name__
        assert code == 1 and errors == (
            f"error: {what} needs residual blocks, and a {name} has none: choose a residual "
            "architecture.\n"
        )


def test_a_neural_ode_is_cut_in_time(tmp_path):
    flags = ("--dataset=digits[:192]", "--architecture=neural_ode", "--width=6", "--steps=3")
    workdir = f"--workdir={tmp_path}"
    code, output, errors = call(
        train.main, *flags, "--optimizer=ocnopt", "--epochs=1", workdir, "--devices=1"
    )
    assert code == 0 and "test accuracy" in output, errors
    code, output, errors = call(prune.main, workdir, "--blocks=2")
    assert code == 0, errors
    pruned = json.loads((tmp_path / "pruned" / "network.json").read_text())["architecture"]
    assert (pruned["family"], pruned["steps"]) == ("neural_ode", 2)
    assert pruned["horizon"] == pytest.approx(2 / 3)
    code, _, errors = call(prune.main, workdir, "--blocks=0")
    assert code == 1 and errors.startswith("error: cannot remove all steps of an ODE")


def test_a_neural_ode_under_snopt_finds_its_horizon(tmp_path):
    small = ("--dataset=digits[:192]", "--width=6", "--epochs=1", "--devices=1")
    ode = (*small, "--architecture=neural_ode", "--steps=3", "--free_horizon")
    snopt = ("--optimizer=snopt", "--grid=4", "--refresh_every=2", "--horizon_every=1")
    workdir = f"--workdir={tmp_path}"
    code, output, errors = call(train.main, *ode, *snopt, workdir)
    assert code == 0 and "test accuracy" in output, errors
    (row,) = rows_of(tmp_path)
    horizon = row["horizons"]["ode"]
    assert horizon > 0.1 and abs(horizon - 1) > 1e-3
    assert float(load(tmp_path / "network").params["ode"]["horizon"]) == pytest.approx(horizon)
    code, _, errors = call(prune.main, workdir, "--blocks=2")
    assert code == 1 and errors.startswith("error: the horizon of this Neural ODE is free")
    code, _, errors = call(
        train.main,
        *small,
        "--architecture=residual_mlp",
        "--optimizer=snopt",
        f"--workdir={tmp_path / 'other'}",
    )
    assert code == 1 and errors == (
        "error: SNOpt needs a differential equation, and this network declares none "
        "(`Segment.dynamics`): choose ekfac, or a Neural ODE.\n"
    )


@pytest.mark.slow
def test_a_real_sigkill_in_a_process_of_one_device_loses_nothing(tmp_path):
    """EKFAC with momentum: killed after an epoch, and resumed."""
    flags = (*OCNOPT[:2], "--optimizer=ekfac", *OCNOPT[4:], "--epochs=3")
    kill_after_an_epoch("experiments.train", *flags, f"--workdir={tmp_path / 'killed'}")
    assert len(rows_of(tmp_path / "killed")) >= 1
    for name in ("killed", "whole"):
        arguments = (*flags, f"--workdir={tmp_path / name}")
        code, _, errors = finish(start("experiments.train", *arguments))
        assert code == 0, errors
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
