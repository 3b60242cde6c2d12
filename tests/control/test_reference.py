"""The fast code against `reference.py`: every kind of network, all stages of a step.

M is a random symmetric positive definite matrix for every stage.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control import reference
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.system import Segment, System, Variables
from tests.control.dense import split
from tests.control.networks import (
    BATCH,
    BETA,
    ETA,
    convolutions_problem,
    exits_problem,
    full_curvature,
    mlp_problem,
    random_batch,
    random_params,
)
from tests.quick import quick_jit


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense(rng: np.random.Generator, *kernel: int) -> dict[str, np.ndarray]:
    return {"kernel": 0.7 * rng.normal(size=kernel), "bias": 0.7 * rng.normal(size=kernel[-1:])}


def tied_problem() -> tuple[Problem, Variables]:
    """Three transitions with one control, which see the time, with an output before each."""

    def first(stage, x):
        return jnp.tanh(layers.dense(stage.params, x)), {}

    def turn(stage, x):
        return x + jnp.tanh(stage.time * layers.dense(stage.params["layer"], x)), {}

    def read(stage, x):
        return jnp.sin(x * stage.params["scale"]), {}

    segments = (
        Segment("first", first),
        Segment("turns", turn, read, length=3, tied=True, times=(0.5, 1.0, 1.5)),
        Segment("last", first),
    )
    rng = np.random.default_rng(3)
    turns = {"layer": dense(rng, 3, 3), "scale": rng.normal(size=3)}
    params = {"first": dense(rng, 4, 3), "turns": turns, "last": dense(rng, 3, 3)}
    return Problem(System(segments), stage_cost=(0.3, 0.0, 0.6)), Variables(params, {})


def branches_problem() -> tuple[Problem, Variables]:
    """A state of two arrays of different shapes."""

    def divide(stage, x):
        return {"a": jnp.tanh(layers.dense(stage.params, x)), "b": x[:, :2]}, {}

    def mix(stage, state):
        a = jnp.tanh(layers.dense(stage.params["a"], state["a"]))
        b = jnp.sin(state["b"] + layers.dense(stage.params["b"], state["a"]))
        return {"a": a, "b": b}, {}

    def merge(stage, state):
        return layers.dense(stage.params, jnp.concatenate([state["a"], state["b"]], -1)), {}

    segments = (
        Segment("divide", divide),
        Segment("mix", mix, length=2),
        Segment("merge", merge),
    )
    rng = np.random.default_rng(4)
    of_mix = [{"a": dense(rng, 3, 3), "b": dense(rng, 3, 2)} for _ in range(2)]
    mixed = jax.tree.map(lambda *leaves: np.stack(leaves), *of_mix)
    params = {"divide": dense(rng, 4, 3), "mix": mixed, "merge": dense(rng, 5, 3)}
    return Problem(System(segments)), Variables(params, {})


def normalised_problem() -> tuple[Problem, Variables]:
    """Batch norm in every hidden layer and before an output: samples see each other."""
    norm = partial(layers.batch_norm, momentum=0.9, axis_name=None)

    def hidden(stage, x):
        x = layers.dense(stage.params["layer"], x)
        x, stats = norm(stage.params["norm"], stage.batch_stats["norm"], x, stage.train)
        return jnp.tanh(x), {"norm": stats}

    def read(stage, x):
        x, stats = norm(stage.params["norm"], stage.batch_stats["exit"], x, stage.train)
        return x * x, {"exit": stats}

    def last(stage, x):
        return layers.dense(stage.params, x), {}

    segments = (
        Segment("first", hidden),
        Segment("run", hidden, read, length=2),
        Segment("last", last),
    )
    rng = np.random.default_rng(5)

    def block(features: int) -> dict[str, Any]:
        scale = {"scale": 1 + 0.3 * rng.normal(size=3), "bias": 0.3 * rng.normal(size=3)}
        return {"layer": dense(rng, features, 3), "norm": scale}

    run = jax.tree.map(lambda *leaves: np.stack(leaves), block(3), block(3))
    params = {"first": block(4), "run": run, "last": dense(rng, 3, 3)}
    stats = {"mean": np.zeros(3), "variance": np.ones(3)}
    several = jax.tree.map(lambda leaf: np.stack([leaf] * 2), stats)
    batch_stats = {"first": {"norm": stats}, "run": {"norm": several, "exit": several}}
    return Problem(System(segments), stage_cost=0.4), Variables(params, batch_stats)


def with_params(make: Callable[[], Problem]) -> tuple[Problem, Variables]:
    problem = make()
    return problem, Variables(random_params(problem), {})


NETWORKS: dict[str, Callable[[], tuple[Problem, Variables]]] = {
    "dense": partial(with_params, mlp_problem),
    "convolutions": partial(with_params, convolutions_problem),
    "shared parameters, stage costs": partial(with_params, partial(exits_problem, "shared")),
    "own heads, stage costs": partial(with_params, partial(exits_problem, "own")),
    "tied": tied_problem,
    "a state of several arrays": branches_problem,
    "batch norm": normalised_problem,
}
FORMS: dict[str, dict[str, Any]] = {
    "stacked": {"rollout": "nonlinear"},
    "joint": {"feedback": "joint", "groups": 2, "rollout": "nonlinear"},
    "joint exact": {
        "feedback": "joint",
        "groups": BATCH,
        "factor": "exact",
        "rollout": "nonlinear",
    },
}


@pytest.mark.parametrize(
    ("network", "form"),
    [(network, form) for network in NETWORKS for form in ("stacked", "joint")]
    + [("tied", "joint exact")],
)
def test_a_step_is_that_of_the_reference(network, form):
    problem, variables = NETWORKS[network]()
    variables = jax.tree.map(jnp.asarray, variables)
    batch = random_batch(BATCH, 9 if network == "convolutions" else 4)
    curvature, M = full_curvature(problem, variables.params)
    choices = FORMS[form]

    @quick_jit
    def fast(variables):
        params, stats = variables
        optimizer = ocnopt(problem, ETA, beta=BETA, curvature=curvature, region="fixed", **choices)
        gradient = jax.grad(lambda params: objective(problem, params, stats, *batch))(params)
        return optimizer.update(
            gradient, optimizer.init(params), params, batch=batch, batch_stats=stats
        )[0]

    @quick_jit
    def dense_step(variables):
        chain = reference.make_chain(problem, variables, batch[0])
        groups, factor = choices.get("groups", 1), choices.get("factor", "gradient")
        last = reference.terminal(problem, chain, batch[1], BETA, factor, groups)
        still = [jnp.zeros_like(theta) for theta in chain.controls]
        policies, _ = reference.bellman(chain, last, [own / ETA for own in M], still)
        return reference.roll_out(chain, policies, still)

    got, wanted = split(problem.system, fast(variables)), dense_step(variables)
    assert max(np.abs(part).max(initial=0) for part in wanted) > 1e-2
    for stage, (own, expected) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12, err_msg=f"stage {stage}")


@pytest.mark.parametrize("network", ["tied", "a state of several arrays"])
def test_samples_on_their_own_are_coupled_as_in_the_joint_form(network):
    """Without value correction, where both are the same; the joint form is that of the
    reference."""
    problem, variables = NETWORKS[network]()
    params, batch = jax.tree.map(jnp.asarray, variables.params), random_batch()
    curvature, _ = full_curvature(problem, params)

    @quick_jit
    def both(params):
        gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
        results = []
        for choices in ({"feedback": "per_sample"}, {"feedback": "joint", "groups": BATCH}):
            optimizer = ocnopt(
                problem,
                ETA,
                beta=BETA,
                value_beta=0.0,
                curvature=curvature,
                region="fixed",
                rollout="nonlinear",
                **choices,
            )
            results.append(
                optimizer.update(gradient, optimizer.init(params), params, batch=batch)[0]
            )
        return results

    per_sample, joint = (split(problem.system, tree) for tree in both(params))
    for own, expected in zip(per_sample, joint, strict=True):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12)
