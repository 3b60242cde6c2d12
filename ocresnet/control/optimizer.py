"""OCNOpt as an optax transformation: `scale_by_ocnopt` and `ocnopt`.

Liu, Chen and Theodorou 2025 train a network as an optimal control problem: the Bellman recursion is
kept to second order, and every stage k gets a feedback policy

    d theta_k(dx_k) = s_k - eta M_k^-1 (Q_theta + Q_theta,x dx_k)

instead of a fixed step. An update is: curvature (M), linearize (around the current parameters),
value (the recursion, backward), rollout (the policy applied, forward). What momentum and weight
decay do is s_k, which the policy counts on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.control import coupled, per_sample
from ocresnet.control.alignment import Alignment
from ocresnet.control.checks import (
    check_batch,
    check_call,
    check_curvature,
    check_nominal,
    check_params,
    check_problem,
)
from ocresnet.control.curvature import identity
from ocresnet.control.curvature.protocol import Curvature, CurvatureState, Statistics
from ocresnet.control.drift import Drift
from ocresnet.control.linearize import Nominal, linearize
from ocresnet.control.settings import (
    Applied,
    Feedback,
    Info,
    RolloutKind,
    Settings,
    Step,
    ValueUpdate,
)
from ocresnet.control.value import Decision
from ocresnet.control.view import View, aligned
from ocresnet.costs import Factor
from ocresnet.problem import Problem, objective
from ocresnet.systems import taps
from ocresnet.systems.system import PyTree, System, Variables

Array = jax.Array


class OCNOptState(NamedTuple):
    """Attributes:
    steps: updates done, int32.
    curvature: state of the curvature.
    drift: state of momentum and weight decay.
    info: diagnostics of the last update.
    """

    steps: Array
    curvature: CurvatureState
    drift: optax.OptState
    info: Info


def scale_by_ocnopt(
    system: System | Problem,
    learning_rate: float | Array | optax.Schedule,
    *,
    curvature: Curvature = identity(),
    feedback: Feedback = "stacked",
    rollout: RolloutKind = "nonlinear",
    beta: float | Array = 1.0,
    value_beta: float | Array | None = None,
    value_update: ValueUpdate | Decision = "exact",
    factor: Factor = "gradient",
    groups: int | None = None,
    alignment: Alignment | None = None,
    momentum: float | Array | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the OCNOpt direction  -d theta / eta, momentum and decay included.

    Like every `scale_by_...` it leaves the multiplication with -eta to a later transformation; eta
    is needed here too, because later stages react to what the earlier ones will do.

    Arguments, the arguments of `update` and errors are those of `ocnopt`.
    """
    problem = check_problem(system)
    check_curvature(curvature)
    settings = Settings(
        feedback,
        rollout,
        beta,
        value_beta,
        value_update,
        factor,
        1 if groups is None else groups,
        axis_name,
        alignment,
    )
    view = aligned(problem, alignment)
    needs_batch = curvature.needs_statistics or not settings.inactive
    drift = Drift.of(momentum, weight_decay, weight_decay_mask)

    def init(params: PyTree) -> OCNOptState:
        check_params(problem.system, params, needs_batch)
        stages = jnp.zeros(view.problem.stages, jnp.float32)
        scalar = jnp.zeros((), jnp.float32)
        return OCNOptState(
            steps=jnp.zeros((), jnp.int32),
            curvature=curvature.init(problem.system, params),
            drift=drift.init(params),
            info=Info(scalar, scalar, stages, stages),
        )

    def update(
        gradients: PyTree,
        state: OCNOptState,
        params: PyTree | None = None,
        *,
        batch: tuple[PyTree, PyTree] | None = None,
        batch_stats: PyTree | None = None,
        nominal: Nominal | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OCNOptState]:
        del extra_args
        batch_stats = {} if batch_stats is None else batch_stats
        samples = check_batch(batch) if batch is not None else 1
        if needs_batch:
            check_call(problem, settings, params, batch, batch_stats)
        if axis_name is not None:
            samples *= lax.axis_size(axis_name)

        statistics = _statistics(problem, params, batch_stats, batch, axis_name)
        curvature_state = curvature.update(state.curvature, gradients, samples, statistics)
        if settings.inactive:
            directions, info = curvature.solve(curvature_state.entries, gradients), state.info
        else:
            assert batch is not None
            eta = learning_rate(state.steps) if callable(learning_rate) else learning_rate
            key = jax.random.fold_in(jax.random.key(seed), state.steps)
            step = Step(
                problem,
                settings,
                Variables(params, batch_stats),
                batch,
                gradients,
                drift.predict(state.drift, params, eta),
                curvature,
                curvature_state.entries,
                eta,
                key,
            )
            nominal = _linearized(step, nominal)
            applied = _decide(step, nominal, view)
            directions = jax.tree.map(
                lambda d, g: d.astype(g.dtype), applied.directions, dict(gradients)
            )
        directions, drift_state = drift.update(directions, state.drift, params)
        if not settings.inactive:
            change = -eta * optax.tree.vdot(gradients, directions)
            info = Info(applied.trust, change, applied.weights, applied.deviations)
            info = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), info)
        return directions, OCNOptState(state.steps + 1, curvature_state, drift_state, info)

    return optax.GradientTransformationExtraArgs(init, update)


