"""A network as a controlled system, and the one fold that runs it.

Notation
    x_k       state that enters transition k: any pytree of activations
    theta_k   control: the parameters of transition k
    f_k       transition;  S_k its skip connection, where it is residual: f_k = S_k + branch
    h_k       output function: reads an intermediate output y_k from the state
    t_k       time: the transition's index in its segment, or what the segment gives
    segment   a run of transitions that are one function with different controls, or tied ones

    x_{k+1} = f_k(x_k, theta_k),   y_k = h_k(x_k, theta_k),   k = 0 ... K-1

The controls of a segment are stacked along a leading axis. A **stage** is a step of the control
problem: one transition, or all of a tied segment, whose transitions have one control in common.
`fold` alone knows how stages are run: scanned, or one after the other (`Execution.unroll`, the
oracle that the scan is tested against), and what a backward pass recomputes.
Batch statistics are never hidden: transitions and outputs take them and return the new ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any
Array = jax.Array
State = PyTree

Precision = Literal["float32", "bfloat16", "float64"]

Remat = Literal["none", "convolutions", "everything"]
"""What the backward pass recomputes: nothing, all but convolutions, or everything in a block."""

CONVOLUTION_OUTPUT = "convolution_output"
"""The `checkpoint_name` that layers give a convolution's result, kept by `remat="convolutions"`."""


@dataclass(frozen=True)
class Execution:
    """How a system is computed; its result is the same but for rounding.

    Attributes:
      precision: dtype of the activations. Parameters, batch statistics and logits stay float32.
      remat: what the backward pass recomputes.
      unroll: run transitions one by one instead of by `lax.scan`: slow to compile.

    Raises:
      ValueError: for an unknown precision or remat.
    """

    precision: Precision = "float32"
    remat: Remat = "convolutions"
    unroll: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("precision", get_args(Precision)), ("remat", get_args(Remat))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(allowed)}."
                )


class Variables(NamedTuple):
    """All arrays of a network: what is trained, and what normalisation has gathered.

    Both are dictionaries with one entry a segment (and, in `params`, one a shared part).
    """

    params: PyTree
    batch_stats: PyTree


class Stage(NamedTuple):
    """What a transition, or an output, reads besides the state.

    Attributes:
      params: theta_k.
      batch_stats: its batch statistics.
      time: t_k, [].
      shared: the system's shared parameters, by name.
      train: whether it normalises with (and updates) batch statistics.

    What is the same for all stages, `shared` and `train`, is None where stages are only listed.
    """

    params: PyTree
    batch_stats: PyTree
    time: Array
    shared: PyTree = None
    train: bool | None = None


Transition = Callable[[Stage, State], tuple[State, PyTree]]
"""(stage, x_k) -> (x_{k+1}, changed batch statistics)."""

Output = Callable[[Stage, State], tuple[Array, PyTree]]
"""(stage, x_k) -> (y_k, changed batch statistics)."""

Skip = Callable[[Stage, State], State]
"""(stage, x_k) -> S_k(x_k)."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of transitions that are one function with different controls.

    Attributes:
      name: the segment's key in `params` and `batch_stats`.
      transition: x_{k+1} = f(x_k, theta_k).
      output: y_k = h(x_k, theta_k), or None where the segment has no intermediate outputs.
      skip: S_k of residual blocks; None where the transitions are none.
      length: how many transitions; the segment's arrays have this leading axis. None: one
        transition, whose arrays have no leading axis.
      tied: all transitions have the same parameters, whose arrays then have no leading axis (those
        of their batch statistics have): the run is one stage.
      times: t_k of every transition; None: their indices.
      layers: the affine layers among the segment's own parameters, each read once by a transition
        or its output, by their path in the parameters of one transition (as in
        "residual/convolution_1"; "" where these are the layer's). What no layer is declared for is
        known as arrays alone.
      players: entries of the segment's own parameters that decide for themselves, where control is
        a game; what is not named is one player, the first.
    """

    name: str
    transition: Transition
    output: Output | None = None
    skip: Skip | None = None
    length: int | None = None
    tied: bool = False
    times: tuple[float, ...] | None = None
    layers: Mapping[str, Any] = field(default_factory=dict)
    players: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tied and self.length is None:
            raise ValueError(f"segment {self.name!r} is tied, but has no length.")
        if self.transitions < 1:
            raise ValueError(f"segment {self.name!r} has length {self.length}: leave it out.")
        if self.times is not None and len(self.times) != self.transitions:
            raise ValueError(
                f"segment {self.name!r} has {len(self.times)} times, but {self.transitions} "
                "transitions: each needs one."
            )

    @property
    def transitions(self) -> int:
        """How many there are."""
        return 1 if self.length is None else self.length

    @property
    def stacked(self) -> bool:
        """Whether the segment's parameters have a leading axis: one stage for each transition."""
        return self.length is not None and not self.tied

    @property
    def stages(self) -> int:
        """How many stages of the control problem it is."""
        return self.transitions if self.stacked else 1

    @property
    def outputs(self) -> int:
        """How many intermediate outputs it has."""
        return 0 if self.output is None else self.transitions


def _unchanged(inputs: Array) -> State:
    return inputs


@dataclass(frozen=True, eq=False)
class System:
    """A sequence of segments.

    Attributes:
      segments: in the order they are run.
      shared: names of the parameters that several segments read.
      shared_layers: the affine layers among those, by their path in the network's parameters.
      initial_state: x_0 from the network's inputs (normalised images, for example).
      execution: how it is computed; unless it is given, the backward pass recomputes nothing, as
        transitions of one's own may name no results to keep.

    Raises:
      ValueError: for segments of one name, and for none.
    """

    segments: tuple[Segment, ...]
    shared: tuple[str, ...] = ()
    shared_layers: Mapping[str, Any] = field(default_factory=dict)
    initial_state: Callable[[Array], State] = _unchanged
    execution: Execution = Execution(remat="none")

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a system needs segments of different names, but got {names}.")

    @property
    def outputs(self) -> int:
        """How many intermediate outputs there are."""
        return sum(segment.outputs for segment in self.segments)

    @property
    def blocks(self) -> tuple[Segment, ...]:
        """The segments of residual blocks."""
        return tuple(segment for segment in self.segments if segment.skip is not None)

    def with_own_output_only(self) -> "System":
        """The same system without its intermediate outputs."""
        return replace(
            self, segments=tuple(replace(segment, output=None) for segment in self.segments)
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

    Returns:
      The last carry, and {segment: results}, with a leading axis [length] in stacked segments.
    """
    results: dict[str, PyTree] = {}
    for segment in system.segments:
        step = partial(body, segment)
        given = per_stage[segment.name]
        if segment.tied:  # `advance` recomputes its transitions one by one
            carry, results[segment.name] = step(carry, given)
        elif segment.length is None:
            carry, results[segment.name] = _rematerialised(step, system.execution)(carry, given)
        else:
            carry, results[segment.name] = _loop(
                step, carry, given, segment.length, system.execution
            )
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


def in_order(system: System, outputs: Mapping[str, Array | None]) -> Array | None:
    """The outputs of every segment, as `fold` gathers them from `advance`, along one leading axis.

    Args:
      system: names the segments.
      outputs: {segment: [(length), outputs of a stage, ...] or None}.

    Returns:
      [outputs, ...], or None where no segment has any.
    """
    parts = []
    for segment in system.segments:
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
