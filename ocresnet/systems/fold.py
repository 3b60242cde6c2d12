"""The one fold that runs a system.

It alone knows how stages are run: scanned, or one after the other (`Execution.unroll`, the oracle
that the scan is tested against), and what a backward pass recomputes. The forward pass, OCNOpt's
second one, per-sample feedback and the depth tools are bodies of it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.systems.system import (
    CONVOLUTION_OUTPUT,
    Array,
    Execution,
    PyTree,
    Segment,
    Stage,
    State,
    System,
    Variables,
)

Body = Callable[[Segment, PyTree, PyTree], tuple[PyTree, PyTree]]
"""(segment, carry, what is given for a stage) -> (carry, result)."""


def fold(
    system: System, body: Body, carry: PyTree, per_stage: Mapping[str, PyTree]
) -> tuple[PyTree, dict[str, PyTree]]:
    """Run the stages of a system in order: scanned or unrolled, recomputed as its execution says.

    Args:
      system: names the stages.
      body: what is done at each of them.
      carry: handed on from stage to stage.
      per_stage: {segment: a tree}; in stacked segments its leaves have a leading axis [length].
        Interleaved segments take turns.

    Returns:
      The last carry, and {segment: results}, with a leading axis [length] in stacked segments.
    """
    results: dict[str, PyTree] = {}
    for run in system.runs:
        step = partial(_in_turn, body, run)
        given = {segment.name: per_stage[segment.name] for segment in run}
        first = run[0]
        if first.tied:  # `advance` recomputes its transitions one by one
            carry, own = step(carry, given)
        elif first.length is None:
            carry, own = _rematerialised(step, system.execution)(carry, given)
        else:
            carry, own = _loop(step, carry, given, first.length, system.execution)
        results.update(own)
    return carry, results


def _in_turn(
    body: Body, run: Sequence[Segment], carry: PyTree, given: Mapping[str, PyTree]
) -> tuple[PyTree, dict[str, PyTree]]:
    """One stage of every segment of a run."""
    results = {}
    for segment in run:
        carry, results[segment.name] = body(segment, carry, given[segment.name])
    return carry, results


def stages(system: System, variables: Variables) -> dict[str, Stage]:
    """What `fold` is given to run a system: {segment: stages}, without `shared` and
    `train`."""
    return {
        segment.name: Stage(
            variables.params.get(segment.name, {}),
            variables.batch_stats.get(segment.name, {}),
            _times(segment)[0] if segment.length is None else _times(segment),
        )
        for segment in system.segments
    }


def shared_parameters(system: System, params: PyTree) -> dict[str, PyTree]:
    """The parameters that several segments read."""
    return {name: params[name] for name in system.shared}


def advance(
    system: System,
    segment: Segment,
    stage: Stage,
    state: State,
    train_outputs: bool | None = None,
) -> tuple[Array | None, State, PyTree]:
    """One stage: its outputs, read before its transitions, the next state, new batch statistics.

    Args:
      system: gives the execution, for the transitions of a tied segment.
      segment: the stage's.
      stage: what it reads; of a tied segment, `time` and `batch_stats` of all transitions.
      state: x_k.
      train_outputs: `train` for the outputs; None means that of the stage.

    Returns:
      [transitions, batch, ...] (None where the segment has no output), x_{k+1}, batch statistics.
    """

    def transition(
        state: State, given: tuple[PyTree, Array]
    ) -> tuple[State, tuple[Array | None, PyTree]]:
        batch_stats, time = given
        own = stage._replace(batch_stats=batch_stats, time=time)
        output: Array | None = None
        output_stats: PyTree = {}
        if segment.output is not None:
            train = stage.train if train_outputs is None else train_outputs
            output, output_stats = segment.output(own._replace(train=train), state)
        state, state_stats = segment.transition(own, state)
        return state, (output, {**batch_stats, **state_stats, **output_stats})

    given = stage.batch_stats, stage.time
    if segment.tied:
        assert segment.length is not None
        state, (outputs, stats) = _loop(transition, state, given, segment.length, system.execution)
        return outputs, state, stats
    state, (output, stats) = transition(state, given)
    return None if output is None else output[None], state, stats


def in_order(system: System, outputs: Mapping[str, Array | None]) -> Array | None:
    """The outputs of every segment, as `fold` gathers them from `advance`, along one leading axis.

    Args:
      system: names the segments.
      outputs: {segment: [(length), outputs of a stage, ...] or None}.

    Returns:
      [outputs, ...], or None where no segment has any.
    """
    parts = []
    for segment in system.segments:  # of interleaved ones, one at most has outputs
        own = outputs[segment.name]
        if own is not None:
            parts.append(own.reshape(-1, *own.shape[2:]) if segment.stacked else own)
    return jnp.concatenate(parts) if parts else None


def _times(segment: Segment) -> Array:
    if segment.times is None:
        return jnp.arange(segment.transitions)
    return jnp.asarray(segment.times, jnp.result_type(float))


def _loop(
    step: Callable, carry: PyTree, given: PyTree, length: int, execution: Execution
) -> tuple[PyTree, PyTree]:
    """`lax.scan`, or the same written out."""
    step = _rematerialised(step, execution)
    if not execution.unroll:
        return lax.scan(step, carry, given, length=length)
    results = []
    for index in range(length):
        carry, result = step(carry, jax.tree.map(lambda leaf, i=index: leaf[i], given))
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _rematerialised(step: Callable, execution: Execution) -> Callable:
    """`step`, with its intermediate values recomputed in the backward pass."""
    if execution.remat == "none":
        return step
    policy = jax.checkpoint_policies.nothing_saveable
    if execution.remat == "convolutions":
        policy = jax.checkpoint_policies.save_only_these_names(CONVOLUTION_OUTPUT)
    # Inside a scan the loop itself keeps the compiler from merging the two computations.
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