def ocnopt(
    system: System | Problem,
    learning_rate: float | Array | optax.Schedule,
    *,
    curvature: Curvature = identity(),
    feedback: Feedback = "stacked",
    rollout: RolloutKind = "nonlinear",
    beta: float | Array = 1.0,
    value_beta: float | Array | None = None,
    value_update: ValueUpdate | Decision = "exact",
    factor: Factor = "gradient",
    groups: int | None = None,
    alignment: Alignment | None = None,
    momentum: float | Array | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """OCNOpt: the Bellman recursion, kept to second order, as an optimizer.

    Every stage k of the system (a transition, or all of a tied segment; all shared parameters
    together are the first stage) moves by the feedback policy

        d theta_k(dx_k) = s_k - eta M_k^-1 (Q_theta + Q_theta,x dx_k),

    where s_k is what momentum and weight decay change.

    Args:
      system: the network, or a `Problem` where its cost is not the cross-entropy of its last output
        (stage costs, another loss).
      learning_rate: eta > 0, or a schedule of it over updates.
      curvature: M_k: `curvature.identity()`, `diagonal()`, `kfac()` or `ekfac()`.
      feedback: "none": the base optimizer. "stacked": the batch is one state, one scalar a stage.
        "per_sample": the papers' form, every sample a problem of its own, policies averaged; not
        with batch norm. "joint": as "stacked", with the exact coupling of `groups` equal parts of
        the batch (on several devices, of each device's part); with as many groups as samples, the
        Levenberg-Marquardt step. Memory for one gradient a group; with batch statistics, for the
        whole batch's states as well, as these couple the groups.
      rollout: "nonlinear": a second forward pass that applies the policy. "linear": along the
        linearised dynamics; in closed form, without any pass, but for "per_sample".
      beta: weight of the terminal curvature in the feedback; 0 with `value_beta` 0 or None is the
        base optimizer, to the bit; 0 with another `value_beta` leaves the value correction alone.
        With "per_sample" 1 / batch is gentler; it weighs hard samples down less.
      value_beta: the same in the value function; None: `beta`; 0: no value correction. The scale
        that a direct implementation of the papers has is beta = 1 / batch, value_beta =
        1 / batch^2.
      value_update: "exact": Q_theta,theta = M / eta + the stage's own block (Sherman-Morrison,
        Woodbury; factors in (0, 1]). "clipped": the papers' substitution of M / eta, clipped at 0.
        Or a function: another `Decision` of a stage (`value.py`).
      factor: of the terminal curvature: "gradient" (the papers'), "sampled" or "exact"; `costs.py`.
      groups: of feedback "joint"; None: one.
      momentum: decay of an accumulator of directions, as in `optax.trace`.
      weight_decay: decoupled, as in AdamW: eta * weight_decay * theta is subtracted.
      weight_decay_mask: which parameters decay, as in `optax.add_decayed_weights`.
      axis_name: the mapped axis over devices; gradients come as means over it.
      seed: of random factors.

    Returns:
      A transformation whose `update(gradients, state, params, batch=(inputs, targets))` also takes
      `batch_stats=` (the network's, where it has some; they are read, never returned) and
      `nominal=`, the result of `linearize` for the same batch with `keep=Settings(...).keep`, which
      saves computing it again. Where the gradients are the very arrays of `nominal.gradient`, a
      column less is solved for. The inner state's `info` has the diagnostics.

      Whatever gradients come in are what is minimised: also clipped ones, or the mean of several
      micro-batches that `optax.MultiSteps` hands on. The terminal curvature, the deviations and
      K-FAC's statistics are those of `batch`, the last of them. What follows ocnopt in a chain must
      leave the step as it is: the policy cannot know of a clip or of `optax.apply_every` after it.
      With `optax.inject_hyperparams`, `groups` and a mask or `value_update` that is a function are
      `static_args`.

    Raises:
      ValueError: for impossible choices here; in `init` for parameters that do not fit the system;
        in `update` for a missing `batch`, or per-sample feedback with batch statistics or shared
        parameters.

    Example:
      >>> tx = ocnopt(system, learning_rate=0.1, curvature=ekfac(), feedback="stacked")
      >>> updates, state = tx.update(gradients, state, params, batch=(inputs, targets))
    """
    if isinstance(learning_rate, (int, float)) and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate is {learning_rate!r}, but must be a positive number.")
    if isinstance(momentum, (int, float)) and not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum!r}, but must be in [0, 1), or None.")
    direction = scale_by_ocnopt(
        system,
        learning_rate,
        curvature=curvature,
        feedback=feedback,
        rollout=rollout,
        beta=beta,
        value_beta=value_beta,
        value_update=value_update,
        factor=factor,
        groups=groups,
        alignment=alignment,
        momentum=momentum,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        axis_name=axis_name,
        seed=seed,
    )
    return optax.chain(direction, optax.scale_by_learning_rate(learning_rate))


