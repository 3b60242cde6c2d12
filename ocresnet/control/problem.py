"""Training a network as an optimal control problem: a system and what its outputs cost.

Notation
    y_j     intermediate outputs of the system (exits), j = 0 ... E-1;  y_E = x_K, the last one
    phi     cost of an output, averaged over the batch
    gamma   stage cost: weight of the intermediate outputs

    J = gamma sum_{j<E} phi(y_j) + phi(y_E)

With gamma > 0 the outputs cost something on the way: phi(y_j) is the running cost of the stages. An
output that has been read is a part of the state from then on (as in Mayer's form of the problem),
so that every cost is a terminal one and the value function keeps its low rank.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ocresnet.control.costs import Cost, cross_entropy
from ocresnet.systems.system import Probe, PyTree, Remat, Rollout, System, Variables, rollout

Array = jax.Array


@dataclass(frozen=True)
class ControlProblem:
    """A system and what its outputs cost.

    Attributes:
      system: the network.
      cost: phi.
      stage_cost: gamma; with 0 the system loses its intermediate outputs.
      remat: what the backward pass recomputes.
      unroll: run the transitions of a segment one by one instead of by `lax.scan`.
    """

    system: System
    cost: Cost = cross_entropy
    stage_cost: float = 0.0
    remat: Remat = "none"
    unroll: bool = False

    def __post_init__(self) -> None:
        if self.stage_cost == 0:
            segments = (replace(segment, output=None) for segment in self.system.segments)
            object.__setattr__(self, "system", replace(self.system, segments=tuple(segments)))

    @property
    def stages(self) -> int:
        """K: the transitions, and before them one stage that decides the shared parameters."""
        return bool(self.system.shared) + sum(
            1 if segment.length is None else segment.length for segment in self.system.segments
        )


def run(
    problem: ControlProblem,
    params: PyTree,
    batch_stats: PyTree,
    images: Array,
    *,
    keep_states: bool = False,
    probe: Probe | None = None,
) -> Rollout:
    """The training-mode forward pass of the problem's system."""
    return rollout(
        problem.system,
        Variables(params, batch_stats),
        problem.system.initial_state(images),
        train=True,
        remat=problem.remat,
        unroll=problem.unroll,
        keep_states=keep_states,
        probe=probe,
    )


def outputs_of(result: Rollout) -> Array:
    """y_0 ... y_E: [outputs, batch, classes], in at least float32."""
    outputs = result.state[None]
    if result.outputs is not None:
        outputs = jnp.concatenate([result.outputs, outputs])
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def per_sample_objective(problem: ControlProblem, outputs: Array, labels: Array) -> Array:
    """J of every sample: [outputs, batch, classes], [batch] -> [batch]."""
    costs = jax.vmap(problem.cost.value, in_axes=(0, None))(outputs, labels)
    return costs[-1] + problem.stage_cost * jnp.sum(costs[:-1], axis=0)


def objective(
    problem: ControlProblem, params: PyTree, batch_stats: PyTree, images: Array, labels: Array
) -> Array:
    """J, the mean over the batch."""
    outputs = outputs_of(run(problem, params, batch_stats, images))
    return jnp.mean(per_sample_objective(problem, outputs, labels))
