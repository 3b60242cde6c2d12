"""OCNOpt on the tied segment of a Neural ODE: one stage, whose steps are differentiated through."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control import reference
from ocresnet.control.optimizer import ocnopt
from ocresnet.problem import Problem, objective
from ocresnet.systems.neural_ode import NeuralODEConfig
from ocresnet.systems.system import Execution
from tests.conftest import random_images, random_variables, to_float64
from tests.control.dense import split
from tests.control.networks import BETA, ETA, full_curvature
from tests.quick import quick_jit

NETWORK = NeuralODEConfig(
    width=3, hidden=2, horizon=0.8, solver="midpoint", steps=3, classes=3, image_shape=(2, 1, 1)
)
NETWORKS = {
    "fixed steps": NETWORK,
    "adaptive": replace(NETWORK, solver="dopri5", steps=None, rtol=1e-8, atol=1e-8, exits="none"),
}


def linear_roll_out(chain, policies):
    """d theta_k = k + K dx_k, with dx along the linear dynamics."""
    dx, changes = jnp.zeros_like(chain.states[0]), []
    for k, (f, policy) in enumerate(zip(chain.functions, policies, strict=True)):
        changes.append((policy.k + policy.K @ dx).astype(chain.controls[k].dtype))
        here = chain.controls[k], chain.states[k]
        dx = jax.jvp(f, here, (changes[-1], dx))[1]
    return changes


@pytest.mark.parametrize(
    ("name", "rollout"),
    [("fixed steps", "nonlinear"), ("fixed steps", "linear"), ("adaptive", "nonlinear")],
)
def test_a_step_is_that_of_the_reference(name, rollout):
    """The dense recursion needs forward derivatives: it runs fine fixed steps for the adaptive
    solve."""
    architecture = NETWORKS[name]
    images, labels = random_images(architecture, batch=4), jnp.array([0, 1, 2, 1])
    dense = architecture
    if name == "adaptive":
        dense = replace(NETWORK, solver="rk4", steps=60, exits="none")
    with jax.enable_x64(True):
        variables = to_float64(random_variables(architecture))
        batch, choices = (jnp.asarray(images, "float64"), labels), Execution(precision="float64")
        cost = 0.3 if architecture.exits == "shared" else 0.0
        problem, fine = (
            Problem(own.system(execution=choices), stage_cost=cost) for own in (architecture, dense)
        )
        curvature, M = full_curvature(problem, variables.params)

        @quick_jit
        def fast(params):
            choices = {"curvature": curvature, "rollout": rollout, "region": "fixed"}
            optimizer = ocnopt(problem, ETA, beta=BETA, **choices)
            gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
            return optimizer.update(gradient, optimizer.init(params), params, batch=batch)[0]

        @quick_jit
        def wanted_step(variables):
            chain = reference.make_chain(fine, variables, batch[0])
            last = reference.terminal(fine, chain, labels, BETA)
            still = [jnp.zeros_like(theta) for theta in chain.controls]
            policies, _ = reference.bellman(chain, last, [own / ETA for own in M], still)
            if rollout == "linear":
                return linear_roll_out(chain, policies)
            return reference.roll_out(chain, policies, still)

        got = split(problem.system, fast(variables.params))
        wanted = wanted_step(variables)
    assert len(got) == len(wanted) == problem.stages == 4  # head, stem, ode, output block
    assert min(np.abs(part).max(initial=0) for part in wanted[:3]) > 1e-2
    tolerance = 1e-12 if name == "fixed steps" else 1e-6
    for stage, (own, expected) in enumerate(zip(got, wanted, strict=True)):
        np.testing.assert_allclose(own, expected, rtol=0, atol=tolerance, err_msg=f"stage {stage}")
