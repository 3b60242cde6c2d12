"""One policy: linearize, value and rollout in the stages of one view of the problem."""

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import coupled, per_sample
from ocresnet.control.coupled import is_same
from ocresnet.control.linearize import Nominal, linearize
from ocresnet.control.settings import Applied, Step
from ocresnet.control.view import View

Array = jax.Array


def decide(step: Step, nominal: Nominal | None, view: View, stages: int) -> Applied:
    """The policy of one update, solved for and applied in the stages of a view.

    Args:
      step: what the update is made from.
      nominal: of the batch, as it was handed in; None: it is made where it is needed.
      view: of the problem, in the stages of one alignment.
      stages: of the view that has most.

    Returns:
      Directions like the gradient; weights and deviations [stages], with zeros after those of the
      view.
    """
    form = per_sample if step.settings.feedback == "per_sample" else coupled
    nominal = _linearized(step, nominal)
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

    def padded(leaf: Array) -> Array:
        leaf = leaf.astype(jnp.float32)
        return leaf if len(leaf) == stages else jnp.pad(leaf, (0, stages - len(leaf)))

    directions = view.join(applied.directions, step.gradient)
    return Applied(
        jax.tree.map(lambda d, g: d.astype(g.dtype), directions, dict(step.gradient)),
        share=applied.share.astype(jnp.float32),
        trust=applied.trust.astype(jnp.float32),
        weights=padded(applied.weights),
        deviations=padded(applied.deviations),
    )


def _linearized(step: Step, nominal: Nominal | None) -> Nominal | None:
    """The nominal trajectory that was handed in, or a new one where it is needed."""
    settings = step.settings
    keep = settings.keep
    if nominal is not None and (nominal.trajectory is not None or not keep.trajectory):
        return nominal
    if not keep.trajectory and settings.gradient_is_factor:
        return None
    key = step.key
    if settings.axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(settings.axis_name))
    made = linearize(step.problem, *step.variables, *step.batch, keep, key)
    if nominal is not None and is_same(step.gradient, nominal.gradient):
        made = made._replace(gradient=step.gradient)  # the same, so that a column less is solved
    return made
