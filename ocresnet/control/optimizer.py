"""OCNOpt as an optax transformation: `scale_by_ocnopt` and `ocnopt`.

Liu, Chen and Theodorou 2025 train a network as an optimal control problem: the Bellman recursion is
kept to second order, and every stage k gets a feedback policy

    d theta_k(dx_k) = s_k - eta M_k^-1 (Q_theta + Q_theta,x dx_k)

instead of a fixed step. An update is: curvature (M), linearize (around the current parameters),
value (the recursion, backward), rollout (the policy applied, forward). What momentum and weight
decay do is s_k, which the policy counts on.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ocresnet.control import adaptive
from ocresnet.control.adaptive import Adaptive, AdaptiveState
from ocresnet.control.alignment import Alignment
from ocresnet.control.checks import (
    check_batch,
    check_call,
    check_curvature,
    check_nominal,
    check_params,
    check_problem,
)
from ocresnet.control.curvature import ekfac
from ocresnet.control.curvature.protocol import (
    Curvature,
    CurvatureState,
    Statistics,
    first_samples,
)
from ocresnet.control.drift import Drift
from ocresnet.control.linearize import Nominal
from ocresnet.control.policy import decide
from ocresnet.control.region import next_caution
from ocresnet.control.settings import (
    Equilibrium,
    Feedback,
    Info,
    Region,
    RolloutKind,
    Settings,
    Step,
    ValueUpdate,
)
from ocresnet.control.value import Decision
from ocresnet.control.view import aligned
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
    share: rho of the last update, [] (`drift.py`); before the first one 0.
    caution: k of the next update, [] (`region.py`).
    info: diagnostics of the last update.
    adaptive: of an alignment that changes; None where it stays.
    """

    steps: Array
    curvature: CurvatureState
    drift: optax.OptState
    share: Array
    caution: Array
    info: Info
    adaptive: AdaptiveState | None


