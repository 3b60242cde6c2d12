"""The studies of SNOpt and of the horizon, and the benchmark of a step: each of them made small."""

import json

import numpy as np
import pytest
from programs import call

from experiments.continuous import horizon_study, snopt_study, step_benchmark
from experiments.optimizers.tasks import NETWORKS
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.training.optimizers import EKFAC, SNOpt


def made_row() -> dict:
    """Two rates, two seeds, two points; the second rate is the better one."""
    return {
        "method": "SNOpt",
        "learning_rates": [0.1, 0.3],
        "accuracy": [[50.0, 52.0], [90.0, 92.0]],
        "train_loss": [[1.0, 1.2], [0.1, 0.3]],
        "steps": [10, 30],
        "losses": [[[9.0, 9.0], [9.0, 9.0]], [[2.0, 1.0], [4.0, 2.0]]],
        "evaluations": [[[1.0, 1.0], [1.0, 1.0]], [[10.0, 20.0], [10.0, 40.0]]],
        "seconds_a_step": 0.1,
    }


def test_a_curve_is_that_of_the_best_rate():
    curve = snopt_study.curve(made_row())
    np.testing.assert_allclose(curve["losses"], [3.0, 1.5])
    np.testing.assert_allclose(curve["evaluations"], [10 * 10, 10 * 10 + 20 * 30])
    # Solves have become three times as long.
    np.testing.assert_allclose(curve["seconds"], [1.0, 1.0 + 20 * 0.1 * 3])
    line = snopt_study.table([made_row()]).splitlines()[-1]
    assert line == "| SNOpt | 0.3 | 91.00 ± 1.41 | 0.2000 ± 0.1414 | 30.0 | 100.00 |"


def test_everyone_is_tuned_by_the_same_budget():
    assert len({len(method.learning_rates) for method in snopt_study.METHODS.values()}) == 1
    optimizers = {name: method.optimizer for name, method in snopt_study.METHODS.items()}
    assert all(own.weight_decay == 0 and own.schedule == "cosine" for own in optimizers.values())
    snopt, ekfac = optimizers["SNOpt"], optimizers["EKFAC"]
    assert isinstance(snopt, SNOpt) and isinstance(ekfac, EKFAC)
    assert snopt.refresh_every == ekfac.factor_every == ekfac.eigen_every == 100


def test_only_a_neural_ode_is_studied():
    networks = [name for name, own in NETWORKS.items() if "_ode" in name]
    assert all(isinstance(NETWORKS[name].architecture, NeuralODEConfig) for name in networks)
    code, _, errors = call(snopt_study.main, "--network=wine_fcn")
    assert code == 1 and errors.startswith("error: --network=wine_fcn is no Neural ODE")


@pytest.mark.slow
def test_the_study_end_to_end(tmp_path, monkeypatch):
    """Small, in two processes: the second one runs nothing again."""
    output = tmp_path / "out"
    common = ["--samples=64", "--epochs=2", "--seeds=2", "--decades=0", "--points=2"]
    common += ["--method=SGD", "--method=SNOpt", f"--output={output}"]
    code, printed, errors = call(snopt_study.main, *common)
    assert code == 0, errors
    monkeypatch.setattr(snopt_study, "measure", lambda *given: pytest.fail("measured again"))
    code, again, errors = call(snopt_study.main, *common)
    assert code == 0 and again == printed, errors
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["SGD, momentum", "SNOpt"]
    for row in rows:
        assert np.shape(row["losses"]) == np.shape(row["evaluations"]) == (1, 2, 2)
        np.testing.assert_array_equal(row["evaluations"], 16)  # four steps of rk4
        assert row["steps"] == [2, 4] and row["seconds_a_step"] > 0
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "| SNOpt | 0.02 |" in output.with_suffix(".md").read_text()


@pytest.mark.slow
def test_the_study_of_the_horizon_end_to_end(tmp_path):
    output = tmp_path / "out"
    common = ["--network=digits_ode", "--samples=64", "--epochs=2", "--seeds=2", "--points=2"]
    common += ["--start=0.5", "--every=1", "--rule=constant", "--rule=second"]
    code, printed, errors = call(horizon_study.main, *common, f"--output={output}")
    assert code == 0 and "| constant | 0.5 | 0.50 ± 0.00 | 16.00 ± 0.00 |" in printed, errors
    constant, moved = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert np.shape(moved["horizons"]) == np.shape(moved["accuracies"]) == (2, 2)
    np.testing.assert_array_equal(constant["horizons"], 0.5)
    assert np.abs(np.array(moved["horizons"]) - 0.5).min() > 1e-3
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_benchmark_end_to_end(tmp_path):
    output = tmp_path / "out"
    common = ["--network=digits_ode", "--batch_size=8", "--rounds=1", "--refresh_every=2"]
    code, printed, errors = call(
        step_benchmark.main, *common, "--solver=own steps", f"--output={output}"
    )
    assert code == 0 and "digits_ode, own steps | SNOpt / SGD | 8 |" in printed, errors
    (row,) = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [step["method"] for step in row["steps"]] == ["SGD", "Adam", "EKFAC", "SNOpt"]
    assert all(step["memory_megabytes"] > 0 for step in row["steps"])
