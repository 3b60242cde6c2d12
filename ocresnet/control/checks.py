"""What `ocnopt` refuses, in one sentence each."""

from dataclasses import replace
from types import FunctionType
from typing import Any, cast

import jax
import optax
from jax import lax

from ocresnet.control.curvature.kronecker import Kronecker
from ocresnet.control.curvature.protocol import Curvature
from ocresnet.control.linearize import Nominal
from ocresnet.control.settings import Equilibrium, Settings
from ocresnet.problem import Problem
from ocresnet.systems.system import PyTree, System


def check_problem(system: object) -> Problem:
    """The problem that `ocnopt` was given, or the ordinary one of the system."""
    if isinstance(system, Problem):
        return system
    if not isinstance(system, System):
        raise ValueError(
            f"ocnopt needs a System or a Problem, but was given {_name(system)}: an architecture "
            "has its own as architecture.system()."
        )
    return Problem(system)


def check_curvature(curvature: object, equilibrium: Equilibrium) -> Curvature:
    """The curvature that plays this equilibrium; refuse what is none, or cannot."""
    methods = ("init", "update", "solve", "metric", "needs_statistics")
    if isinstance(curvature, type) or not all(hasattr(curvature, name) for name in methods):
        raise ValueError(
            f"curvature is {_name(curvature)}, but must be what identity(), diagonal(), kfac() or "
            "ekfac() of ocresnet.control.curvature return."
        )
    if equilibrium == "nash" and isinstance(curvature, Kronecker):
        if curvature.coupling not in (None, "separate"):
            raise ValueError(
                f"coupling is {curvature.coupling!r}, but equilibrium 'nash' needs a curvature "
                "that is block diagonal over the players: choose coupling 'separate'."
            )
        return replace(curvature, coupling="separate")
    return cast(Curvature, curvature)


def check_params(system: System, params: PyTree, needs_all: bool) -> None:
    """Refuse parameters that are not those of the system.

    Args:
      system: names its parts.
      params: what `init` was given.
      needs_all: whether the system will be run with them.
    """
    segments = {segment.name: segment for segment in system.segments}
    known = {*segments, *system.shared}
    nodes = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    if needs_all and any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "ocnopt runs the whole system, but a mask around it hides some of its parameters: "
            "optax.masked and optax.multi_transform cannot be put around it."
        )
    for name in params:
        if name not in known:
            raise ValueError(
                f"the parameters have an entry {name!r}, but the system's parts are "
                f"{', '.join(sorted(known))}."
            )
    for name in system.shared:
        if name not in params:
            raise ValueError(f"the system shares {name!r}, which the parameters do not have.")
    for name, segment in segments.items():
        for player in segment.players:
            if player not in params.get(name, {}):
                entries = ", ".join(sorted(params.get(name, {}))) or "none"
                raise ValueError(
                    f"the player {player!r} has no part in the stages of segment {name!r}: players "
                    f"share a stage, as entries of its parameters, which are {entries}."
                )
        for leaf in jax.tree.leaves(params.get(name, {})):
            if segment.stacked and leaf.shape[:1] != (segment.length,):
                raise ValueError(
                    f"segment {name!r} has {segment.length} transitions, but an array of its "
                    f"parameters has shape {leaf.shape}: the first axis must be the transitions."
                )


def check_batch(batch: Any) -> int:
    """The number of samples of a batch; refuse what is none."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is {_name(batch)}, but must be a pair: batch=(inputs, targets).")
    inputs, targets = (jax.tree.leaves(part) for part in batch)
    if not (inputs and targets) or len(inputs[0]) != len(targets[0]):
        raise ValueError("batch must be inputs and targets of the same number of samples.")
    return len(targets[0])


def check_call(
    problem: Problem,
    settings: Settings,
    params: PyTree | None,
    batch: object,
    batch_stats: PyTree,
) -> None:
    """Refuse a call of `update` that lacks something, or has too much."""
    if batch is None or params is None:
        missing = "batch=(inputs, targets)" if batch is None else "the parameters"
        raise ValueError(
            f"ocnopt needs {missing}: call update(gradients, state, params, batch=(inputs, "
            "targets))."
        )
    shared = problem.system.shared
    if settings.feedback == "per_sample" and shared and not settings.inactive:
        raise ValueError(
            "feedback 'per_sample' needs a system without shared parameters, but this one shares "
            f"{', '.join(shared)}: use feedback 'stacked' or 'joint'."
        )
    if settings.inactive or not jax.tree.leaves(batch_stats):
        return
    if settings.feedback == "per_sample":
        raise ValueError(
            "feedback 'per_sample' cannot be used with batch statistics, which couple the "
            "samples: use feedback 'stacked' or 'joint'."
        )
    on_several = settings.axis_name is not None and lax.axis_size(settings.axis_name) > 1
    if settings.feedback == "joint" and on_several:
        raise ValueError(
            "feedback 'joint' cannot be used with batch statistics on several devices, which "
            "couple the groups of all: use feedback 'stacked', or one device."
        )


def check_nominal(problem: Problem, settings: Settings, nominal: Nominal) -> None:
    """Refuse a nominal pass that was not made for these settings; `problem` is in their stages."""
    keep = settings.keep
    if keep.trajectory and nominal.trajectory is None:
        raise ValueError(
            "nominal= has no trajectory, which this feedback walks along: call linearize with "
            "keep=Keep(trajectory=True)."
        )
    names = {segment.name for segment in problem.system.segments}
    if keep.trajectory and nominal.trajectory is not None and {*nominal.trajectory.states} != names:
        raise ValueError(
            "nominal= follows the stages of another alignment: call linearize with "
            f"keep=Keep(trajectory=True, alignment={keep.alignment!r})."
        )
    expected = keep.groups
    if keep.factor == "exact" and problem.cost.exact is not None:
        outputs = jax.eval_shape(problem.cost.exact, nominal.outputs)
        expected *= outputs.shape[0] * outputs.shape[1]
    columns = 1 if nominal.factors is None else jax.tree.leaves(nominal.factors)[0].shape[0]
    if columns != expected:
        raise ValueError(
            f"nominal= was made for another factor or other groups: call linearize with "
            f"keep=Keep(factor={keep.factor!r}, groups={keep.groups})."
        )


def _name(value: object) -> str:
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, type):
        return f"{value.__name__} itself"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}, uncalled"
    return f"a {type(value).__name__}"
