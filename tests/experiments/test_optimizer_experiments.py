"""The studies of optimizers: their measures and methods, and each binary made small, twice."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from programs import call

from experiments.benchmarks import optimizers as benchmark
from experiments.benchmarks.training_step import TrainingStep
from experiments.optimizers import (
    alignments,
    ddpnopt_table,
    feedback_ablation,
    optimizer_curves,
    promises,
    robustness,
    runs,
    untuned,
    untuned_tables,
)
from experiments.optimizers.flags import those_named
from experiments.optimizers.methods import describe, make_method
from experiments.optimizers.runs import training_of
from experiments.optimizers.tasks import NETWORKS, make_task
from experiments.optimizers.untuned_methods import METHODS, OCNOPT, TASKS, TUNED, UNTUNED, Method
from ocresnet.control.settings import Settings
from ocresnet.problem import objective
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.optimizers import EKFAC, SGD, OCNOpt
from ocresnet.training.step import training_problem
from ocresnet.training.sweep import Sweep


def settings_of(method: OCNOpt) -> Settings:
    return Settings(**method.choices(devices=1))


def test_decades_within_counts_the_longest_run():
    rates = [0.1, 1.0, 10.0, 100.0, 1000.0]
    accuracies = np.array([95.0, 80.0, 94.5, 95.0, 94.1])
    assert robustness.decades_within(rates, accuracies, 95.0) == pytest.approx(2.0)
    assert robustness.decades_within(rates, accuracies, 95.0, points=0.2) == 0.0


def test_a_method_is_a_base_alone_or_with_feedback_on_its_own_curvature():
    alone = make_method("sgd", momentum=0.9)
    assert alone == SGD(schedule="constant", momentum=0.9, weight_decay=0.0)
    assert make_method("ekfac") == EKFAC(
        schedule="constant", momentum=0.0, factor_every=5, eigen_every=20
    )
    joint = make_method("ekfac", "joint", refresh=(2, 4), groups=8)
    assert isinstance(joint, OCNOpt) and joint.curvature == "ekfac"
    assert (joint.factor_every, joint.eigen_every, joint.momentum) == (2, 4, 0.0)
    assert describe(joint) == {
        "name": "ocnopt",
        "schedule": "constant",
        "weight_decay": 0.0,
        "feedback": "joint",
        "rollout": "nonlinear",
        "groups": 8,
        "region": "fixed",
        "factor_every": 2,
        "eigen_every": 4,
    }


def test_the_study_of_alignments_compares_seed_by_seed():
    compared = alignments.methods("joint", hold=6)
    assert list(compared) == ["blocks", "layers_first", "layers_last", "adaptive"]
    found = [settings_of(method) for method in compared.values() if isinstance(method, OCNOpt)]
    assert [settings.alignments for settings in found] == [
        *((name,) for name in list(compared)[:3]),
        ("blocks", "layers_first", "layers_last"),
    ]
    assert found[3].adaptive is not None and found[3].adaptive.hold == 6
    assert all(settings.groups == 4 and settings.walks for settings in found)
    # The differences of three seeds are 1, 2 and 3: their mean has the deviation 1 / sqrt(3).
    assert alignments.difference([5.0, 9.0, 4.0], [4.0, 7.0, 1.0], 3) == "+2.000 ± 0.577"


def test_the_ablation_takes_away_one_half_of_the_feedback_each():
    compared = feedback_ablation.methods("sgd", batch_size=32)
    assert isinstance(compared["off"], SGD)
    for form, beta in (("stacked", 1.0), ("per_sample", 1 / 32)):
        for half, of_feedback, of_value in (
            ("value correction only", 0.0, beta),
            ("forward feedback only", beta, 0.0),
            ("full", beta, beta),
        ):
            method = compared[f"{form}: {half}"]
            assert isinstance(method, OCNOpt) and method.feedback == form
            settings = settings_of(method)
            assert (settings.beta, settings.weight_of_value) == (of_feedback, of_value)
            assert not settings.inactive


def test_scaling_is_the_one_form_that_needs_nothing_but_the_gradient():
    values = robustness.FlagValues()
    flags = robustness.Flags(values)
    values(["robustness", "--schedule=cosine", "--momentum=0.9"])
    compared = robustness.methods("sgd", flags)
    assert all(method.schedule == "cosine" for method in compared.values())
    assert all(method.momentum == 0.9 for method in compared.values())
    scaling = settings_of(compared["stacked linear (scaling only)"])
    assert scaling.acts_as_one and scaling.gradient_is_factor and not scaling.keep.trajectory
    assert all(method.momentum == 0 for method in robustness.methods("ekfac", flags).values())


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network.stage_cost])
def test_a_stage_cost_has_exits_to_be_paid_on(name):
    network = NETWORKS[name]
    assert isinstance(network.architecture, ResNetConfig)
    assert network.architecture.exits == "shared"
    plain = name.removesuffix("_stage_cost")
    plain = plain if plain in NETWORKS else f"{plain}_plain"
    assert NETWORKS[plain].architecture == replace(network.architecture, exits="none")


def test_a_task_is_a_network_for_its_data():
    task = make_task("wine_fcn", samples=40)
    assert task.architecture.image_shape == (1, 13, 1) and task.architecture.classes == 3
    assert task.data.samples("train") == 40 and task.data.samples("test") == 36
    assert task.architecture.pixel_deviation == task.data.pixel_statistics[1]
    with pytest.raises(ValueError, match="network is 'wine', but must be one of wine_fcn"):
        make_task("wine")


def test_a_step_that_is_timed_moves_the_network_as_the_optimizer_says():
    """One step of SGD on the batch: the gradient of the mean loss, times the learning rate."""
    task = make_task("wine_fcn", samples=16)
    config = training_of(task, make_method("sgd", learning_rate=0.1), 1, 16)
    images, labels = task.data.train_images, task.data.train_labels
    step = TrainingStep(task.architecture, config, images, labels)
    problem = training_problem(task.architecture, config)

    def value(params):
        return objective(problem, params, {}, images, labels)

    before, gradient = jax.value_and_grad(value)(step.variables.params)
    moved = jax.tree.map(lambda w, g: w - 0.1 * g, step.variables.params, gradient)
    assert step.first_objective == pytest.approx(float(before), rel=1e-4)
    assert step() == pytest.approx(float(value(moved)), rel=1e-4)
    assert step.seconds(2) > 0 and step.temporary_megabytes > 0


def test_a_grid_is_cut_from_the_only_weight_decay(monkeypatch):
    """Rates and seeds keep their order, and accuracies become percent."""
    shape = (1, 2, 3)
    accuracies = np.arange(6).reshape(shape) / 10
    asked = {}

    def sweep(architecture, config, data, **grid):
        asked.update(grid)
        steps = np.zeros((*shape, 4))
        return Sweep(accuracies, accuracies, 1 - accuracies, steps, *2 * [steps[..., :0]])

    class Flags:
        epochs, batch_size, seeds = 1, 16, range(3)

    monkeypatch.setattr(runs, "sweep", sweep)
    task = make_task("wine_fcn")
    row = runs.measure_rates(task, make_method("adam"), [0.1, 0.2], 0.01, Flags())
    np.testing.assert_allclose(row["accuracy"], [[0, 10, 20], [30, 40, 50]])
    np.testing.assert_allclose(row["train_loss"], 1 - accuracies[0])
    assert asked["weight_decays"] == [0.01] and asked["learning_rates"] == [0.1, 0.2]
    assert asked["together"]


def test_a_method_is_named_whole_or_in_part():
    methods = {"MoMo": 1, "MoMo-Adam": 2, "SGD, momentum": 3}
    assert list(those_named(["MoMo"], methods)) == ["MoMo"]
    assert list(those_named(["mom", "MoMo"], methods)) == ["MoMo", "SGD, momentum"]
    assert those_named(None, methods) == methods
    with pytest.raises(ValueError, match="in the name of no method"):
        those_named(["Adagrad"], methods)


def test_a_grid_has_half_decades_around_the_usual_rate():
    grid = Method(SGD(learning_rate=0.1), below=1, above=2)
    assert grid.learning_rates == [0.01, 0.0316, 0.1, 0.316, 1.0, 3.16, 10.0]
    assert grid.factors == [0.1, 0.316, 1.0, 3.16, 10.0, 31.6, 100.0]
    assert grid.within(0).learning_rates == [0.1] and grid.within(None) == grid
    assert Method(SGD(learning_rate=0.1)).learning_rates == [0.1]
    assert grid._replace(a_decade=1).learning_rates == [0.01, 0.1, 1.0, 10.0]
    for method in OCNOPT.values():
        # One default, and from 10^-3 to 10^5 times it.
        assert (method.factors[0], method.factors[-1]) == (1e-3, 1e5)


def test_methods_are_untuned_at_their_defaults_and_only_ocnopt_has_decay():
    assert all(method.tuned and len(method.factors) > 1 for method in TUNED.values())
    for method in UNTUNED.values():
        assert not method.tuned and method.optimizer == type(method.optimizer)()
    constant = [name for name, m in METHODS.items() if m.optimizer.schedule != "cosine"]
    assert constant == ["schedule-free AdamW"]
    decays = {name: method.optimizer.weight_decay for name, method in METHODS.items()}
    assert decays == {name: 0.1 if name in OCNOPT else 0.0 for name in METHODS}
    assert TASKS.keys() <= NETWORKS.keys()


def untuned_row(method: str, task: str, accuracy: list, tuned: bool, **changes) -> dict:
    rates = [0.01 * 10**place for place in range(len(accuracy))]
    return {
        "method": method,
        "task": task,
        "tuned": tuned,
        "reference": tuned,
        "own_rate": 0,
        "target": 80.0,
        "learning_rates": rates,
        "accuracy": accuracy,
        "train_loss": [[1.0, 1.0]] * len(rates),
        "steps": [10, 20, 30],
        "accuracies_on_the_way": [[[10.0, 85.0, 79.0], [81.0, 70.0, 90.0]]] * len(rates),
        "seconds_a_step": 0.5,
        **changes,
    }


def test_regret_is_to_the_best_tuned_method_at_its_best_rate():
    rows = [
        untuned_row("a", "one", [[70, 72], [90, 92], [91, 90.5]], True),
        untuned_row("b", "one", [[93, 94], [0, 0]], True),
        untuned_row("c", "one", [[92, 93], [99, 99]], False),
        untuned_row("a", "two", [[60, 60]], True),
        untuned_row("c", "two", [[63, 63]], False),
        untuned_row("c", "three", [[50, 50]], False),
        untuned_row("d", "one", [[95, 95]], True, reference=False),
    ]
    found = untuned_tables.regrets(rows)
    assert found == {
        ("a", "one"): 2.5,
        ("b", "one"): 0.0,
        ("c", "one"): 1.0,
        ("a", "two"): 0.0,
        ("c", "two"): -3.0,
        ("d", "one"): -1.5,
    }
    lines = untuned_tables.tables(rows).splitlines()
    # b has no mean: it has not been run on both.
    assert "| a | 2.50 | 0.00 | 1.25 | 2.50 |" in lines
    assert "| b | 0.00 |  |  |  |" in lines
    assert "| c | 1.00 | -3.00 | -1.00 | 1.00 |" in lines
    assert untuned_tables.decades(rows[0]) == pytest.approx(1.0)
    assert untuned_tables.decades(rows[3]) is None


def test_of_equally_accurate_rates_the_one_of_lowest_training_loss_counts():
    losses = [[1.0, 1.0], [float("nan"), 1.0], [0.5, 0.7], [0.1, 0.1]]
    accuracy = [[90, 90], [89, 91], [91, 89], [80, 80]]
    row = untuned_row("a", "one", accuracy, True, train_loss=losses)
    assert untuned_tables.rate_that_counts(row) == 2
    assert untuned_tables.rate_that_counts({**row, "tuned": False}) == 0


def test_a_target_is_reached_where_it_is_first_measured_by_every_seed():
    row = untuned_row("a", "one", [[80, 80]], True)
    assert untuned_tables.steps_to_target(row) == 15.0
    text = untuned_tables.tables([row])
    assert "| method | one (80 %) |" in text and "| a | 15 |" in text and "| a | 7.50 |" in text
    missed = {**row, "target": 86.0}
    assert untuned_tables.steps_to_target(missed) is None
    assert "| a | — |" in untuned_tables.tables([missed])


@pytest.mark.slow
def test_untuned_on_wine_end_to_end(tmp_path, monkeypatch):
    """Small, in two processes: the second one reads what the first has run, and shows it too."""
    output = tmp_path / "out"
    common = ["--task=wine_fcn", "--epochs=4", "--seeds=2", "--decades=1", "--points=4"]
    common.append(f"--output={output}")
    code, _, errors = call(untuned.main, *common, "--method=SGD", "--method=MoMo-Adam")
    assert code == 0, errors
    measured = []
    measure = untuned.measure
    monkeypatch.setattr(
        untuned, "measure", lambda *given: measured.append(given) or measure(*given)
    )
    methods = ["--method=SGD", "--method=MoMo-Adam", "--method=schedule-free"]
    code, printed, errors = call(untuned.main, *common, *methods)
    assert code == 0, errors
    assert len(measured) == 1 and "regret" in printed.lower()
    rows = json.loads(output.with_suffix(".json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["SGD, momentum", "MoMo-Adam", "schedule-free AdamW"]
    for row in rows:
        rates = len(row["learning_rates"])
        assert rates == (5 if row["method"] == "SGD, momentum" else 1)
        assert np.shape(row["accuracy"]) == np.shape(row["train_loss"]) == (rates, 2)
        assert np.shape(row["accuracies_on_the_way"]) == (rates, 2, 4)
        assert row["steps"] == [8, 16, 24, 32] and row["seconds_a_step"] > 0
        np.testing.assert_allclose(
            np.array(row["accuracies_on_the_way"])[..., -1], row["accuracy"], atol=1e-3
        )
        # It has learned: a third of the wines is right by chance.
        assert np.max(np.mean(row["accuracy"], axis=-1)) > 60
    assert output.with_suffix(".png").stat().st_size > 10_000
    table = output.with_suffix(".md").read_text()
    assert table.count("wine_fcn") == 6 and table.count("| MoMo-Adam |") == 6
    # Another grid is another row, of which the wider one is shown.
    code, _, errors = call(untuned.main, *common, "--method=SGD", "--a_decade=1")
    assert code == 0, errors
    lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    keys = [line["key"] for line in lines]
    grids = [len(key["learning_rates"]) for key in keys if key["method"] == "SGD, momentum"]
    assert grids == [5, 3]
    assert output.with_suffix(".md").read_text().count("| SGD, momentum |") == 6
    # Other settings are other rows.
    code, _, errors = call(untuned.main, *common, "--method=MoMo-Adam", "--epochs=1")
    assert code == 0, errors
    assert len(measured) == 3 and "| MoMo-Adam |" in output.with_suffix(".md").read_text()
    assert len(output.with_suffix(".jsonl").read_text().splitlines()) == 5
    code, _, errors = call(untuned.main, *common, "--method=MoMo-Adam", "--weight_decay=0.1")
    assert code == 0, errors
    (row,) = json.loads(output.with_suffix(".json").read_text())["rows"][-1:]
    assert len(measured) == 4 and row["optimizer"]["weight_decay"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "arguments", "rows"),
    [
        (
            robustness,
            ["--epochs=1", "--seeds=1", "--base=sgd", "--base=adam", "--method=no feed"],
            3,
        ),
        (
            feedback_ablation,
            ["--epochs=1", "--seeds=2", "--base=sgd", "--method=off", "--method=d: full"],
            2,
        ),
        (
            alignments,
            [
                "--network=digits_projections",
                "--samples=32",
                "--epochs=1",
                "--seeds=2",
                "--feedback=stacked",
                "--method=blocks",
                "--method=adaptive",
                "--hold=2",
            ],
            2,
        ),
        (ddpnopt_table, ["--epochs=1", "--seeds=2", "--method=sgd with", "--method=adam"], 2),
        (
            optimizer_curves,
            ["--epochs=2", "--parts=2", "--method=SGD, m", "--method=EKFAC, stacked"],
            3,
        ),
        (promises, ["--epochs=1", "--parts=2", "--seeds=2"], 3),
        (benchmark, ["--rounds=1", "--method=EKFAC, stacked linear"], 1),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_binary_leaves_a_table_and_its_raw_data(tmp_path, monkeypatch, binary, arguments, rows):
    """Every study, end to end, on the smallest network; again, it is only read."""
    output = tmp_path / "out"
    arguments = ["--network=wine_fcn", "--batch_size=16", *arguments, f"--output={output}"]
    code, printed, errors = call(binary.main, *arguments)
    assert code == 0, errors
    assert printed
    record = json.loads(output.with_suffix(".json").read_text())
    assert len(record["rows"]) == rows and record["made"][0]["versions"]["jax"] == jax.__version__
    table = output.with_suffix(".md").read_text()
    assert table.count("|") > 20
    assert len(output.with_suffix(".jsonl").read_text().splitlines()) == rows
    if binary in (robustness, optimizer_curves):
        assert output.with_suffix(".png").stat().st_size > 10_000
    if binary is optimizer_curves:
        for row in record["rows"]:
            # 142 training samples, batches of 16, two epochs: two parts of 8 steps.
            assert row["steps"] == [8, 16] and row["seconds"][1] == 2 * row["seconds"][0]
            assert np.shape(row["losses_of_seeds"]) == (1, 2) and np.isfinite(row["losses"]).all()
            # An untrained network's loss is log 3; ten times the rate may lose what it won.
            assert row["losses"][1] < np.log(3) or "rate x 10" in row["method"]

    if binary is promises:
        smaller, _, measured = (np.asarray(row["kept"]) for row in record["rows"])
        # Up to the first comparison both regions are one; what is predicted is mostly kept.
        np.testing.assert_array_equal(measured[:, 0], smaller[:, 0])
        assert smaller.shape == (2, 142 // 16) and (smaller < 0).mean() > 0.5
    if binary is benchmark:
        assert set(record["rows"][0]["refreshes"]) == {"EKFAC", "EKFAC, stacked linear"}

    def measure(*_):
        raise AssertionError("it is measured again")

    monkeypatch.setattr(binary, "compare" if binary is benchmark else "measure", measure)
    assert call(binary.main, *arguments).code == 0
    assert output.with_suffix(".md").read_text() == table


@pytest.mark.slow
def test_a_study_that_is_interrupted_goes_on_with_the_next_method(tmp_path, monkeypatch):
    """Two of three methods are there when it stops, and the third is all that is run later."""
    output = tmp_path / "out"
    arguments = ["--network=wine_fcn", "--epochs=1", "--seeds=1", "--base=sgd"]
    arguments += ["--method=stacked", f"--output={output}"]
    measured = []

    def measure(task, method, base, decay, flags):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(method)
        rates = robustness.LEARNING_RATES[base]
        accuracy = np.full((len(rates), 1), float(len(measured)))
        return {"learning_rates": rates, "accuracy": accuracy, "best": 1.0, "decades": 1.0}

    monkeypatch.setattr(robustness, "measure", measure)
    code, _, errors = call(robustness.main, *arguments)
    assert (code, errors) == (130, "interrupted.\n") and not output.with_suffix(".md").exists()
    measured.pop(0)
    code, _, errors = call(robustness.main, *arguments)
    assert code == 0, errors
    assert len(measured) == 2 and measured[1].beta == 0 and measured[1].value_beta == 1
    record = json.loads(output.with_suffix(".json").read_text())
    names = ["stacked linear (scaling only)", "stacked nonlinear", "stacked, value correction only"]
    assert [row["method"] for row in record["rows"]] == names
