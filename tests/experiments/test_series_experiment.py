"""experiments.time_series: what it prints and leaves, a kill and a resume, and what it refuses."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from programs import call

from experiments.time_series import __main__ as time_series
from experiments.time_series.figures import densely
from experiments.time_series.measures import (
    BEST,
    NETWORK,
    carried_forward,
    measure_classes,
    measure_predictions,
    probabilities,
    tables,
)
from ocresnet.continuous.series import predictions
from ocresnet.data.oscillators import Generator
from ocresnet.data.time_series import Series, TimeSeriesData
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset
from ocresnet.training.optimizers import EKFAC, AdamW
from ocresnet.training.restore import restore_network
from tests.conftest import random_network
from tests.training.test_fit import ONE_DEVICE, Killed, killed_after, without_times

GENERATOR = Generator(rows=6, horizon=3.0, forecast=2)
NETWORK_OF = {
    task: GRUODEConfig(task=task, width=4, field_layers=2, solver="midpoint", steps=1)
    for task in ("prediction", "classification")
}
LOSSES = {"prediction": "mean_squared_error", "classification": "cross_entropy"}
QUICK = (
    "--series=150",
    "--rows=6",
    "--horizon=3",
    "--forecast=2",
    "--width=4",
    "--field_layers=2",
    "--epochs=2",
    "--batch_size=32",
    "--devices=1",
)


@pytest.fixture(autouse=True)
def few_test_series(monkeypatch):
    monkeypatch.setattr(time_series, "TEST_SERIES", 40)


def drawn_data(task, samples=40):
    train, test = GENERATOR.draw(samples, 0), GENERATOR.draw(20, 1)
    parts = {
        name: part.to_predict() if task == "prediction" else part.to_classify()
        for name, part in (("train", train), ("test", test))
    }
    return TimeSeriesData("oscillators", parts), train, test


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "task", ["prediction", pytest.param("classification", marks=pytest.mark.slow)]
)
def test_a_killed_run_is_continued_to_the_same_table(task, tmp_path, monkeypatch):
    def run(name):
        folder = tmp_path / name
        return call(time_series.main, *QUICK, f"--task={task}", f"--workdir={folder}")

    code, output, errors = run("whole")
    assert code == 0, errors
    assert "| closed form |" in output and f"{task.capitalize()}: " in output
    with monkeypatch.context() as patch:
        killed_after(patch, 6)  # in the middle of the second epoch
        with pytest.raises(Killed):
            run("killed")
    code, resumed, errors = run("killed")
    assert code == 0, errors
    assert resumed[resumed.index("|") : resumed.rindex("|")] in output
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert without_times(rows_of(killed)) == without_times(rows_of(whole))
    jax.tree.map(np.testing.assert_array_equal, restore_network(killed), restore_network(whole))
    assert (killed / "time_series.md").read_text() == (whole / "time_series.md").read_text()
    drawn = {"prediction": "series.png", "classification": "posterior.png"}[task]
    assert {path.name for path in (whole / "figures").iterdir()} == {"epochs.png", drawn}
    accuracies = rows_of(whole)[-1]["test"]["accuracies"]
    assert len(accuracies) == (task == "classification")


def test_runs_of_both_tasks_and_several_seeds_are_rows_of_one_study():
    settings = []
    for given in (["--task=prediction"], ["--task=classification", "--seed=3"]):
        values = time_series.FlagValues()
        flags = time_series.Flags(values)
        values(["program", *given])
        parts = flags.generator(), flags.network(), flags.training(), flags.series
        settings.append(time_series._settings(*parts))
    assert settings[0] == settings[1]


def test_rows_of_several_seeds_are_one_table():
    rows = [
        {
            "task": task,
            "seed": seed,
            "measured": {
                NETWORK: {"all": 1.5 + seed, "next": 2.0},
                BEST: {"all": 1.0 + seed, "next": 1.0 + 0.5 * seed},
            },
        }
        for task in ("prediction", "classification")
        for seed in (0, 1)
    ]
    text = tables(rows)
    assert text.startswith("Prediction: ") and "\n\nClassification: " in text
    assert text.count("2 seeds.") == 2
    assert "| GRU-ODE | 2.0000 ± 0.7071 | 2.0000 ± 0.0000 |" in text
    assert "| GRU-ODE less closed form | 0.5000 ± 0.0000 | 0.7500 ± 0.3536 |" in text
    assert "1 seed.\n" in tables(rows[:1]) and "±" not in tables(rows[:1])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--horizon=0", "horizon is 0.0, but must be positive."),
        ("--missing=1", "missing is 1.0, but must be a share in [0, 1)."),
        ("--forecast=6", "forecast is 6, but must be 0 to 5, so that a row is left to see."),
        ("--steps=0", "steps is 0, but must be a whole number of at least 1."),
        ("--rtol=0.1", "rtol is 0.1, but belongs to the solvers dopri5 and tsit5"),
        ("--optimizer=adam", "there is no such choice. Did you mean 'adamw'?"),
    ],
)
def test_impossible_flags_get_one_sentence(flag, message, tmp_path):
    code, _, errors = call(time_series.main, *QUICK, flag, f"--workdir={tmp_path / 'run'}")
    assert code == 1 and message in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_another_solver_leaves_the_steps_behind():
    values = time_series.FlagValues()
    flags = time_series.Flags(values)
    values(["program", "--solver=tsit5", "--rtol=1e-4", "--optimizer=ekfac"])
    assert (flags.network().steps, flags.network().rtol) == (None, 1e-4)
    assert type(flags.training().optimizer).__name__ == "EKFAC"


def test_measures_are_those_of_the_network():
    data, train, test = drawn_data("prediction")
    network = random_network(for_dataset(NETWORK_OF["prediction"], data))
    measured = measure_predictions(network, GENERATOR, train, test)
    errors = (predictions(network, test.series) - test.measurements) ** 2
    wanted = {"all": errors, "next": errors[:, :4], "forecast": errors[:, 4:]}
    for which, own in wanted.items():
        assert measured[NETWORK][which] == pytest.approx(np.sqrt(own.mean()))
    assert all(measured[BEST]["all"] < measured[who]["all"] for who in measured if who != BEST)
    # `fit` measures the same.
    config = TrainingConfig(epochs=1, batch_size=20, loss="mean_squared_error", stage_cost=0.0)
    run = fit(network.architecture, config, data, devices=ONE_DEVICE, progress=False)
    own = measure_predictions(run.network, GENERATOR, train, test)[NETWORK]["all"]
    np.testing.assert_allclose(run.trajectories["test"].losses[-1], own**2, rtol=1e-5)
    assert len(run.trajectories["test"].accuracies) == 0

    data, train, test = drawn_data("classification")
    network = random_network(for_dataset(NETWORK_OF["classification"], data))
    measured = measure_classes(network, GENERATOR, train, test)
    chances = probabilities(network, test.series)
    np.testing.assert_allclose(chances.sum(axis=1), 1)
    right = chances.argmax(axis=1) == test.kinds
    assert measured[NETWORK]["accuracy"] == pytest.approx(100 * right.mean())
    assert measured[BEST]["cross_entropy"] < measured[NETWORK]["cross_entropy"]


def test_the_last_value_is_carried_forward():
    values = np.array([[[1.0], [2.0], [3.0], [4.0]]])
    masks = np.array([[[1], [0], [1], [0]]])
    carried = carried_forward(Series(np.arange(4.0)[None], values, masks))
    np.testing.assert_array_equal(carried[0, :, 0], [0, 1, 1, 3])


def test_series_of_figures_are_seen_as_often_as_others():
    masks = densely(replace(GENERATOR, missing=0.0), 4, 0).series.masks
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), 4 * 2)
    assert not masks[:, 200:].any()


@pytest.mark.parametrize("task", ["prediction", "classification"])
def test_a_loss_or_targets_of_another_kind_are_refused(task):
    other = {"prediction": "classification", "classification": "prediction"}[task]
    data, _, _ = drawn_data(task)
    network = for_dataset(NETWORK_OF[task], data)
    config = TrainingConfig(epochs=1, batch_size=20, stage_cost=0.0, optimizer=AdamW())
    config = replace(config, loss=LOSSES[other])
    with pytest.raises(ValueError, match=f"a GRUODEConfig is trained with {LOSSES[task][:9]}"):
        fit(network, config, data, devices=ONE_DEVICE, progress=False)
    network = for_dataset(NETWORK_OF[other], replace_classes(data))
    with pytest.raises(ValueError, match="has no labels|the targets have shape"):
        fit(network, config, data, devices=ONE_DEVICE, progress=False)


def replace_classes(data):
    """The same data as one with classes, so that a classifier can be made for it."""
    if data.classes > 1:
        return data
    parts = {
        name: part._replace(targets=np.arange(len(part.targets)) % 2)
        for name, part in data.given.items()
    }
    return TimeSeriesData("labelled", parts)


def test_factors_of_curvature_are_recorded_along_the_series():
    data, _, _ = drawn_data("classification", 200)
    config = TrainingConfig(epochs=4, batch_size=40, stage_cost=0.0, optimizer=EKFAC())
    network = for_dataset(NETWORK_OF["classification"], data)
    run = fit(network, config, data, devices=ONE_DEVICE, progress=False)
    assert run.metrics[-1]["objective"] < run.metrics[0]["objective"]


def test_two_devices_learn_what_one_does():
    data, _, _ = drawn_data("prediction")
    config = TrainingConfig(
        epochs=2, batch_size=20, stage_cost=0.0, loss="mean_squared_error", optimizer=AdamW()
    )
    network = for_dataset(NETWORK_OF["prediction"], data)
    one, two = (
        fit(network, config, data, devices=jax.devices()[:count], progress=False)
        for count in (1, 2)
    )
    for name in ("train", "test"):
        losses = (run.metrics[-1][name]["losses"] for run in (one, two))
        np.testing.assert_allclose(next(losses), next(losses), rtol=1e-4)
