"""How often a Neural ODE evaluates its vector field: the measure of work of continuous depth."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.systems.adaptive_solves import Solution, solution
from ocresnet.systems.explicit_steps import EVALUATIONS
from ocresnet.systems.network import Network
from ocresnet.systems.neural_ode import ODE, NeuralODEConfig
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution, State, Variables

Array = jax.Array


class FunctionEvaluations(NamedTuple):
    """Of the solves of a forward pass over some images.

    Attributes:
      mean: evaluations of F in a batch's solve, the mean over the batches.
      steps: steps of a batch's solve, those of an adaptive solver that it rejected included, the
        mean over the batches.
    """

    mean: float
    steps: float


def function_evaluations(
    network: Network, images: np.ndarray | Array, *, batch_size: int = 128
) -> FunctionEvaluations:
    """How often F is evaluated in a forward pass.

    An adaptive solver takes a batch for one state, so that the number depends on its size. The
    backward pass evaluates F and its derivatives as often again, once for every step that was
    taken (direct); a solve of the adjoint equation has a number of its own
    (`adaptive_gradients.adjoint_solution`).

    Args:
      network: a Neural ODE.
      images: [samples, height, width, channels], in the units of the network's `pixel_mean`.
      batch_size: samples in a solve; a last batch that is not full is left out, unless it is the
        only one.

    Raises:
      ValueError: for a network of another family, images that do not fit it, none of them, or a
        solve that reaches its limit of steps.
    """
    architecture = network.architecture
    if not isinstance(architecture, NeuralODEConfig):
        raise ValueError(
            f"only a Neural ODE has function evaluations to count, and this is a "
            f"{type(architecture).__name__}."
        )
    architecture.check_images(images)
    if len(images) == 0 or batch_size < 1:
        raise ValueError(
            f"there are {len(images)} images in batches of {batch_size}: both must be at least 1."
        )
    if architecture.adaptive is None:
        steps = architecture.depth
        return FunctionEvaluations(float(steps * EVALUATIONS[architecture.fixed]), float(steps))
    batch_size = min(batch_size, len(images))
    solved = []
    for start in range(0, len(images) // batch_size * batch_size, batch_size):
        batch = images[start : start + batch_size]
        solved.append(jax.device_get(_solve(architecture, network.variables, batch)))
    if not all(one.complete for one in solved):
        raise ValueError(f"a forward pass does not end: {architecture.not_finite}.")
    return FunctionEvaluations(
        float(np.mean([one.evaluations for one in solved])),
        float(np.mean([one.steps for one in solved])),
    )


def evaluations_of_batch(
    architecture: NeuralODEConfig, variables: Variables, images: Array
) -> Array:
    """How often F is evaluated in the solve of these images, [], inside a compiled program."""
    if architecture.adaptive is None:
        return jnp.asarray(architecture.depth * EVALUATIONS[architecture.fixed])
    return _solve(architecture, variables, images).evaluations


def initial_value(
    architecture: NeuralODEConfig,
    variables: Variables,
    images: Array,
    execution: Execution = Execution(),
) -> State:
    """x(0), what the stem makes of images: [batch, ...]."""
    system = architecture.system(execution=execution)
    names = [segment.name for segment in system.segments]
    stem = replace(system, segments=system.segments[: names.index(ODE)])
    return rollout(stem, variables, stem.initial_state(images), train=False).state


@partial(jax.jit, static_argnames="architecture")
def _solve(architecture: NeuralODEConfig, variables: Variables, images: Array) -> Solution:
    assert architecture.adaptive is not None
    return solution(
        architecture.adaptive,
        architecture.field(),
        variables.params[ODE]["residual"],
        0.0,
        architecture.horizon_of(variables.params),
        initial_value(architecture, variables, images),
    )
