"""`experiments.flow` as a user starts it: trained, measured, drawn, killed, resumed, refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import call, finish, kill_after_an_epoch, start

from experiments import evaluate, flow, prune, train
from ocresnet.data.dataset import Dataset
from ocresnet.systems.flow import FlowConfig
from tests.conftest import random_network
from tests.training.test_fit import Killed, killed_after

FLAGS = (
    "--dataset=moons[:256]",
    "--hidden=8",
    "--solver=midpoint",
    "--steps=2",
    "--batch_size=64",
    "--epochs=3",
    "--trace=gaussian",
)


def run(workdir: Path, *flags: str):
    return call(flow.main, *FLAGS, f"--workdir={workdir}", "--devices=1", *flags)


def rows_of(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if "second" not in key} for row in rows]


def test_one_command_trains_measures_and_draws(tmp_path, monkeypatch):
    code, output, errors = run(tmp_path)
    assert code == 0, errors
    lines = output.splitlines()
    assert "| log-likelihood (nats) | flow | own solver | normal density |" in lines
    measured = json.loads((tmp_path / "likelihood.json").read_text())
    shown = f"{measured['test']['flow']['mean']:.3f} ± "
    assert any(line.startswith(f"| test | {shown}") for line in lines)
    for name in ("density", "epochs"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
    with np.load(tmp_path / "samples.npz") as file:
        assert file["samples"].shape == (4000, 2)
    losses = [row["validation"]["losses"][-1] for row in rows_of(tmp_path)]
    np.testing.assert_allclose(
        measured["validation"]["own solver"]["mean"], -min(losses), rtol=1e-4
    )

    assert "too coarse" not in output
    with monkeypatch.context() as patch:
        patch.setattr(flow, "COARSE", 0.0)
        code, output, _ = run(tmp_path)
    measured = measured["test"]
    error = measured["own solver"]["mean"] - measured["flow"]["mean"]
    assert code == 0 and f"the solver is too coarse: by {error:+.3f} nats it is wrong" in output

    code, output, errors = call(evaluate.main, f"--workdir={tmp_path}")
    assert code == 0 and "accuracy" not in output and "test loss" in output, errors
    code, _, errors = call(prune.main, f"--workdir={tmp_path}", "--blocks=1")
    assert code == 1 and "residual blocks, and a FlowConfig has none" in errors


def test_killed_and_resumed_it_is_the_same_to_the_bit(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_after(patch, 5)  # in the middle of the second epoch of three steps
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert len(rows_of(tmp_path / "killed")) == 1
    for name in ("killed", "whole"):
        code, _, errors = run(tmp_path / name)
        assert code == 0, errors
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    for name in ("network/variables.msgpack", "samples.npz"):
        killed, whole = ((tmp_path / of / name).read_bytes() for of in ("killed", "whole"))
        assert killed == whole, name


def test_it_is_a_family_of_experiments_train(tmp_path):
    code, output, errors = call(
        train.main, "--architecture=flow", *FLAGS, f"--workdir={tmp_path}", "--devices=1"
    )
    assert code == 0, errors
    assert "test loss" in output and "accuracy" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset=moon",), "there is no data set 'moon'. Did you mean 'moons'?"),
        (("--horizon=0",), "horizon is 0.0, but must be positive."),
        (("--trace=cauchy",), "It must be one of exact, rademacher, gaussian."),
        (("--solver=dopri5",), "steps is 2, but belongs to the solvers euler, midpoint and rk4"),
        (("--architecture=mlp",), "there is no such choice."),
        (("--width=3",), "--width is not a flag of this program."),
        (("--loss=l2",), "loss is 'l2', but a FlowConfig is trained with negative_log_likelihood."),
        (("--stage_cost=0.1",), "a FlowConfig cannot have any"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(flags, message, tmp_path):
    code, output, errors = run(tmp_path, *flags)
    assert code == 1 and message in errors, errors
    assert len(errors.splitlines()) == 1 and not output


@pytest.mark.slow
def test_a_real_sigkill_loses_nothing(tmp_path):
    kill_after_an_epoch("experiments.flow", *FLAGS, f"--workdir={tmp_path / 'killed'}")
    assert len(rows_of(tmp_path / "killed")) >= 1
    for name in ("killed", "whole"):
        process = start("experiments.flow", *FLAGS, f"--workdir={tmp_path / name}")
        code, _, errors = finish(process)
        assert code == 0, errors
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")


def test_data_that_no_normal_density_fits_is_measured_without_one(capsys):
    network = random_network(
        FlowConfig(hidden=(2,), solver="euler", steps=2, image_shape=(1, 1, 2))
    )
    points = np.random.default_rng(0).normal(size=(9, 1, 1, 2)) * [1, 0]
    measured = flow.likelihoods(network, Dataset.without_labels("flat", points[:6], points[6:]))
    assert measured["test"].keys() == {"flow", "own solver"}
    assert "feature 1 is the same in all training samples" in capsys.readouterr().out
    assert flow.table(measured).splitlines()[0] == "| log-likelihood (nats) | flow | own solver |"
