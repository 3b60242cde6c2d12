"""One step of feedback "stacked" and "joint": the batch is one state, which all controls act on.

Notation
    g       gradient of the batch;  v_f  factors: the gradient itself ("stacked"), or one or more of
            each of R groups of the batch ("joint")
    C       columns: g and the factors, or the factors alone where g is their mean
    kappa   beta / R

    Gamma_k = eta C_k^T M_k^-1 C_k       the only thing that the recursion needs to know of stage k

With a linear rollout and exact value updates all stages act as one, and the step is
    d theta = -(M / eta + kappa sum_f v_f v_f^T)^-1 g,
which for the gradient factor is  -eta M^-1 g / (1 + beta T),  and for one sample a group the
Levenberg-Marquardt step over all layers at once.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.control import stages
from ocresnet.control.bellman import linear_rollout, value_recursion
from ocresnet.control.nominal import GROUPS, Nominal, linearize
from ocresnet.control.policy import Applied, nonlinear_rollout
from ocresnet.control.problem import ControlProblem
from ocresnet.control.settings import Info, Settings
from ocresnet.systems.system import PyTree

Array = jax.Array


def coupled_step(
    problem: ControlProblem,
    settings: Settings,
    params: PyTree,
    batch_stats: PyTree,
    batch: tuple[Array, Array],
    gradient: PyTree,
    nominal: Nominal | None,
    solve: Callable[[PyTree], PyTree],
    learning_rate: float | Array,
    key: Array,
) -> tuple[PyTree, Info]:
    """The direction -d theta / eta.

    Args:
      problem: system and costs.
      settings: feedback "stacked" or "joint".
      params, batch_stats: the current variables.
      batch: inputs and labels (of this device).
      gradient: of the batch (of all devices).
      nominal: nominal trajectory of the batch, or None to compute what is needed of it.
      solve: M^-1, of a tree like the parameters.
      learning_rate: eta.
      key: for random factors.

    Returns:
      A tree like the parameters, and diagnostics.
    """
    if nominal is None and (settings.needs_trajectory or not settings.gradient_is_factor):
        nominal = linearize(
            problem,
            params,
            batch_stats,
            *batch,
            factor=settings.factor,
            groups=settings.groups,
            keep_trajectory=settings.needs_trajectory,
            key=key if settings.axis_name is None else _fold_in_device(key, settings.axis_name),
        )

    columns, weights = _columns(settings, gradient, nominal)
    rank = len(weights) - (settings.factor != "gradient")
    if len(weights) == 1:
        solved = _lead(solve(jax.tree.map(lambda leaf: leaf[0], columns)))
    else:
        solved = jax.vmap(solve)(columns)
    gram = learning_rate * stages.gram_matrices(problem.system, columns, solved)

    groups = settings.groups
    if settings.feedback == "joint" and settings.axis_name is not None:
        groups *= lax.axis_size(settings.axis_name)
    recursion = partial(
        value_recursion,
        weights=weights.astype(gram.dtype),
        factors=rank,
        kappa=settings.weight_of_value / groups,
        value_update=settings.value_update,
    )
    kappa = settings.beta / groups if settings.forward_feedback else 0.0

    if settings.needs_trajectory:
        assert nominal is not None and nominal.trajectory is not None
        policy = recursion(gram)
        rollout = partial(
            nonlinear_rollout,
            problem,
            params,
            batch_stats,
            columns=solved,
            policy=policy,
            learning_rate=learning_rate,
            kappa=kappa,
            gather=_gather(settings),
        )
        images = batch[0].reshape(settings.groups, -1, *batch[0].shape[1:])
        if settings.groups == 1:
            trajectory = jax.tree.map(lambda leaf: leaf[0], nominal.trajectory)
            applied = rollout(images=images[0], trajectory=trajectory)
        else:
            applied = jax.vmap(
                lambda images, trajectory: rollout(images=images, trajectory=trajectory),
                axis_name=GROUPS,
                out_axes=None,
            )(images, nominal.trajectory)
    else:
        acts_as_one = (
            settings.value_update == "exact"
            and settings.forward_feedback
            and settings.value_beta is None
        )
        if acts_as_one:
            used = recursion(jnp.sum(gram, axis=0, keepdims=True)).weights
            directions = stages.combine(used[0], solved)
            used = jnp.broadcast_to(used, gram.shape[:2])
        else:
            used = linear_rollout(recursion(gram), gram, kappa)
            directions = stages.combine_stages(problem.system, used, solved)
        moved = jnp.einsum("kcd,kd->kc", gram, used)[:, len(weights) - rank :]
        deviations = jnp.cumsum(moved, axis=0) - moved
        applied = Applied(directions, used, -deviations)

    norms = jnp.einsum("kcd,c,d->k", gram, weights, weights)
    changes = jnp.einsum("kcd,c,kd->k", gram, weights, applied.weights)
    info = Info(
        trust=jnp.sum(norms),
        predicted_change=jnp.zeros(()),
        weights=changes / jnp.where(norms > 0, norms, 1.0),
        deviations=jnp.mean(applied.deviations, axis=-1),
    )
    return applied.directions, info


def _columns(settings: Settings, gradient: PyTree, nominal: Nominal | None) -> tuple[PyTree, Array]:
    """The columns C with a leading axis, and the coordinates of the gradient in them."""
    if settings.gradient_is_factor:
        return _lead(gradient), jnp.ones(1)
    assert nominal is not None
    factors = nominal.factors
    if factors is None:
        factors = _lead(nominal.gradient)
    if settings.axis_name is not None:
        if settings.feedback == "joint":
            factors = lax.all_gather(factors, settings.axis_name, tiled=True)
        else:
            factors = _merge_devices(factors, settings)
    count = jax.tree.leaves(factors)[0].shape[0]
    if settings.factor == "gradient":
        return factors, jnp.full(count, 1 / count)
    columns = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), gradient, factors)
    return columns, jnp.zeros(count + 1).at[0].set(1.0)


def _merge_devices(factors: PyTree, settings: Settings) -> PyTree:
    """Factors of the whole batch from those of its equal parts on the devices.

    The gradient is a mean over samples; random factors are sums over the root of their number.
    """
    assert settings.axis_name is not None
    if settings.factor == "gradient":
        return lax.pmean(factors, settings.axis_name)
    scale = 1 / math.sqrt(lax.axis_size(settings.axis_name))
    return jax.tree.map(lambda leaf: scale * lax.psum(leaf, settings.axis_name), factors)


def _gather(settings: Settings) -> Callable[[Array], Array]:
    """The deviations of the local factors -> those of all factors."""
    axis_name = settings.axis_name
    if settings.feedback == "stacked":
        return (
            (lambda own: own) if axis_name is None else partial(_merge_devices, settings=settings)
        )
    names = [axis_name] if axis_name is not None else []
    if settings.groups > 1:
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


def _fold_in_device(key: Array, axis_name: str) -> Array:
    return jax.random.fold_in(key, lax.axis_index(axis_name))