def scale_by_curvature(
    curvature: Curvature, system: System | Problem, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """M^-1 g alone, without control: K-FAC, EKFAC or RMSprop as an optax transformation.

    Args:
      curvature: M.
      system: the network, or a `Problem`, as for `ocnopt`.
      axis_name: the mapped axis over devices.

    Returns:
      A transformation; with K-FAC and EKFAC its `update` needs `batch=(inputs, targets)`.
    """
    return scale_by_ocnopt(system, 1.0, curvature=curvature, feedback="none", axis_name=axis_name)


def _decide(step: Step, nominal: Nominal | None, view: View) -> Applied:
    """The policy solved for and applied, in the stages of a view."""
    form = per_sample if step.settings.feedback == "per_sample" else coupled
    seen = step.seen(view)
    if nominal is not None:
        factors = nominal.factors
        nominal = nominal._replace(
            gradient=view.split(nominal.gradient),
            factors=None if factors is None else view.split(factors),
        )
    columns = form.make_columns(seen, nominal)
    policy = form.solve_value(seen, columns)
    applied = form.roll_out(seen, nominal, columns, policy)
    return applied._replace(directions=view.join(applied.directions, step.gradient))


def _statistics(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    batch: tuple[PyTree, PyTree] | None,
    axis_name: str | None,
) -> Statistics:
    """What a backward pass of the sum of all samples' costs records in taps."""

    def statistics(recording: PyTree) -> PyTree:
        assert batch is not None
        samples = len(jax.tree.leaves(batch[1])[0])

        def total_cost(recording: PyTree) -> Array:
            tapped = taps.merge(params, recording)
            return samples * objective(problem, tapped, batch_stats, *batch)

        recorded = jax.grad(total_cost)(recording)
        return recorded if axis_name is None else lax.psum(recorded, axis_name)

    return statistics


def _linearized(step: Step, nominal: Nominal | None) -> Nominal | None:
    """The nominal trajectory that was handed in, or a new one where it is needed."""
    settings = step.settings
    if nominal is not None:
        check_nominal(step.problem, settings, nominal)
        return nominal
    if not settings.keep.trajectory and settings.gradient_is_factor:
        return None
    key = step.key
    if settings.axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(settings.axis_name))
    return linearize(step.problem, *step.variables, *step.batch, settings.keep, key)
