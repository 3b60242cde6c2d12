"""The optimizer experiments: their measures, and each binary as a user starts it, made small."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_binaries import finish

from experiments.optimizer_runs import (
    Method,
    decades_within,
    evaluate,
    make_run,
    run_grid,
    run_whole,
)
from experiments.optimizer_tasks import make_task


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
    ("program", "arguments"),
    [
        ("robustness", ["--epochs=1", "--seeds=1", "--base=sgd", "--method=linear"]),
        ("feedback_ablation", ["--seeds=2", "--base=ekfac", "--method=off", "--method=full"]),
        ("ddpnopt_table", ["--epochs=1", "--seeds=2", "--method=sgd", "--method=adam"]),
        ("optimizer_curves", ["--parts=2", "--method=SGD", "--method=EKFAC, stacked"]),
        ("benchmark_optimizers", ["--rounds=1", "--method=EKFAC, stacked linear"]),
    ],
)
def test_binary_leaves_a_table_and_its_raw_data(tmp_path, program, arguments):
    """Every optimizer experiment, end to end, on the smallest network."""
    output = tmp_path / "out"
    arguments = ["--network=wine_fcn", "--batch_size=16", *arguments]
    code, printed, errors = finish(program, *arguments, f"--output={output}")
    assert code == 0, errors
    assert printed
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["command"].startswith(f"python -m experiments.{program} --network=wine_fcn")
    assert record["rows"] and record["versions"]["jax"] == jax.__version__
    assert output.with_suffix(".md").read_text().count("|") > 20
    if program in ("robustness", "optimizer_curves"):
        assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--data=nothing.npz"], "nothing.npz"), (["--method=x"], "--method=x")]
)
def test_a_mistake_is_one_sentence(arguments, said):
    code, _, errors = finish("ddpnopt_table", "--network=digits_fcn", *arguments)
    assert code == 1
    assert errors.count("\n") == 1 and said in errors
