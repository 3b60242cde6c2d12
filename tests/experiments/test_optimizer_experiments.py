"""The studies of optimizers: their measures, and each binary made small, twice."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import call

from experiments.benchmarks import optimizers as benchmark
from experiments.optimizers import ddpnopt_table, feedback_ablation, optimizer_curves, robustness
from experiments.optimizers.runs import (
    Method,
    decades_within,
    evaluate,
    make_run,
    run_grid,
    run_whole,
)
from experiments.optimizers.tasks import make_task


@pytest.fixture(scope="module")
def wine():
    return make_task("wine_fcn")


def test_decades_within_counts_the_longest_run():
    rates = [0.1, 1.0, 10.0, 100.0, 1000.0]
    accuracies = np.array([95.0, 80.0, 94.5, 95.0, 94.1])
    assert decades_within(rates, accuracies, 95.0) == pytest.approx(2.0)
    assert decades_within(rates, accuracies, 95.0, points=0.2) == 0.0


def test_runs_together_are_the_runs_alone(wine):
    run = make_run(wine, Method("rmsprop", "stacked"), epochs=2, batch_size=8)
    together = run_grid(wine, run, [1e-3, 1e-2], [0.0, 0.1], [0, 1], together=True)
    assert together.accuracy.shape == (2, 2, 2)
    alone = run_whole(wine, run, jnp.asarray(1e-2), jnp.asarray(0.1), jnp.asarray(1))
    np.testing.assert_allclose(together.train_loss[1, 1, 1], alone.train_loss, rtol=1e-3)


def test_sgd_without_feedback_is_optax_sgd(wine):
    run = make_run(wine, Method("sgd", momentum=0.9), epochs=1, batch_size=8)
    rate, decay = jnp.asarray(0.05), jnp.asarray(0.01)
    state, order = run.start(rate, decay, jnp.asarray(3))
    (variables, _), _ = jax.jit(run.advance)(state, rate, decay, order)

    from ocresnet.control.problem import objective

    params = state[0].params
    tx = optax.chain(optax.trace(0.9), optax.add_decayed_weights(0.01), optax.scale(-0.05))
    opt_state = tx.init(params)
    gradient_of = jax.jit(jax.grad(objective, argnums=1), static_argnums=0)
    for indices in order:
        batch = wine.train_images[indices], wine.train_labels[indices]
        updates, opt_state = tx.update(
            gradient_of(wine.problem, params, {}, *batch), opt_state, params
        )
        params = optax.apply_updates(params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        variables.params,
        params,
    )


def test_outputs_that_are_not_finite_are_wrong(wine):
    variables = wine.init(jax.random.key(0))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    accuracy, _ = evaluate(wine, broken, wine.test_images, wine.test_labels)
    assert accuracy == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "arguments", "rows"),
    [
        (
            robustness,
            ["--epochs=1", "--seeds=1", "--base=sgd", "--base=adam", "--method=no feedback"],
            3,
        ),
        (feedback_ablation, ["--seeds=2", "--base=sgd", "--method=off", "--method=d: full"], 2),
        (ddpnopt_table, ["--epochs=1", "--seeds=2", "--method=sgd with", "--method=adam"], 2),
        (optimizer_curves, ["--parts=2", "--method=SGD, m", "--method=EKFAC, stacked"], 3),
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
    monkeypatch.setattr(binary, "make_run", None)
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
    assert len(measured) == 2 and measured[1].forward_feedback is False
    record = json.loads(output.with_suffix(".json").read_text())
    names = ["stacked linear (scaling only)", "stacked nonlinear", "stacked, value correction only"]
    assert [row["method"] for row in record["rows"]] == names
