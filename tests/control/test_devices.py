"""OCNOpt on a batch that is more than its samples: over devices, and with batch statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.curvature import ekfac, identity
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.system import Execution, Segment, System
from tests.conftest import SMALL, random_images, random_variables, to_float64
from tests.control.networks import exits_problem, random_batch, random_params
from tests.quick import QUICK, quick_jit

ETA = 0.3
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear", "region": "square"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "region": "square", "rollout": "nonlinear"},
    "joint exact": {"feedback": "joint", "factor": "exact", "rollout": "nonlinear"},
    "per_sample": {"feedback": "per_sample", "region": "square", "rollout": "nonlinear"},
}
SAMPLES = {"linear": 2, "stacked": 2, "joint": 2, "joint exact": 1, "per_sample": 2}  # a device
DEVICES = 8
PROBLEM = exits_problem("own")
NO_STATS: dict[str, Any] = {}


def gradients(params: Any, batch: Any, problem: Problem = PROBLEM, stats: Any = NO_STATS) -> Any:
    return jax.grad(lambda params: objective(problem, params, stats, *batch))(params)


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# Devices


@pytest.mark.parametrize(
    ("form", "curvature"),
    [
        *((form, identity()) for form in FORMS),
        ("stacked", ekfac(eigen_every=1)),
        ("per_sample", ekfac(eigen_every=1)),
    ],
)
def test_eight_devices_take_the_step_of_one(form, curvature):
    """In the joint form the groups of all devices are those of one."""
    choices = {"curvature": curvature, **FORMS[form]}
    with jax.enable_x64(True):
        # Every exit has factors of its own, and those of all devices are solved for at once.
        problem = Problem(PROBLEM.system) if form == "joint exact" else PROBLEM
        params, batch = random_params(problem), random_batch(SAMPLES[form] * DEVICES)
        groups = {"groups": DEVICES * choices.get("groups", 1)} if "joint" in form else {}
        optimizer = ocnopt(problem, ETA, **{**choices, **groups})
        state = optimizer.init(params)

        @quick_jit
        def step(params):
            gradient = gradients(params, batch, problem)
            changes, after = optimizer.update(gradient, state, params, batch=batch)
            return optax.apply_updates(params, changes), after

        wanted = step(params)
        split = ocnopt(problem, ETA, axis_name="batch", **choices)
        got = over_devices(problem, split, params, {}, batch)
        for device in (0, DEVICES - 1):
            own = jax.tree.map(lambda leaf, d=device: leaf[d], got)
            assert_close(own[0], wanted[0], 1e-11)
            assert_close(own[1][0].info, wanted[1][0].info, 1e-6)
            assert_close(own[1][0].caution, wanted[1][0].caution, 1e-6)


def test_factors_of_the_first_samples_of_every_device():
    """They are those of one device that has them first."""
    with jax.enable_x64(True):
        params = random_params(PROBLEM)
        inputs, targets = random_batch(2 * DEVICES)
        order = jnp.arange(2 * DEVICES).reshape(DEVICES, 2).T.reshape(-1)
        wanted = ocnopt(PROBLEM, ETA, curvature=ekfac(factor_samples=DEVICES))
        batch = inputs[order], targets[order]
        _, state = quick_jit(wanted.update)(
            gradients(params, batch), wanted.init(params), params, batch=batch
        )
        split = ocnopt(PROBLEM, ETA, curvature=ekfac(factor_samples=1), axis_name="batch")
        _, got = over_devices(PROBLEM, split, params, {}, (inputs, targets))
        for entry, expected in zip(
            jax.tree.leaves(got[0].curvature), jax.tree.leaves(state[0].curvature), strict=True
        ):
            assert_close(entry[DEVICES - 1], expected, 1e-11)


def over_devices(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    params: Any,
    stats: Any,
    batch: Any,
) -> Any:
    """A step on equal parts of the batch: parameters and state of every device."""

    def step(params, state, stats, batch):
        gradient = jax.lax.pmean(gradients(params, batch, problem, stats), "batch")
        changes, state = optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)
        return optax.apply_updates(params, changes), state

    mapped = jax.pmap(step, axis_name="batch", in_axes=(None, None, None, 0))
    parts = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), batch)
    arguments = params, optimizer.init(params), stats, parts
    compiled = mapped.lower(*arguments).compile(compiler_options=QUICK)
    return jax.tree.map(np.asarray, compiled(*arguments))


# Batch statistics


def residual_network(axis_name: str | None = None) -> Problem:
    system = SMALL["homogeneous"].system(
        axis_name=axis_name, execution=Execution(precision="float64")
    )
    return Problem(system, stage_cost=0.3)


def test_batch_norm_over_the_devices():
    """The statistics of the batch are those of all devices, in both passes; the running ones are
    read by nobody and come back to nobody."""
    config, eta = SMALL["homogeneous"], 1e-3
    with jax.enable_x64(True):
        params, stats = to_float64(random_variables(config))
        batch = jnp.asarray(random_images(config, 2 * DEVICES)), jnp.arange(2 * DEVICES) % 3
        problem = residual_network()
        choices = {"curvature": identity(), "region": "square", "rollout": "nonlinear"}
        optimizer = ocnopt(problem, eta, **choices)
        state = optimizer.init(params)

        @quick_jit
        def step(stats):
            gradient = gradients(params, batch, problem, stats)
            changes, new = optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)
            after = optax.apply_updates(params, changes)
            values = [objective(problem, leaf, stats, *batch) for leaf in (params, after)]
            return after, new[0].info, values[1] - values[0]

        wanted, info, change = step(stats)
        assert jax.tree.structure(wanted) == jax.tree.structure(params)
        np.testing.assert_allclose(change, info.predicted_change, rtol=0.1)
        assert info.deviations[0] == 0 and np.all(np.diff(info.deviations) < 0)
        other = step(jax.tree.map(lambda leaf: 2 * leaf + 1, stats))
        jax.tree.map(np.testing.assert_array_equal, other, (wanted, info, change))

        problem = residual_network("batch")
        split = ocnopt(problem, eta, axis_name="batch", **choices)
        got = over_devices(problem, split, params, stats, batch)
        assert_close(jax.tree.map(lambda leaf: leaf[3], got[0]), wanted, 1e-11)


def test_batch_norm_over_groups_gives_the_gradient_of_the_batch():
    config = SMALL["homogeneous"]
    with jax.enable_x64(True):
        params, stats = to_float64(random_variables(config))
        batch = jnp.asarray(random_images(config, 4)), jnp.arange(4) % 3

        @quick_jit
        def both(params):
            nominal = linearize(residual_network(), params, stats, *batch, Keep(groups=2))
            return nominal.gradient, gradients(params, batch, residual_network(), stats)

        assert_close(*both(params), 1e-11)


@pytest.mark.parametrize("form", ["stacked", "joint exact"])
def test_random_layers_are_the_same_in_both_passes(form):
    """A key among the statistics decides what is dropped: without a step nothing deviates."""

    def drop(stage, x):
        key = stage.batch_stats["key"]
        x = jnp.tanh(layers.dense(stage.params, x))
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0.0), {
            "key": jax.random.fold_in(key, 1)
        }

    with jax.enable_x64(True):
        problem = Problem(System((Segment("first", drop), Segment("run", drop, length=3))))
        dense = random_params(PROBLEM)
        kernel = jnp.stack([dense["single"]["layer"]["kernel"]] * 3)
        params = {"first": dense["first"]["layer"], "run": {"kernel": kernel}}
        stats = {
            "first": {"key": jax.random.key(0)},
            "run": {"key": jax.random.split(jax.random.key(1), 3)},
        }
        batch = random_batch()

        @quick_jit
        def deviations(eta):
            optimizer = ocnopt(problem, eta, curvature=identity(), **FORMS[form])
            gradient = gradients(params, batch, problem, stats)
            state = optimizer.init(params)
            _, state = optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)
            return state[0].info.deviations

        np.testing.assert_allclose(deviations(1e-30), 0, rtol=0, atol=1e-15)
        assert np.abs(deviations(0.1)[1:]).min() > 1e-6
