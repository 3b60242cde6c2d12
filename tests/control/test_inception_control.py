"""OCNOpt on an inception network against the recursion in full matrices."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import Curvature, diagonal, ekfac, identity
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.system import Execution
from tests.conftest import random_variables, to_float64
from tests.control.dense import bellman, chain, split, terminal, walk
from tests.control.networks import BATCH, BETA, CLASSES, ETA, Setting, assert_changes
from tests.control.test_per_sample import dense_curvature, dense_step
from tests.quick import quick_jit

NETWORK = InceptionConfig(
    (2, 1), (1, 2), (1, 2), stem_filters=2, image_shape=(3, 2, 1), classes=CLASSES
)
CURVATURES: dict[str, Curvature] = {
    "identity": identity(),
    "diagonal": diagonal(0.5, 0.3),
    "ekfac": ekfac(0.1, 0.5),
}
ROLLOUTS = ("nonlinear", "linear")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@cache
def inception() -> Setting:
    """Of the curvature, nothing yet."""
    problem = Problem(NETWORK.system(execution=Execution(precision="float64")))
    params = jax.tree.map(lambda leaf: 2 * leaf, to_float64(random_variables(NETWORK)).params)
    rng = np.random.default_rng(1)
    batch = jnp.asarray(rng.normal(size=(BATCH, 3, 2, 1))), jnp.arange(BATCH) % CLASSES
    gradient = quick_jit(jax.grad(lambda params: objective(problem, params, {}, *batch)))(params)
    dense = chain(problem, params, batch)
    return Setting(problem, params, batch, gradient, dense, identity(), [])


def steps(case: Setting, **choices: Any) -> tuple[list[Any], Any]:
    """The first step along each kind of rollout, and the entries of the curvature."""

    @quick_jit
    def both():
        changes = []
        for rollout in ROLLOUTS:
            optimizer = ocnopt(
                case.problem,
                ETA,
                beta=BETA,
                region="fixed",
                curvature=case.curvature,
                rollout=rollout,
                value_beta=BETA,  # the recursion itself, not its short form for linear rollouts
                **choices,
            )
            change, state = optimizer.update(
                case.gradient, optimizer.init(case.params), case.params, batch=case.batch
            )
            changes.append(change)
        return changes, state[0].curvature.entries

    return both()


def with_curvature(name: str, **choices: Any) -> tuple[Setting, list[Any]]:
    """The network with this curvature, as matrices too, and its steps."""
    case = inception()._replace(curvature=CURVATURES[name])
    changes, entries = steps(case, **choices)
    return case._replace(M=dense_curvature(case, entries)), changes


# Every curvature and every form of feedback; the other pairs are slow.
@pytest.mark.parametrize(
    "curvature",
    ["ekfac", *(pytest.param(own, marks=pytest.mark.slow) for own in ("identity", "diagonal"))],
)
def test_stacked_steps_are_those_of_the_recursion(curvature):
    case, changes = with_curvature(curvature)
    assert_steps_of_the_batch(case, changes, groups=1)


def test_joint_steps_are_those_of_the_recursion():
    case, changes = with_curvature("identity", feedback="joint", groups=2)
    assert_steps_of_the_batch(case, changes, groups=2)


def assert_steps_of_the_batch(case: Setting, changes: list[Any], groups: int) -> None:
    last = terminal(case.dense, BATCH, BETA, groups=groups)
    policies = bellman(case.dense.jacobians, last, [M / ETA for M in case.M]).policies

    def decide(stage, dx):
        k, K = policies[stage]
        return k + K @ dx

    for rollout, own in zip(ROLLOUTS, changes, strict=True):
        assert_changes(case, own, walk(case.dense, decide, rollout))
    # Neither the feedback nor the kind of rollout is a detail here.
    nonlinear, linear = (np.concatenate(split(case.problem.system, own)) for own in changes)
    for other in (linear, np.concatenate([k for k, _ in policies])):
        assert np.abs(nonlinear - other).max() > 1e-3


@pytest.mark.parametrize(
    "curvature", [pytest.param("identity", marks=pytest.mark.slow), "diagonal", "ekfac"]
)
def test_steps_of_samples_on_their_own_are_those_of_the_recursion(curvature):
    case, changes = with_curvature(curvature, feedback="per_sample")
    for rollout, own in zip(ROLLOUTS, changes, strict=True):
        assert_changes(case, own, dense_step(case, rollout))
