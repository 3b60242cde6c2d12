"""The size of the terminal curvature: how large a decrease of the cost a step may count on.

Notation
    J, J*   cost (of the batch, of a group of it, of a sample) and its lower bound
    h       J - J*, what there is to gain
    v       dJ/dtheta, the factor of the terminal curvature: V_xx,K = kappa c v v^T
    c       its size
    T       eta g^T M^-1 g, the decrease that a step of the base optimizer predicts
    k       caution, 1 to 100

    fixed     c = 1                  of the papers: a predicted decrease of at most 1 / beta
    square    c = 1 / (2h)           J - J* = r^2 / 2 has the Gauss-Newton curvature of r: at most
                                     2h / beta
    smaller   c = max(1, 1 / (2h))   the smaller of both regions; without a lower bound, the first
    measured  c = max(k, 1 / (2h))   the first region as much smaller as steps turn out to deserve

With the square and beta = 1 the stacked form along linear dynamics is the step of NGN (Orvieto and
Xiao 2024), -eta M^-1 g / (1 + T / (2h)): r is predicted to become r / (1 + T / (2h)), never less
than 0, and for eta -> infinity the step is twice Polyak's, whatever the scale of the cost. Nothing
of the recursion knows of c: each factor is multiplied by its root. So v / sqrt(2h) = dr/dtheta
stays of one size while v and h go to zero.

Caution is Levenberg's and Marquardt's: the quadratic model of a step that minimises it promises
half of the decrease that the gradient alone predicts, whatever the curvature is,

    q(d theta) = g^T d theta + d theta^T H d theta / 2,   H d theta = -g,   q = g^T d theta / 2.

Every fifth update the cost of the same batch is computed again after the step. If less was kept
than promised, k is multiplied by 1.2, otherwise divided by it, within 1 and 100. Not judged is a
step that the second region bounds, a promise below the rounding of the cost, and a step uphill, as
momentum may take it. (A step with momentum is not the minimum of a model; it is asked for the
same.)

Batch norm has a caution of its own: a kernel that it normalises may have any length, a long step
makes it longer, and later ones then turn it less. Where there are batch statistics k stays 1 unless
"measured" is asked for.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control.linearize import Nominal
from ocresnet.control.settings import Step
from ocresnet.problem import objective, per_sample_costs, run, weighted_sum
from ocresnet.systems.system import PyTree

Array = jax.Array

MEASURED_EVERY = 5
"""Updates between two comparisons of a step with its promise."""

GROWTH = 1.2
"""Of caution, at one comparison."""

MOST_CAUTION = 100.0


def sizes(step: Step, nominal: Nominal | None) -> Array | None:
    """c of every factor.

    Args:
      step: what the update is made from.
      nominal: of the batch; None where the step has no need of it.

    Returns:
      [1]: of the batch over all devices, with feedback "stacked"; [groups] of all devices, with
      "joint"; [batch] of this device, with "per_sample". None where all are 1.
    """
    if step.settings.region == "fixed":
        return None
    gain = _costs(step, nominal) - _lower_bound(step, nominal)
    # What is right to rounding, or below its bound, has nothing to gain and takes no step.
    square = 1 / (2 * jnp.maximum(gain, jnp.finfo(gain.dtype).tiny ** (1 / 3)))
    if step.settings.region == "square":
        return square
    caution = step.caution if step.settings.region == "measured" else 1.0
    return jnp.maximum(square, caution)


def next_caution(
    step: Step,
    nominal: Nominal | None,
    steps: Array,
    eta: float | Array,
    directions: PyTree,
    promised: Array,
) -> Array:
    """k of the next update.

    Args:
      step: what the update is made from, and with which k.
      nominal: of the batch, as it was handed in.
      steps: updates before this one, int32.
      eta: the learning rate (`step` has what it comes to with momentum).
      directions: -d theta / eta, momentum and decay included.
      promised: the change of the cost by the quadratic model, [].

    Returns:
      float32, []; with another region than "measured" the same as before.
    """
    if step.settings.region != "measured":
        return step.caution
    (params, batch_stats), axis_name = step.variables, step.settings.axis_name

    def compare() -> Array:
        moved = jax.tree.map(
            lambda leaf, d: (leaf - eta * d).astype(leaf.dtype), params, directions
        )
        before = _cost_of_batch(step, nominal)
        change = objective(step.problem, moved, batch_stats, *step.batch) - before
        if axis_name is not None:
            before, change = lax.pmean((before, change), axis_name)
        # What is not a number was not kept.
        factor = jnp.where(change <= promised, 1 / GROWTH, GROWTH)
        rounding = 8 * jnp.finfo(change.dtype).eps * jnp.maximum(jnp.abs(before), 1)
        gain = before - _lower_bound(step, nominal)
        judged = ~(promised > -rounding) & (2 * step.caution * gain >= 1)
        factor = jnp.where(judged, factor, 1.0)
        return jnp.clip(step.caution * factor, 1.0, MOST_CAUTION).astype(jnp.float32)

    return lax.cond(steps % MEASURED_EVERY == 0, compare, lambda: step.caution)


def scaled(tree: PyTree, roots: Array) -> PyTree:
    """root_f tree_f for trees with a leading axis [F]; roots [F] or [1]."""
    return jax.tree.map(
        lambda leaf: leaf * roots.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype), tree
    )


def _costs(step: Step, nominal: Nominal | None) -> Array:
    """J of whatever has a factor of its own, in the shape that `sizes` describes."""
    settings, problem = step.settings, step.problem
    if settings.feedback == "stacked":
        value = _cost_of_batch(step, nominal).reshape(1)
        return value if settings.axis_name is None else lax.pmean(value, settings.axis_name)
    assert nominal is not None
    outputs = nominal.outputs.astype(jnp.promote_types(nominal.outputs.dtype, jnp.float32))
    costs = weighted_sum(per_sample_costs(problem, outputs, step.batch[1]), problem.stage_costs)
    if settings.feedback == "per_sample":
        return costs
    costs = jnp.mean(costs.reshape(settings.groups, -1), axis=1)
    if settings.axis_name is not None:
        costs = lax.all_gather(costs, settings.axis_name, tiled=True)
    return costs


def _cost_of_batch(step: Step, nominal: Nominal | None) -> Array:
    """J of the batch of this device, []."""
    if step.value is not None:
        value = jnp.asarray(step.value)
    elif nominal is not None:
        value = nominal.objective
    else:
        value = objective(step.problem, *step.variables, *step.batch)
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def _lower_bound(step: Step, nominal: Nominal | None) -> float:
    """J*: one's own number, or that of the problem."""
    own, problem = step.settings.lower_bound, step.problem
    if own is not None:
        return own
    if problem.cost.lower_bound is None:
        return 0.0
    if nominal is not None:
        classes = nominal.outputs.shape[-1]
    else:
        outputs = jax.eval_shape(lambda: run(problem, *step.variables, step.batch[0]).all_outputs())
        classes = outputs.shape[-1]
    return (1 + sum(problem.stage_costs.tolist())) * problem.cost.lower_bound(classes)
