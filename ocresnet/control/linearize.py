"""The nominal trajectory (a stand-in for the ported module: the gradient alone)."""

from typing import Any, NamedTuple

import jax

from ocresnet.problem import Problem, objective_of_outputs, run

Array = jax.Array
PyTree = Any


class Keep(NamedTuple):
    factor: str = "gradient"
    groups: int = 1
    trajectory: bool = False
    layers: bool = False


class Nominal(NamedTuple):
    objective: Array
    outputs: Array
    batch_stats: PyTree
    gradient: PyTree
    factors: PyTree | None
    trajectory: Any


def linearize(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    inputs: Array,
    targets: PyTree,
    keep: Keep = Keep(),
    key: Array | None = None,
) -> Nominal:
    def outputs_and_stats(params: PyTree) -> tuple[Array, PyTree]:
        result = run(problem, params, batch_stats, inputs)
        return result.all_outputs(), result.batch_stats

    outputs, pull_back, new_stats = jax.vjp(outputs_and_stats, params, has_aux=True)
    value, cotangent = jax.value_and_grad(
        lambda outputs: objective_of_outputs(problem, outputs, targets)
    )(outputs)
    (gradient,) = pull_back(cotangent)
    return Nominal(value, outputs, new_stats, gradient, None, None)
