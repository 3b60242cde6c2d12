"""A network as a controlled system: the only place that knows how a chain of layers is run.

Notation
    x_k       state: the activations that enter transition k
    theta_k   control: the parameters of transition k
    f_k       transition
    h_k       output function: reads an intermediate output y_k from the state
    segment   a run of transitions that are one function with different controls

    x_{k+1} = f_k(x_k, theta_k),   y_k = h_k(x_k, theta_k),   k = 0 ... K-1

The controls of a segment are stacked along a leading axis and run by `lax.scan`. The same stacked
controls can be run one after the other (`unroll=True`), the oracle that the scan is tested against.
Batch statistics are never hidden: transitions and outputs take them and return the new ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any
Array = jax.Array

Remat = Literal["none", "convolutions", "everything"]
"""What the backward pass recomputes: nothing, all but convolutions, or everything in a block."""

CONVOLUTION_OUTPUT = "convolution_output"
"""The `checkpoint_name` that layers give a convolution's result, kept by `remat="convolutions"`."""

Transition = Callable[[PyTree, PyTree, PyTree, Array, bool], tuple[Array, PyTree]]
"""(shared, params_k, batch_stats_k, x_k, train) -> (x_{k+1}, changed batch_stats_k)."""

Output = Callable[[PyTree, PyTree, PyTree, Array, bool], tuple[Array, PyTree]]
"""(shared, params_k, batch_stats_k, x_k, train) -> (y_k, changed batch_stats_k)."""


class Variables(NamedTuple):
    """All arrays of a network: what is trained, and what normalisation has gathered.

    Both are dictionaries with one entry a segment (and, in `params`, one a shared part).
    """

    params: PyTree
    batch_stats: PyTree


@dataclass(frozen=True)
class Segment:
    """A run of transitions that are one function with different controls.

    Attributes:
      name: the segment's key in `params` and `batch_stats`.
      transition: x_{k+1} = f(x_k, theta_k).
      output: y_k = h(x_k, theta_k), or None where the segment has no intermediate outputs.
      length: how many transitions; the segment's arrays have this leading axis. None: one
        transition, whose arrays have no leading axis.
      opaque: the transition is not built from `layers.py`, so that nothing is known of what its
        arrays mean.
    """

    name: str
    transition: Transition
    output: Output | None = None
    length: int | None = None
    opaque: bool = False


def _unchanged(inputs: Array) -> Array:
    return inputs


@dataclass(frozen=True)
class System:
    """A sequence of segments.

    Attributes:
      segments: in the order they are run.
      shared: names of the parameters that several segments read.
      initial_state: x_0 from the network's inputs (normalised images, for example).
    """

    segments: tuple[Segment, ...]
    shared: tuple[str, ...] = ()
    initial_state: Callable[[Array], Array] = _unchanged


class Probe(NamedTuple):
    """Zeros added along the trajectory, so that derivatives at every depth can be taken.

    The derivative of a cost with respect to them are the costates lambda_k = dJ/dx_k, and for
    shared parameters the part of the gradient that comes from their use at depth k.

    Attributes:
      states: {segment: array like the states that enter its transitions}.
      shared: {segment: the shared parameters, with a leading axis in scanned segments}.
    """

    states: dict[str, Array]
    shared: dict[str, PyTree]


class Rollout(NamedTuple):
    """What running a system gives.

    Attributes:
      state: the last state, x_K.
      outputs: the intermediate outputs y_0, y_1, ... stacked along a leading axis, or None where
        the system has none.
      batch_stats: the new batch statistics, structured as the old ones.
      states: {segment: the states x_k that enter its transitions}, with a leading axis in scanned
        segments; empty unless asked for.
    """

    state: Array
    outputs: Array | None
    batch_stats: PyTree
    states: dict[str, Array]


