"""OCNOpt as an optax transformation: `scale_by_ocnopt` and `ocnopt`.

Liu, Chen and Theodorou 2025 train a network as an optimal control problem: the Bellman recursion is
kept to second order, and every stage k gets a feedback policy

    d theta_k(dx_k) = -eta M_k^-1 (Q_theta + Q_theta,x dx_k)

instead of a fixed step. `bellman.py` solves the recursion, `policy.py` applies the policy.
"""

import sys
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.control.bellman import ValueUpdate
from ocresnet.control.costs import Factor
from ocresnet.control.coupled import coupled_step
from ocresnet.control.curvature import identity
from ocresnet.control.curvature_protocol import Curvature, CurvatureState
from ocresnet.control.nominal import Nominal
from ocresnet.control.per_sample import per_sample_step
from ocresnet.control.problem import ControlProblem, objective
from ocresnet.control.settings import Feedback, Info, RolloutKind, Settings
from ocresnet.systems import taps
from ocresnet.systems.system import PyTree, System

Array = jax.Array


class OCNOptState(NamedTuple):
    """Attributes:
    steps: updates done, int32.
    curvature: state of the curvature.
    info: diagnostics of the last update.
    """

    steps: Array
    curvature: CurvatureState
    info: Info


def scale_by_ocnopt(
    system: System | ControlProblem,
    learning_rate: float | Array | optax.Schedule,
    *,
    curvature: Curvature = identity(),
    feedback: Feedback = "stacked",
    rollout: RolloutKind = "nonlinear",
    beta: float | Array = 1.0,
    value_beta: float | Array | None = None,
    value_update: ValueUpdate = "exact",
    forward_feedback: bool = True,
    factor: Factor = "gradient",
    groups: int = 1,
    axis_name: str | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the OCNOpt direction  -d theta / eta.

    Like every `scale_by_...` it leaves the multiplication with -eta to a later transformation; eta
    is needed here too, because later stages react to what the earlier ones will do.

    Arguments, the arguments of `update` and errors are those of `ocnopt`.
    """
    problem = system if isinstance(system, ControlProblem) else ControlProblem(system)
    settings = Settings(
        feedback,
        rollout,
        beta,
        value_beta,
        value_update,
        forward_feedback,
        factor,
        groups,
        axis_name,
    )
    needs_batch = curvature.needs_statistics or not settings.inactive

    def init(params: PyTree) -> OCNOptState:
        check_params(problem.system, params)
        if needs_batch:
            _refuse_accumulation()
        scalar, stages = jnp.zeros((), jnp.float32), jnp.zeros(problem.stages, jnp.float32)
        return OCNOptState(
            steps=jnp.zeros((), jnp.int32),
            curvature=curvature.init(problem.system, params),
            info=Info(scalar, scalar, stages, stages),
        )

    def update(
        gradients: PyTree,
        state: OCNOptState,
        params: PyTree | None = None,
        *,
        batch: tuple[Array, Array] | None = None,
        batch_stats: PyTree | None = None,
        nominal: Nominal | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OCNOptState]:
        del extra_args
        if needs_batch and (batch is None or params is None):
            missing = "batch=(images, labels)" if batch is None else "the parameters"
            raise ValueError(
                f"ocnopt needs {missing}: call update(gradients, state, params, batch=(images, "
                "labels))."
            )
        if nominal is not None and not settings.inactive:
            _check_nominal(problem, settings, nominal)
        stats = {} if batch_stats is None else batch_stats
        if settings.feedback == "per_sample" and jax.tree.leaves(stats):
            raise ValueError(
                "feedback 'per_sample' cannot be used with batch statistics, which couple the "
                "samples: use feedback 'stacked' or 'joint'."
            )
        samples = 1
        if batch is not None:
            samples = len(batch[1]) * (1 if axis_name is None else lax.axis_size(axis_name))

        def statistics(recording: PyTree) -> PyTree:
            assert batch is not None

            def total_cost(recording: PyTree) -> Array:
                tapped = taps.merge(params, recording)
                return len(batch[1]) * objective(problem, tapped, stats, *batch)

            recorded = jax.grad(total_cost)(recording)
            return recorded if axis_name is None else lax.psum(recorded, axis_name)

        curvature_state = curvature.update(state.curvature, gradients, samples, statistics)
        if settings.inactive:
            directions = curvature.solve(curvature_state.entries, gradients)
            return directions, OCNOptState(state.steps + 1, curvature_state, state.info)

        assert batch is not None
        eta = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        key = jax.random.fold_in(jax.random.key(seed), state.steps)
        entries = curvature_state.entries
        if settings.feedback == "per_sample":
            directions, info = per_sample_step(
                problem, settings, params, batch, nominal, curvature, entries, eta, key
            )
        else:
            solve = partial(curvature.solve, entries)
            directions, info = coupled_step(
                problem, settings, params, stats, batch, gradients, nominal, solve, eta, key
            )
        directions = jax.tree.map(lambda d, g: d.astype(g.dtype), directions, dict(gradients))
        change = -eta * optax.tree.vdot(gradients, directions)
        info = info._replace(predicted_change=change)
        info = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), info)
        return directions, OCNOptState(state.steps + 1, curvature_state, info)

    return optax.GradientTransformationExtraArgs(init, update)


def ocnopt(
    system: System | ControlProblem,
    learning_rate: float | Array | optax.Schedule,
    *,
    momentum: float | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    **choices: Any,
) -> optax.GradientTransformationExtraArgs:
    """OCNOpt: the Bellman recursion, kept to second order, as an optimizer.

    Every stage k of the system (a transition; all shared parameters together are the first stage)
    moves by the feedback policy

        d theta_k(dx_k) = -eta M_k^-1 (Q_theta + Q_theta,x dx_k).

    Args:
      system: the network, or a `ControlProblem` where its cost is not the cross-entropy of its last
        output (stage costs, another loss, recomputation in the backward pass).
      learning_rate: eta > 0, or a schedule of it over updates.
      momentum: decay of an accumulator of directions, as in `optax.trace`; the policy then counts
        on the step eta / (1 - momentum) that a direction causes in the end.
      weight_decay: decoupled, as in AdamW: eta * weight_decay * theta is subtracted.
      weight_decay_mask: which parameters decay, as in `optax.add_decayed_weights`.
      **choices: what follows, handed to `scale_by_ocnopt`.
      curvature: M_k: `curvature.identity()`, `diagonal()`, `kfac()` or `ekfac()`.
      feedback: "none": the base optimizer. "stacked": the batch is one state, one scalar a stage.
        "per_sample": the papers' form, every sample a problem of its own, policies averaged; not
        with batch norm. "joint": as "stacked", with the exact coupling of `groups` equal parts of
        the batch (on several devices, of each device's part); with as many groups as samples, the
        Levenberg-Marquardt step. Memory for one gradient a group.
      rollout: "nonlinear": a second forward pass that applies the policy. "linear": along the
        linearised dynamics; in closed form, without any pass, but for "per_sample".
      beta: weight of the terminal curvature; 0 is the base optimizer, to the bit. With "per_sample"
        1 / batch is gentler; it weighs hard samples down less.
      value_beta: the same in the value function alone; None: `beta`. The scale that a direct
        implementation of the papers has is beta = 1 / batch, value_beta = 1 / batch^2.
      value_update: "exact": Q_theta,theta = M / eta + the stage's own block (Sherman-Morrison,
        Woodbury; factors in (0, 1]). "clipped": the papers' substitution of M / eta, clipped at 0.
        "none": no value correction.
      forward_feedback: apply the feedback in the forward pass; False leaves the value correction.
      factor: of the terminal curvature: "gradient" (the papers'), "sampled" or "exact"; `costs.py`.
      groups: of feedback "joint".
      axis_name: the mapped axis over devices; gradients come as means over it.
      seed: of random factors.

    Returns:
      A transformation whose `update(gradients, state, params, batch=(images, labels))` also takes
      `batch_stats=` (the network's, where it has some; they are read, never returned) and
      `nominal=`, the result of `linearize` for the same batch, factor and groups, which saves
      computing it again. "joint" with the gradient factor uses the gradients of its groups; the
      gradients that are handed in then only serve the curvature. The inner state's `info` has the
      diagnostics.

    Raises:
      ValueError: for impossible choices here; in `init` for parameters that do not fit the system,
        or inside `optax.MultiSteps`, which would hand on the last micro-batch only; in `update` for
        a missing `batch`, or per-sample feedback with batch statistics or shared parameters.

    Example:
      >>> tx = ocnopt(system, learning_rate=0.1, curvature=ekfac(), feedback="stacked")
      >>> updates, state = tx.update(gradients, state, params, batch=(images, labels))
    """
    if isinstance(learning_rate, (int, float)) and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate!r}, but must be a positive number.")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum!r}, but must be in [0, 1), or None.")
    lasting = 1 / (1 - (momentum or 0.0))

    def effective(count: Array) -> Array:
        rate = learning_rate(count) if callable(learning_rate) else learning_rate
        return jnp.asarray(rate * lasting)

    transformations = [scale_by_ocnopt(system, effective, **choices)]
    if momentum:
        transformations.append(optax.trace(momentum))
    if not isinstance(weight_decay, (int, float)) or weight_decay != 0:
        transformations.append(optax.add_decayed_weights(weight_decay, weight_decay_mask))
    transformations.append(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(*transformations)


def scale_by_curvature(
    curvature: Curvature, system: System | ControlProblem, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """M^-1 g alone, without control: K-FAC, EKFAC or RMSprop as an optax transformation.

    Args:
      curvature: M.
      system: the network, or a `ControlProblem`, as for `ocnopt`.
      axis_name: the mapped axis over devices.

    Returns:
      A transformation; with K-FAC and EKFAC its `update` needs `batch=(images, labels)`.
    """
    return scale_by_ocnopt(system, 1.0, curvature=curvature, feedback="none", axis_name=axis_name)


def check_params(system: System, params: PyTree) -> None:
    """Refuse parameters that are not those of the system."""
    segments = {segment.name: segment for segment in system.segments}
    known = {*segments, *system.shared}
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
        for leaf in jax.tree.leaves(params.get(name, {})):
            if segment.length is not None and leaf.shape[:1] != (segment.length,):
                raise ValueError(
                    f"segment {name!r} has {segment.length} transitions, but an array of its "
                    f"parameters has shape {leaf.shape}: the first axis must be the transitions."
                )


def _check_nominal(problem: ControlProblem, settings: Settings, nominal: Nominal) -> None:
    """Refuse a nominal pass that was not made for these settings."""
    if settings.needs_trajectory and nominal.trajectory is None:
        raise ValueError(
            "nominal= has no trajectory, which this feedback walks along: call linearize with "
            "keep_trajectory=True."
        )
    if settings.feedback == "per_sample":
        return
    expected = settings.groups
    if settings.factor == "exact" and problem.cost.exact is not None:
        outputs = jax.eval_shape(problem.cost.exact, nominal.outputs)
        expected *= outputs.shape[0] * outputs.shape[1]
    columns = 1 if nominal.factors is None else jax.tree.leaves(nominal.factors)[0].shape[0]
    if columns != expected:
        raise ValueError(
            f"nominal= was made for another factor or other groups: call linearize with factor="
            f"{settings.factor!r} and groups={settings.groups}."
        )


def _refuse_accumulation() -> None:
    """optax.MultiSteps gives the mean gradient of several micro-batches, but `batch` of the last.

    Nothing in its call says so; its own frame on the stack does.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), optax.MultiSteps):
            raise ValueError(
                "ocnopt cannot be used inside optax.MultiSteps, which hands on only the last "
                "micro-batch: give it the whole batch, or use feedback 'joint' with groups."
            )
        frame = frame.f_back
