"""A residual network in the stages of an alignment, against full matrices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control import reference
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import objective
from ocresnet.systems.system import Variables
from tests.control.aligned import Aligned, aligned_case, dense_problem, resnet_problem
from tests.control.dense import split
from tests.control.networks import BETA, ETA, random_batch
from tests.quick import quick_jit

NETWORKS = {
    "dense": dense_problem,
    "dense, exits": partial(dense_problem, exits=True),
    "resnet": resnet_problem,
    "resnet, shared exits": partial(resnet_problem, "shared"),
    "bottlenecks": partial(resnet_problem, block="bottleneck"),
}
FORMS: dict[str, dict[str, Any]] = {
    "stacked": {},
    "linear": {"rollout": "linear", "value_beta": BETA},
    "joint": {"feedback": "joint", "groups": 2},
    "joint linear": {"feedback": "joint", "groups": 2, "rollout": "linear", "value_beta": BETA},
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batch_of(network: str) -> tuple[jax.Array, jax.Array]:
    inputs, labels = random_batch(features=4 if "dense" in network else 16)
    return (inputs if "dense" in network else inputs.reshape(-1, 4, 4, 1)), labels


def step(case: Aligned, batch: Any, **choices: Any) -> Any:
    """The updates, in the view's names."""

    @quick_jit
    def update(variables):
        params, stats = variables
        gradient = jax.grad(lambda params: objective(case.problem, params, stats, *batch))(params)
        optimizer = ocnopt(case.problem, ETA, beta=BETA, curvature=case.curvature, **choices)
        state = optimizer.init(params)
        return optimizer.update(gradient, state, params, batch=batch, batch_stats=stats)[0]

    return case.view.split(update(case.variables))


def dense_step(case: Aligned, batch: Any, rollout: str = "nonlinear", groups: int = 1) -> Any:
    """The same by the recursion in full matrices, over the view's augmented states."""
    problem = case.view.problem

    @quick_jit
    def solve(variables):
        chain = reference.make_chain(problem, variables, batch[0])
        last = reference.terminal(problem, chain, batch[1], BETA, groups=groups)
        still = [jnp.zeros_like(theta) for theta in chain.controls]
        policies, _ = reference.bellman(chain, last, [own / ETA for own in case.M], still)
        if rollout == "nonlinear":
            return reference.roll_out(chain, policies, still)
        dx, changes = jnp.zeros_like(chain.states[0]), []
        for k, f in enumerate(chain.functions):
            changes.append(policies[k].k + policies[k].K @ dx)
            moved = changes[-1].astype(chain.controls[k].dtype)  # where there is nothing: float32
            dx = jax.jvp(f, (chain.controls[k], chain.states[k]), (moved, dx))[1]
        return changes

    return solve(Variables(*(case.view.split(tree) for tree in case.variables)))


CASES = [
    *(("dense", "layers_first", form) for form in FORMS),
    ("dense", "layers_last", "joint"),
    ("dense, exits", "layers_last", "stacked"),
    ("dense, exits", "layers_first", "joint"),
    ("resnet", "layers_first", "stacked"),
    ("resnet", "layers_last", "linear"),
    ("resnet, shared exits", "layers_last", "stacked"),
    pytest.param("bottlenecks", "layers_last", "stacked", marks=pytest.mark.slow),
    pytest.param("resnet", "layers_last", "joint", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "alignment", "form"), CASES)
def test_a_step_is_that_of_the_reference_on_the_augmented_state(network, alignment, form):
    choices, batch = FORMS[form], batch_of(network)
    case = aligned_case(*NETWORKS[network](), alignment)
    got = split(case.view.problem.system, step(case, batch, alignment=alignment, **choices))
    wanted = dense_step(case, batch, choices.get("rollout", "nonlinear"), choices.get("groups", 1))
    assert max(np.abs(part).max(initial=0) for part in wanted) > 1e-2
    for stage, (own, expected) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(own, expected, rtol=0, atol=1e-12, err_msg=f"stage {stage}")