def rollout(
    system: System,
    variables: Variables,
    state: Array,
    *,
    train: bool,
    train_outputs: bool | None = None,
    unroll: bool = False,
    remat: Remat = "none",
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
      unroll: run a segment's transitions one by one instead of by `lax.scan`.
      remat: what the backward pass recomputes.
      keep_states: return the state that enters every transition.
      probe: zeros that are added to those states and to the shared parameters.

    Returns:
      The final state, the stacked intermediate outputs and the new batch statistics.
    """
    train_outputs = train if train_outputs is None else train_outputs
    shared = {name: variables.params[name] for name in system.shared}
    outputs, states, batch_stats = [], {}, dict(variables.batch_stats)

    for segment in system.segments:

        def step(
            state: Array, controls: tuple[PyTree, PyTree, PyTree], segment: Segment = segment
        ) -> tuple[Array, tuple[Array | None, PyTree, Array | None]]:
            params, stats, zeros = controls
            parts = shared
            if zeros is not None:
                state = state + zeros[0]
                parts = jax.tree.map(jnp.add, shared, zeros[1])
            entering = state if keep_states else None
            output, state, stats = run_transition(
                segment, parts, params, stats, state, train, train_outputs
            )
            return state, (output, stats, entering)

        step = _rematerialised(step, remat)
        controls = (
            variables.params.get(segment.name, {}),
            variables.batch_stats.get(segment.name, {}),
            None if probe is None else (probe.states[segment.name], probe.shared[segment.name]),
        )
        if segment.length is None:
            state, (output, stats, entering) = step(state, controls)
            output = None if output is None else output[None]
        elif unroll:
            steps = []
            for index in range(segment.length):
                state, result = step(state, jax.tree.map(lambda leaf, i=index: leaf[i], controls))
                steps.append(result)
            output, stats, entering = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
        else:
            state, (output, stats, entering) = lax.scan(step, state, controls)
        if segment.name in batch_stats:
            batch_stats[segment.name] = stats
        if keep_states:
            states[segment.name] = entering
        if output is not None:
            outputs.append(output)

    stacked = jnp.concatenate(outputs) if outputs else None
    return Rollout(state, stacked, batch_stats, states)


def run_transition(
    segment: Segment,
    shared: PyTree,
    params: PyTree,
    batch_stats: PyTree,
    state: Array,
    train: bool,
    train_outputs: bool,
) -> tuple[Array | None, Array, PyTree]:
    """One transition of a segment, after its output has been read.

    Returns:
      y_k (None where the segment has no output), x_{k+1} and the new batch statistics.
    """
    output: Array | None = None
    output_stats: PyTree = {}
    if segment.output is not None:
        output, output_stats = segment.output(shared, params, batch_stats, state, train_outputs)
    state, state_stats = segment.transition(shared, params, batch_stats, state, train)
    return output, state, {**batch_stats, **state_stats, **output_stats}


def unstack(system: System, tree: PyTree) -> PyTree:
    """Turn the stacked entry of every scanned segment into a list of per-transition trees.

    Args:
      system: the system the tree belongs to.
      tree: `params` or `batch_stats`, as `rollout` takes them.

    Returns:
      The same dictionary with a list of `length` trees for each scanned segment.
    """
    unstacked = dict(tree)
    for segment in system.segments:
        if segment.length is not None:
            unstacked[segment.name] = [
                jax.tree.map(lambda leaf, i=index: leaf[i], tree[segment.name])
                for index in range(segment.length)
            ]
    return unstacked


def stack(system: System, tree: PyTree) -> PyTree:
    """Undo `unstack`: put the per-transition trees of every scanned segment on a leading axis."""
    stacked = dict(tree)
    for segment in system.segments:
        if segment.length is not None:
            stacked[segment.name] = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *tree[segment.name]
            )
    return stacked


def _rematerialised(step: Callable, remat: Remat) -> Callable:
    """`step`, with its intermediate values recomputed in the backward pass as `remat` says."""
    if remat == "none":
        return step
    if remat == "convolutions":
        policy = jax.checkpoint_policies.save_only_these_names(CONVOLUTION_OUTPUT)
    elif remat == "everything":
        policy = jax.checkpoint_policies.nothing_saveable
    else:
        raise ValueError(f"remat is {remat!r}, but must be one of {', '.join(get_args(Remat))}.")
    # Inside a scan the loop itself keeps the compiler from merging the two computations.
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
