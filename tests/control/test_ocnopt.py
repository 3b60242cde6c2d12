"""OCNOpt as an optax transformation: under jit, scan and vmap, in a chain, called wrongly."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ocresnet.control.curvature import diagonal, ekfac, identity
from ocresnet.control.curvature.kronecker import Kronecker
from ocresnet.control.linearize import Keep, linearize
from ocresnet.control.optimizer import OCNOptState, ocnopt, scale_by_ocnopt
from ocresnet.problem import Problem, objective
from tests.control.networks import exits_problem, random_batch, random_params
from tests.quick import quick_jit

ETA = 0.3
FORMS: dict[str, dict[str, Any]] = {
    "linear": {"rollout": "linear"},
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "rollout": "nonlinear"},
    "joint exact": {"feedback": "joint", "groups": 2, "factor": "exact", "rollout": "nonlinear"},
    "per_sample": {"feedback": "per_sample", "rollout": "nonlinear"},
}
PROBLEM = exits_problem("own")
NO_STATS: dict[str, Any] = {}


def gradients(params: Any, batch: Any, problem: Problem = PROBLEM, stats: Any = NO_STATS) -> Any:
    return jax.grad(lambda params: objective(problem, params, stats, *batch))(params)


def train(optimizer: optax.GradientTransformation, params: Any, state: Any, batch: Any) -> Any:
    """A step with an argument that other transformations of a chain may want."""
    changes, state = optimizer.update(
        gradients(params, batch), state, params, batch=batch, value=jnp.ones(()), unknown=None
    )
    return optax.apply_updates(params, changes), state


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# Transformations of the step


@pytest.mark.parametrize(
    ("form", "curvature", "double"),
    [
        ("linear", diagonal(), False),
        ("stacked", ekfac(), False),
        ("joint exact", identity(), False),
        ("per_sample", ekfac(), False),
        ("stacked", identity(), True),
    ],
)
def test_steps_compile_once_and_scan(form, curvature, double):
    with jax.enable_x64(double):
        params, batch = random_params(PROBLEM), random_batch()
        optimizer = ocnopt(PROBLEM, ETA, curvature=curvature, momentum=0.5, **FORMS[form])
        start = params, optimizer.init(params)
        assert isinstance(start[1][0], OCNOptState)
        one_step = quick_jit(lambda params, state, batch: train(optimizer, params, state, batch))
        result = start
        for _ in range(3):
            result = one_step(*result, batch)
            assert jax.tree.map(jnp.result_type, result) == jax.tree.map(jnp.result_type, start)
        assert one_step._cache_size() == 1
        assert result[1][0].steps == 3

        scanned, _ = quick_jit(
            lambda start: jax.lax.scan(
                lambda carry, _: (train(optimizer, *carry, batch), None), start, length=3
            )
        )(start)
        assert_close(scanned[0], result[0], 1e-10 if double else 1e-4)


@pytest.mark.parametrize("form", ["linear", "stacked", "joint", "per_sample"])
def test_seeds_can_be_trained_side_by_side(form):
    batch = random_batch()
    optimizer = ocnopt(PROBLEM, ETA, curvature=diagonal(0.9, 1e-2), **FORMS[form])

    def two_steps(params):
        result = params, optimizer.init(params)
        for _ in range(2):
            result = train(optimizer, *result, batch)
        return result[0], result[1][0].info

    seeds = [random_params(PROBLEM, seed) for seed in range(2)]
    together = quick_jit(jax.vmap(two_steps))(jax.tree.map(lambda *leaf: jnp.stack(leaf), *seeds))
    alone = quick_jit(two_steps)(seeds[1])
    assert_close(jax.tree.map(lambda leaf: leaf[1], together), alone, 1e-4)


def test_in_a_chain():
    """The learning rate of the second step is that of the schedule, in the policy and after it."""
    params, batch = random_params(PROBLEM), random_batch()
    choices = {"curvature": identity(), "rollout": "nonlinear"}
    schedule = optax.linear_schedule(0.2, 0.6, 2)  # 0.4 in the second step

    @quick_jit
    def second_updates(params):
        own = ocnopt(PROBLEM, schedule, **choices)
        rate = optax.scale_by_learning_rate(schedule)
        chained = optax.chain(scale_by_ocnopt(PROBLEM, schedule, **choices), rate)
        results = []
        for optimizer in (own, chained):
            state = optimizer.init(params)
            state = optimizer.update(gradients(params, batch), state, params, batch=batch)[1]
            args = gradients(params, batch), state, params
            results.append(optimizer.update(*args, batch=batch)[0])
        constant = ocnopt(PROBLEM, 0.4, **choices)
        args = gradients(params, batch), constant.init(params), params
        return (*results, constant.update(*args, batch=batch)[0])

    own, chained, constant = second_updates(params)
    assert_close(own, chained, 0)
    assert_close(own, constant, 1e-6)


# Precision


@pytest.mark.parametrize(
    ("form", "stage_cost"),
    [("stacked", 0.6), ("joint exact", 0.6), ("per_sample", 0.0), ("per_sample", 0.6)],
)
def test_activations_in_half_precision(form, stage_cost):
    """The step is that of float32, as nearly as the activations allow; its types are."""
    params, batch = random_params(PROBLEM), random_batch(16)
    half = replace(PROBLEM.system, initial_state=lambda inputs: inputs.astype(jnp.bfloat16))

    @partial(quick_jit, static_argnums=0)
    def step(system, params):
        problem = Problem(system, stage_cost=stage_cost)
        optimizer = ocnopt(problem, ETA, curvature=diagonal(0.9, 1e-2), **FORMS[form])
        state = optimizer.init(params)
        gradient = gradients(params, batch, problem)
        changes, after = optimizer.update(gradient, state, params, batch=batch)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(changes)])

    wanted, got = step(PROBLEM.system, params), step(half, params)
    assert wanted.dtype == got.dtype == np.float32
    error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.05


# Wrong calls


def with_player(name: str) -> Problem:
    segments = tuple(
        replace(segment, players=(name,)) if segment.name == "run" else segment
        for segment in PROBLEM.system.segments
    )
    return Problem(replace(PROBLEM.system, segments=segments), stage_cost=0.6)


def call(problem: Problem = PROBLEM, batch_size: int = 4, update: Any = None, **choices: Any):
    """Build, init and update with tiny variables; `update` replaces arguments of the last."""
    optimizer = ocnopt(problem, **{"learning_rate": ETA, **choices})
    params = random_params(problem)
    given = {"params": params, "batch": random_batch(), **(update or {})}
    state = optimizer.init(given["params"])
    optimizer.update(params, state, **given)


ONE_HOT = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
WRONG = {
    "curvature is 'ekfac', but must be what identity(), diagonal(), kfac() or ekfac()": {
        "curvature": "ekfac"
    },
    "curvature is the function ekfac, uncalled, but must be what": {"curvature": ekfac},
    "curvature is Kronecker itself, but must be what": {"curvature": Kronecker},
    "batch is a dict, but must be a pair: batch=(inputs, targets)": {
        "update": {"batch": {"images": np.zeros((4, 4)), "labels": np.zeros(4, int)}}
    },
    "batch must be inputs and targets of the same number of samples": {
        "update": {"batch": (np.zeros((4, 4), np.float32), np.zeros(3, int))}
    },
    "the labels have shape (4, 3) like the logits, but must be whole numbers": {
        "update": {"batch": (np.zeros((4, 4), np.float32), ONE_HOT)}
    },
    "the player 'branch' has no part in the stages of segment 'run': players share a stage": {
        "problem": with_player("branch")
    },
    "learning_rate is 0, but must be a positive number": {"learning_rate": 0},
    "learning_rate is -1.0, but must be a positive number": {"learning_rate": -1.0},
    "momentum is 1, but must be in [0, 1), or None": {"momentum": 1},
    "feedback is 'full', but must be one of none, per_sample, stacked, joint": {"feedback": "full"},
    "rollout is 'exact', but must be one of linear, nonlinear": {"rollout": "exact"},
    "beta is -1.0, but must be a number, at least 0": {"beta": -1.0},
    "value_beta is nan, but must be a number": {"value_beta": float("nan")},
    "groups is 0, but must be a whole number, at least 1": {"groups": 0},
    "only feedback 'joint' divides the batch into groups": {"groups": 2},
    "value_update 'clipped' is defined for a single factor": {
        "feedback": "joint",
        "value_update": "clipped",
    },
    "a batch of 4 samples is not divisible into 3 groups": {"feedback": "joint", "groups": 3},
    "ocnopt needs batch=(inputs, targets)": {"update": {"batch": None}},
    "feedback 'per_sample' cannot be used with batch statistics": {
        "feedback": "per_sample",
        "update": {"batch_stats": {"first": {"mean": np.zeros(3)}}},
    },
    "feedback 'per_sample' needs a system without shared parameters": {
        "feedback": "per_sample",
        "problem": exits_problem("shared"),
    },
    "segment 'run' has 2 transitions, but an array of its parameters has shape (3, 3)": {
        "update": {"params": {"run": {"kernel": np.zeros((3, 3))}}}
    },
    "the parameters have an entry 'stem', but the system's parts are": {
        "update": {"params": {"stem": {"kernel": np.zeros((3, 3))}}}
    },
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_impossible_is_refused(message):
    with pytest.raises(ValueError) as error:
        call(**WRONG[message])
    assert message in str(error.value)
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


def test_what_is_no_system_is_refused():
    with pytest.raises(ValueError, match=r"ocnopt needs a System or a Problem, but was given a .*"):
        ocnopt(random_params(PROBLEM), ETA)


def test_missing_parameters_are_refused():
    optimizer = ocnopt(PROBLEM, ETA)
    params = random_params(PROBLEM)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="ocnopt needs the parameters"):
        optimizer.update(params, state, batch=random_batch())
    shared = exits_problem("shared")
    params = random_params(shared)
    del params["head"]
    with pytest.raises(ValueError, match="the system shares 'head', which the parameters do not"):
        ocnopt(shared, ETA).init(params)


@pytest.mark.parametrize(
    ("form", "made", "message"),
    [
        ("stacked", Keep(), "nominal= has no trajectory"),
        (
            "joint exact",
            Keep(groups=2, trajectory=True),
            "nominal= was made for another factor or other groups",
        ),
        (
            "joint",
            Keep(groups=2, trajectory=True),
            "nominal= was made for another factor or other groups",
        ),
    ],
)
def test_a_nominal_pass_that_was_made_for_something_else_is_refused(form, made, message):
    params, batch = random_params(PROBLEM), random_batch()
    nominal = jax.eval_shape(lambda: linearize(PROBLEM, params, {}, *batch, made))
    optimizer = ocnopt(PROBLEM, ETA, **FORMS[form])
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, optimizer.init(params), params, batch=batch, nominal=nominal)
