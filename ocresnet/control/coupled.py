"""One step of feedback "stacked" and "joint": the batch is one state, which all controls act on.

Notation
    g       gradient of the batch, as it came in
    v_f     factors: the gradient itself ("stacked"), or one or more of each of R groups ("joint"),
            each times the root of its size (`region.py`)
    C       columns: g and the factors, or the factors alone where g is known to be their mean
    s       what momentum and weight decay change anyway
    kappa   beta / R

    Gamma_k = eta C_k^T M_k^-1 C_k       the only thing that the recursion needs to know of stage k

With a linear rollout and exact value updates all stages act as one, and the step is s + u,
    u = -(M / eta + kappa sum_f v_f v_f^T)^-1 (g + kappa sum_f v_f v_f^T s),
which for the gradient factor and s = 0 is  -eta M^-1 g / (1 + beta T),  and for one sample a group
the Levenberg-Marquardt step over all layers at once.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import stages
from ocresnet.control.linearize import Nominal
from ocresnet.control.region import scaled, sizes
from ocresnet.control.rollout import Walked, nonlinear_rollout
from ocresnet.control.settings import Applied, Settings, Step
from ocresnet.control.value import Policy, Value, linear_rollout, value_recursion
from ocresnet.systems.system import PyTree

Array = jax.Array

DAMPING = 0.1
"""Of the joint form, relative to the curvature that a group has on its own (`_damping`)."""

GROUPS = "groups"
"""Name of the mapped axis over the groups of a batch that run side by side."""


class Columns(NamedTuple):
    """What the recursion knows of the stages.

    Attributes:
      solved: M^-1 C, a tree like the parameters with a leading axis [C].
      gram: Gamma_k, [stages, players, C, C].
      drift: p_k, what the drift does to the factors at every stage, [stages, F].
      weights: coordinates of the gradient in the columns, [C].
      groups: how many the batch has, over all devices.
      roots: what the factors were multiplied by, [F] or [1]; None: by nothing.
      damping: what M was multiplied by (`_damping`).
    """

    solved: PyTree
    gram: Array
    drift: Array
    weights: Array
    groups: int
    roots: Array | None
    damping: float | Array


def make_columns(step: Step, nominal: Nominal | None) -> Columns:
    """Columns of the problem and their Gram matrices.

    Args:
      step: what the update is made from.
      nominal: of the batch; None where the gradient that came in is all that is needed.
    """
    settings, system = step.settings, step.problem.system
    columns, weights, rank = _columns(settings, step.gradient, nominal)
    if len(weights) == 1:
        solved = _lead(step.solve(jax.tree.map(lambda leaf: leaf[0], columns)))
    else:
        solved = jax.vmap(step.solve)(columns)
    size = sizes(step, nominal)
    roots = None if size is None else jnp.sqrt(size)
    if roots is not None:
        all_roots = _roots_of_columns(len(weights), rank, roots)
        columns, solved = scaled(columns, all_roots), scaled(solved, all_roots)
        weights = weights / all_roots
    gram = step.learning_rate * stages.gram_matrices(system, columns, solved)
    drift = jnp.zeros((gram.shape[0], rank), gram.dtype)
    if step.drift is not None:
        along = stages.gram_matrices(system, columns, _lead(step.drift))
        drift = jnp.sum(along, axis=1)[:, -rank:, 0]
    groups = settings.groups
    if settings.feedback == "joint" and settings.axis_name is not None:
        groups *= lax.axis_size(settings.axis_name)
    damping: float | Array = 1.0
    if settings.feedback == "joint" and settings.region != "fixed":
        factors = jnp.sum(gram, axis=(0, 1))[-rank:, -rank:]
        damping = _damping(settings.weight_of_value / groups * factors)
        solved = jax.tree.map(lambda leaf: leaf / damping.astype(leaf.dtype), solved)
        gram /= damping
    return Columns(solved, gram, drift, weights.astype(gram.dtype), groups, roots, damping)


def solve_value(step: Step, columns: Columns) -> Policy:
    """The Bellman recursion over all stages; over their sum, where they act as one."""
    gram, drift = columns.gram, columns.drift
    if step.settings.acts_as_one:
        gram, drift = (jnp.sum(leaf, axis=0, keepdims=True) for leaf in (gram, drift))
    last = Value(columns.weights, jnp.eye(drift.shape[-1], dtype=gram.dtype))
    kappa = step.settings.weight_of_value / columns.groups
    return value_recursion(gram, drift, last, kappa, step.settings.decision)


def roll_out(step: Step, nominal: Nominal | None, columns: Columns, policy: Policy) -> Applied:
    """Apply the policy stage by stage, along new states or along the linearised dynamics."""
    settings, system, gram = step.settings, step.problem.system, columns.gram
    kappa = settings.beta / columns.groups
    if settings.walks:
        assert nominal is not None and nominal.trajectory is not None
        walked = _walk(step, nominal, columns, policy, kappa)
    elif settings.acts_as_one:
        used = jnp.broadcast_to(policy.weights, (*gram.shape[:2], gram.shape[-1]))
        directions = stages.combine_stages(system, used, columns.solved)
        rank = columns.drift.shape[-1]
        moved = columns.drift - jnp.einsum("knfc,knc->kf", gram[:, :, -rank:], used)
        walked = Walked(directions, used, jnp.cumsum(moved, axis=0) - moved)
    else:
        used, deviations = linear_rollout(policy, gram, columns.drift, kappa)
        walked = Walked(stages.combine_stages(system, used, columns.solved), used, deviations)

    weights = columns.weights
    norms = columns.damping * jnp.einsum("kncd,c,d->k", gram, weights, weights)
    changes = jnp.einsum("kncd,c,knd->k", gram, weights, walked.weights)
    deviations = walked.deviations
    if columns.roots is not None:
        deviations /= columns.roots
    total = jnp.sum(norms)
    return Applied(
        walked.directions,
        share=jnp.sum(changes) / jnp.where(total > 0, total, 1.0),
        trust=total,
        weights=changes / jnp.where(norms > 0, norms, 1.0),
        deviations=jnp.mean(deviations, axis=-1),
    )


def _walk(
    step: Step, nominal: Nominal, columns: Columns, policy: Policy, kappa: float | Array
) -> Walked:
    trajectory, inputs = nominal.trajectory, step.batch[0]
    assert trajectory is not None
    runs = trajectory.outputs.shape[0]
    gather = _gather(step.settings, runs)

    def of_factors(own: Array) -> Array:
        return gather(own) if columns.roots is None else columns.roots * gather(own)

    def rollout(inputs: PyTree, trajectory: PyTree) -> Walked:
        return nonlinear_rollout(
            step.problem,
            step.variables,
            inputs,
            trajectory,
            columns.solved,
            policy,
            step.drift,
            step.learning_rate,
            kappa,
            of_factors,
        )

    if runs == 1:
        return rollout(inputs, jax.tree.map(lambda leaf: leaf[0], trajectory))
    inputs = jax.tree.map(lambda leaf: leaf.reshape(runs, -1, *leaf.shape[1:]), inputs)
    return jax.vmap(rollout, axis_name=GROUPS, out_axes=None)(inputs, trajectory)


def _columns(
    settings: Settings, gradient: PyTree, nominal: Nominal | None
) -> tuple[PyTree, Array, int]:
    """The columns C with a leading axis, the coordinates of the gradient in them, and how many of
    them, the last ones, are factors."""
    untouched = nominal is not None and is_same(gradient, nominal.gradient)
    if settings.gradient_is_factor and (untouched or not settings.walks):
        return _lead(gradient), jnp.ones(1), 1
    assert nominal is not None
    factors = _lead(nominal.gradient) if nominal.factors is None else nominal.factors
    if settings.axis_name is not None:
        if settings.feedback == "joint":
            factors = lax.all_gather(factors, settings.axis_name, tiled=True)
        else:
            factors = _merge_devices(factors, settings)
    count = jax.tree.leaves(factors)[0].shape[0]
    if settings.factor == "gradient" and untouched:
        return factors, jnp.full(count, 1 / count), count
    columns = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), dict(gradient), factors)
    return columns, jnp.zeros(count + 1).at[0].set(1.0), count


def _roots_of_columns(count: int, rank: int, roots: Array) -> Array:
    """What every column is multiplied by, [count]: the factors, the last `rank` of them, by their
    roots."""
    first = jnp.ones(count - rank, roots.dtype)
    return jnp.concatenate([first, jnp.broadcast_to(roots, (rank,))])


def _damping(gram: Array) -> Array:
    """1 + damping t, where t is the mean of kappa eta v_f^T M^-1 v_f over the factors, the diagonal
    of `gram` [F, F].

    Every group wants the root of its own cost to become zero. Where their factors are alike and
    their costs are not, that takes an arbitrarily large step. Damping relative to the diagonal
    (Marquardt 1963) bounds it: it is a learning rate of at most 1 / (damping kappa v^T M^-1 v).
    """
    return 1 + DAMPING * jnp.mean(jnp.diag(gram))


def is_same(gradient: PyTree, other: PyTree) -> bool:
    """Whether these are the very same arrays.

    A transformation before this one (a clip, the sum of several batches) makes others of them: then
    the gradient that came in is what is minimised, and that of `nominal` is no more than a factor.
    """
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True)
    return all(a is b for a, b in pairs)


def _merge_devices(factors: PyTree, settings: Settings) -> PyTree:
    """Factors of the whole batch from those of its equal parts on the devices.

    The gradient is a mean over samples; random factors are sums over the root of their number.
    """
    assert settings.axis_name is not None
    if settings.factor == "gradient":
        return lax.pmean(factors, settings.axis_name)
    scale = 1 / math.sqrt(lax.axis_size(settings.axis_name))
    return jax.tree.map(lambda leaf: scale * lax.psum(leaf, settings.axis_name), factors)


def _gather(settings: Settings, runs: int) -> Callable[[Array], Array]:
    """The deviations of the local factors -> those of all factors."""
    axis_name = settings.axis_name
    if settings.feedback == "stacked":
        return (
            (lambda own: own) if axis_name is None else partial(_merge_devices, settings=settings)
        )
    names = [axis_name] if axis_name is not None else []
    if runs > 1:
        names.append(GROUPS)

    def gather(own: Array) -> Array:
        position = jnp.zeros((), jnp.int32)
        count = 1
        for name in names:
            size = lax.axis_size(name)
            position = position * size + lax.axis_index(name)
            count *= size
        if not names:
            return own
        placed = jnp.zeros((count, *own.shape), own.dtype).at[position].set(own)
        return lax.psum(placed, tuple(names)).reshape(-1)

    return gather


def _lead(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)
