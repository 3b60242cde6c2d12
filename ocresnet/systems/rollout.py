"""The forward pass: states and outputs of a system along its trajectory.

x_{k+1} = f_k(x_k, theta_k),   y_k = h_k(x_k, theta_k),   k = 0 ... K-1
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ocresnet.systems.fold import advance, fold, in_order, shared_parameters, stages
from ocresnet.systems.system import Array, PyTree, Segment, Stage, State, System, Variables


class Probe(NamedTuple):
    """Zeros added along the trajectory, so that derivatives at every depth can be taken.

    The derivative of a cost with respect to them are the costates lambda_k = dJ/dx_k, and for
    shared parameters the part of the gradient that comes from their use at stage k.

    Attributes:
      states: {segment: tree like the states that enter its stages}.
      shared: {segment: the shared parameters, with a leading axis in stacked segments}.
    """

    states: dict[str, State]
    shared: dict[str, PyTree]


class Rollout(NamedTuple):
    """What running a system gives.

    Attributes:
      state: the last state, x_K.
      outputs: the intermediate outputs y_0, y_1, ... stacked along a leading axis, or None where
        the system has none.
      batch_stats: the new batch statistics, structured as the old ones.
      states: {segment: the states x_k that enter its stages}, with a leading axis in stacked
        segments; empty unless asked for.
    """

    state: State
    outputs: Array | None
    batch_stats: PyTree
    states: dict[str, State]

    def all_outputs(self) -> Array:
        """Intermediate outputs and the last state, an output too: [outputs + 1, batch, ...], in at
        least float32."""
        outputs = self.state[None]
        if self.outputs is not None:
            outputs = jnp.concatenate([self.outputs, outputs])
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def rollout(
    system: System,
    variables: Variables,
    state: State,
    *,
    train: bool,
    train_outputs: bool | None = None,
    keep_states: bool = False,
    probe: Probe | None = None,
) -> Rollout:
    """Run x_{k+1} = f_k(x_k, theta_k) and read y_k = h_k(x_k, theta_k) on the way.

    Args:
      system: the segments to run.
      variables: parameters and batch statistics, one entry a segment.
      state: x_0, batch axis first.
      train: whether transitions normalise with (and update) batch statistics.
      train_outputs: the same for the output functions; None means as `train`.
      keep_states: return the state that enters every stage.
      probe: zeros that are added to those states and to the shared parameters.

    Returns:
      The final state, the stacked intermediate outputs and the new batch statistics.
    """
    shared = shared_parameters(system, variables.params)

    def body(
        segment: Segment, state: State, given: tuple[Stage, tuple[State, PyTree] | None]
    ) -> tuple[State, tuple[Array | None, PyTree, State | None]]:
        stage, zeros = given
        parts = shared
        if zeros is not None:
            state = jax.tree.map(jnp.add, state, zeros[0])
            parts = jax.tree.map(jnp.add, shared, zeros[1])
        entering = state if keep_states else None
        stage = stage._replace(shared=parts, train=train)
        outputs, state, stats = advance(system, segment, stage, state, train_outputs)
        return state, (outputs, stats, entering)

    given = {
        name: (stage, None if probe is None else (probe.states[name], probe.shared[name]))
        for name, stage in stages(system, variables).items()
    }
    state, results = fold(system, body, state, given)
    batch_stats = {
        **variables.batch_stats,
        **{name: stats for name, (_, stats, _) in results.items() if name in variables.batch_stats},
    }
    states = {name: entering for name, (_, _, entering) in results.items()} if keep_states else {}
    outputs = in_order(system, {name: outputs for name, (outputs, _, _) in results.items()})
    return Rollout(state, outputs, batch_stats, states)