def scale_by_ocnopt(
    system: System | Problem,
    learning_rate: float | Array | optax.Schedule = 1.0,
    *,
    curvature: Curvature = ekfac(),
    feedback: Feedback = "stacked",
    rollout: RolloutKind = "linear",
    beta: float | Array = 1.0,
    value_beta: float | Array | None = None,
    value_update: ValueUpdate | Decision = "exact",
    equilibrium: Equilibrium = "cooperative",
    factor: Factor = "gradient",
    groups: int | None = None,
    alignment: Alignment | Adaptive | Literal["adaptive"] = "blocks",
    momentum: float | Array | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    region: Region | None = None,
    lower_bound: float | None = None,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the OCNOpt direction  -d theta / eta, momentum and decay included.

    Like every `scale_by_...` it leaves the multiplication with -eta to a later transformation; eta
    is needed here too, because later stages react to what the earlier ones will do.

    Arguments, the arguments of `update` and errors are those of `ocnopt`.
    """
    problem = check_problem(system)
    curvature = check_curvature(curvature, equilibrium)
    settings = Settings(
        feedback,
        rollout,
        beta,
        value_beta,
        value_update,
        equilibrium,
        factor,
        1 if groups is None else groups,
        axis_name,
        region,
        lower_bound,
        alignment,
    )
    changing, of_arms = settings.adaptive, settings.of_arms
    views = [aligned(problem, own) for own in settings.alignments]
    stages = max(view.problem.stages for view in views)
    needs_batch = curvature.needs_statistics or not settings.inactive
    drift = Drift.of(momentum, weight_decay, weight_decay_mask)

    def init(params: PyTree) -> OCNOptState:
        check_params(problem.system, params, needs_batch)
        scalar, of_stages = jnp.zeros((), jnp.float32), jnp.zeros(stages, jnp.float32)
        return OCNOptState(
            steps=jnp.zeros((), jnp.int32),
            curvature=curvature.init(problem.system, params),
            drift=drift.init(params),
            share=scalar,
            caution=jnp.ones((), jnp.float32),
            info=Info(scalar, scalar, of_stages, of_stages),
            adaptive=None if changing is None else adaptive.init(changing),
        )

    def update(
        gradients: PyTree,
        state: OCNOptState,
        params: PyTree | None = None,
        *,
        batch: tuple[PyTree, PyTree] | None = None,
        batch_stats: PyTree | None = None,
        nominal: Nominal | None = None,
        value: Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, OCNOptState]:
        del extra_args
        batch_stats = {} if batch_stats is None else batch_stats
        samples = check_batch(batch) if batch is not None else 1
        choice = state.adaptive
        if needs_batch:
            check_call(problem, settings, params, batch, batch_stats)
        if axis_name is not None:
            samples *= lax.axis_size(axis_name)

        statistics = _statistics(problem, params, batch_stats, batch, axis_name)
        curvature_state = curvature.update(state.curvature, gradients, samples, statistics)
        if settings.inactive:
            directions = curvature.solve(curvature_state.entries, gradients)
            directions, drift_state = drift.update(directions, state.drift, params, 1.0)
            share, caution, info = state.share, state.caution, state.info
        else:
            assert batch is not None
            eta = learning_rate(state.steps) if callable(learning_rate) else learning_rate
            if settings.region == "fixed":
                rate, moves = eta, drift.predict(state.drift, params, eta, state.share)
            else:
                rate, moves = drift.lasting(eta), drift.predict_decay(params, eta, state.share)
            key = jax.random.fold_in(jax.random.key(seed), state.steps)
            step = Step(
                problem,
                settings,
                Variables(params, batch_stats),
                batch,
                gradients,
                moves,
                curvature,
                curvature_state.entries,
                rate,
                key,
                value,
                state.caution,
            )
            if nominal is not None:
                check_nominal(views[0].problem, settings, nominal)
                if changing is not None:  # each arm makes that of its own stages
                    nominal = nominal._replace(trajectory=None)
            decisions = [
                partial(decide, step._replace(settings=own), nominal, view, stages)
                for own, view in zip(of_arms, views, strict=True)
            ]
            if changing is None:
                applied = decisions[0]()
            else:
                assert choice is not None
                cost = _cost(value, nominal, axis_name)
                arm_key, _ = jax.random.split(key)
                applied, choice = adaptive.play(
                    changing, choice, state.steps, arm_key, cost, decisions
                )
            directions, drift_state = drift.update(
                applied.directions, state.drift, params, state.share
            )
            change = -eta * optax.tree.vdot(gradients, directions)
            caution = state.caution
            if region is not None or not jax.tree.leaves(batch_stats):
                caution = next_caution(step, nominal, state.steps, eta, directions, change / 2)
            share = jnp.clip(applied.share, 0, 1).astype(jnp.float32)
            info = Info(applied.trust, change, applied.weights, applied.deviations)
            info = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), info)
        return directions, OCNOptState(
            state.steps + 1, curvature_state, drift_state, share, caution, info, choice
        )

    return optax.GradientTransformationExtraArgs(init, update)


def ocnopt(
    system: System | Problem,
    learning_rate: float | Array | optax.Schedule = 1.0,
    *,
    curvature: Curvature = ekfac(),
    feedback: Feedback = "stacked",
    rollout: RolloutKind = "linear",
    beta: float | Array = 1.0,
    value_beta: float | Array | None = None,
    value_update: ValueUpdate | Decision = "exact",
    equilibrium: Equilibrium = "cooperative",
    factor: Factor = "gradient",
    groups: int | None = None,
    alignment: Alignment | Adaptive | Literal["adaptive"] = "blocks",
    momentum: float | Array | None = None,
    weight_decay: float | Array = 0.0,
    weight_decay_mask: Any = None,
    region: Region | None = None,
    lower_bound: float | None = None,
    axis_name: str | None = None,
    seed: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """OCNOpt: the Bellman recursion, kept to second order, as an optimizer.

    Every stage k of the system (a transition, or all of a tied segment; all shared parameters
    together are the first stage) moves by the feedback policy

        d theta_k(dx_k) = s_k - eta M_k^-1 (Q_theta + Q_theta,x dx_k),

    where s_k is what momentum and weight decay change; `drift.py` says what of it is counted on.

    Args:
      system: the network, or a `Problem` where its cost is not the cross-entropy of its last output
        (stage costs, another loss).
      learning_rate: eta > 0, or a schedule of it over updates. 1 is the whole step of Newton's
        method with the curvature M. The region bounds the step, however large eta is, so that 1 is
        a choice that need not be tuned; with a schedule that falls to 0 it ends as every other.
      curvature: M_k: `curvature.identity()`, `diagonal()`, `kfac()` or `ekfac()`.
      feedback: "none": the base optimizer. "stacked": the batch is one state, one scalar a stage.
        "per_sample": the papers' form, every sample a problem of its own, policies averaged; not
        with batch norm. "joint": as "stacked", with the exact coupling of `groups` equal parts of
        the batch (on several devices, of each device's part); with as many groups as samples, the
        Levenberg-Marquardt step. Memory for one gradient a group; with batch statistics, for the
        whole batch's states as well, as these couple the groups.
      rollout: "linear": along the linearised dynamics; in closed form, without any pass, but for
        "per_sample". "nonlinear": a second forward pass that applies the policy, as in the papers.
      beta: weight of the terminal curvature in the feedback; 0 with `value_beta` 0 or None is the
        base optimizer, to the bit; 0 with another `value_beta` leaves the value correction alone.
        With "per_sample" 1 / batch is gentler; it weighs hard samples down less.
      value_beta: the same in the value function; None: `beta`; 0: no value correction. The scale
        that a direct implementation of the papers has is beta = 1 / batch, value_beta =
        1 / batch^2.
      value_update: "exact": Q_theta,theta = M / eta + the stage's own block (Sherman-Morrison,
        Woodbury; factors in (0, 1]). "clipped": the papers' substitution of M / eta, clipped at 0.
        Or a function: another `Decision` of a stage (`value.py`).
      equilibrium: what the players of a stage play (`Segment.players`; of a stage without any, both
        are the same). "cooperative": they minimise Q together. "nash": each minimises it alone, the
        others held at their nominal controls, as in the papers' feedback Nash equilibrium
        (`games.py`); M must be block diagonal over the players: K-FAC and EKFAC take the coupling
        "separate".
      factor: of the terminal curvature: "gradient" (the papers'), "sampled" or "exact"; `costs.py`.
      groups: of feedback "joint"; None: one.
      alignment: which layers of a block act in the same stage (`alignment.py`): "blocks", all of
        them; "layers_first" or "layers_last", one after the other, with a shortcut's projection at
        the first or the last; or a tuple of stages, each a tuple of names of layers. "adaptive" or
        an `Adaptive`: a bandit chooses while training (`adaptive.py`); where the policy walks along
        a trajectory, each update then makes that of its own stages, so that the one of `nominal=`
        does not save it, and all alignments are compiled. Without feedback nothing depends on it;
        nor does the joint minimum of "stacked" and "joint" along the linearised dynamics, unless
        `value_beta` says so: there another one than "blocks" is refused.
      momentum: decay of an accumulator of directions, as in `optax.trace`.
      weight_decay: decoupled, as in AdamW, but by the step that is taken: eta * rho *
        weight_decay * theta is subtracted, where rho is the share of -eta M^-1 g that the policy
        took in the update before, at first 0.
      weight_decay_mask: which parameters decay, as in `optax.add_decayed_weights`.
      region: size of the terminal curvature, and so of the decrease that a step may predict:
        "fixed", the papers', at most 1 / beta; "square", of a cost J read as half a square, at most
        2 (J - lower bound) / beta, which makes the learning rate matter less the larger it is;
        "smaller", whichever of the two is smaller; "measured", the same with the first one made as
        small as it has to be for steps to keep what they promise (`region.py`): every fifth update
        costs a forward pass more, or two where J of the batch is not known. None: "measured" where
        the region bounds every step, that is without "clipped", a decision of one's own or a
        `value_beta` of 0, and the network has no batch statistics, else "smaller"; with a factor
        that is not the gradient "fixed", the only one for it. J is that of the batch, of a group,
        of a sample, as the feedback has it.
      lower_bound: of J; None: that of the problem's cost, 0 unless it says another one. A J below
        it takes no step.
      axis_name: the mapped axis over devices; gradients come as means over it.
      seed: of random factors.

    Returns:
      A transformation whose `update(gradients, state, params, batch=(inputs, targets))` also takes
      `batch_stats=` (the network's, where it has some; they are read, never returned), `nominal=`,
      the result of `linearize` for the same batch with `keep=Settings(...).keep`, which saves
      computing it again, and `value=`, J of the batch, which an adaptive alignment learns from and
      which saves a forward pass where "stacked" feedback has no nominal trajectory. Where the
      gradients are the very arrays of `nominal.gradient`, a column less is solved for, and the
      region bounds all of the step: of a gradient that was computed apart, the rounding is
      multiplied with the learning rate. The inner state's `info` has the diagnostics; of an
      adaptive alignment those of its arm, with zeros where another arm has more stages.

      Whatever gradients come in are what is minimised: also clipped ones, or the mean of several
      micro-batches that `optax.MultiSteps` hands on. The terminal curvature, the deviations and
      K-FAC's statistics are those of `batch`, the last of them. A region that is not "fixed"
      compares gradient and cost: with "stacked" feedback and a linear rollout, which know no other
      gradient, a clipped one is taken for a longer way to go; "measured" takes the gradient that
      comes in for that of `batch`: where it is another one (clipped, with decay added, a mean over
      micro-batches), "smaller" is right. What follows ocnopt in a chain must leave the step as it
      is: neither the policy nor a region that is measured can know of a clip or of
      `optax.apply_every` after it. With `optax.inject_hyperparams`, `groups` and a mask or
      `value_update` that is a function are `static_args`.

    Raises:
      ValueError: for impossible choices here, and for an alignment that does not fit the system;
        in `init` for parameters that do not fit it; in `update` for a missing `batch`, or
        per-sample feedback with batch statistics or shared parameters.

    Example:
      >>> tx = ocnopt(system)
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
        equilibrium=equilibrium,
        factor=factor,
        groups=groups,
        alignment=alignment,
        momentum=momentum,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        region=region,
        lower_bound=lower_bound,
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


def _cost(value: Array | None, nominal: Nominal | None, axis_name: str | None) -> Array:
    """J of the batch, over all devices, which an adaptive alignment learns from."""
    if value is None and nominal is None:
        raise ValueError(
            "an adaptive alignment learns from the cost: call update with value=, the cost of the "
            "batch, or nominal=."
        )
    if value is None:
        assert nominal is not None
        value = nominal.objective
    value = jnp.asarray(value)
    return value if axis_name is None else lax.pmean(value, axis_name)


def _statistics(
    problem: Problem,
    params: PyTree,
    batch_stats: PyTree,
    batch: tuple[PyTree, PyTree] | None,
    axis_name: str | None,
) -> Statistics:
    """What a backward pass of the sum of the samples' costs records in taps."""

    def statistics(recording: PyTree, most: int | None) -> PyTree:
        assert batch is not None
        some, share = first_samples(batch, most)
        samples = len(jax.tree.leaves(some[1])[0])

        def total_cost(recording: PyTree) -> Array:
            tapped = taps.merge(params, recording)
            return samples * objective(problem, tapped, batch_stats, *some)

        recorded = jax.tree.map(lambda leaf: share * leaf, jax.grad(total_cost)(recording))
        return recorded if axis_name is None else lax.psum(recorded, axis_name)

    return statistics
