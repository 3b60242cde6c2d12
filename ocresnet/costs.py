"""Costs of an output, and the factors of their Gauss-Newton curvature.

Notation
    z     output (logits) of one sample, [classes]
    phi   its cost, phi(z, label)
    S     factor of the curvature of phi at z: [columns, classes], a column of the matrix a row here

Three factors (`ocnopt` offers them as `factor=`):
    gradient   one column, grad phi: the outer product is the empirical Fisher. The papers' choice.
    sampled    one column, random, whose outer product is the Hessian of phi on average: grad phi
               for a label drawn from the network's own distribution.
    exact      `classes` columns whose outer products sum to the Hessian of phi:
               cross-entropy: sqrt(p_c) (e_c - p), so that S^T S = diag(p) - p p^T;
               squared error: the unit vectors, S^T S = I.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
PyTree = Any

Factor = Literal["gradient", "sampled", "exact"]
Loss = Literal["cross_entropy", "l2", "negative_log_likelihood", "mean_squared_error"]

PerSampleLoss = Callable[[Array, PyTree], Array]
"""(logits [..., classes], targets, as a rule labels [...]) -> loss of each sample [...]."""


@dataclass(frozen=True)
class Cost:
    """A per-sample cost with the factors of its curvature.

    Attributes:
      value: (logits [..., classes], targets [...]) -> [...]. Targets are integer labels, or any
        tree that the value understands (labels and a teacher's logits, say).
      exact: logits [..., classes] -> [columns, ..., classes], or None if it is not known.
      sampled: (key, logits [..., classes]) -> [..., classes], or None if it is not known.
      lower_bound: number of classes -> the least value there is; None: 0.
      classifies: whether it is of logits of classes, so that there is an accuracy beside it.
    """

    value: PerSampleLoss
    exact: Callable[[Array], Array] | None = None
    sampled: Callable[[Array, Array], Array] | None = None
    lower_bound: Callable[[int], float] | None = None
    classifies: bool = True

    @property
    def bounded(self) -> bool:
        """Whether there is a least value."""
        return self.lower_bound is None or math.isfinite(self.lower_bound(2))


def make_cost(loss: Loss = "cross_entropy", label_smoothing: float = 0.0) -> Cost:
    """The cost called `loss`, of logits and integer labels.

    Args:
      loss: "cross_entropy" (nats); "l2": half the squared distance to the one-hot target; or
        "negative_log_likelihood" (nats) of a flow's data, whose outputs are no logits; or
        "mean_squared_error" of outputs that predict numbers.
      label_smoothing: share s of the target spread evenly over the classes,
        target = (1 - s) onehot + s / classes.

    Returns:
      The cost; the same one for the same arguments, so that compiled programs that depend on it are
      found again.

    Raises:
      ValueError: for an unknown name, a label_smoothing outside [0, 1), or one without labels.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"loss is {loss!r}, but must be one of {', '.join(get_args(Loss))}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, but must be in [0, 1).")
    if loss in ("negative_log_likelihood", "mean_squared_error"):
        likelihood = loss == "negative_log_likelihood"
        if label_smoothing > 0:
            raise ValueError(
                f"label_smoothing is {label_smoothing}, but a "
                f"{'likelihood' if likelihood else 'prediction'} has no labels to smooth: set it "
                "to 0."
            )
        return negative_log_likelihood if likelihood else mean_squared_error
    return _make_cost(loss, label_smoothing)


@cache
def _make_cost(loss: Loss, label_smoothing: float) -> Cost:
    def value(logits: Array, labels: Array) -> Array:
        if jnp.shape(labels) == jnp.shape(logits):
            raise ValueError(
                f"the labels have shape {jnp.shape(labels)} like the logits, but must be whole "
                "numbers, one for each sample: one-hot rows are jnp.argmax(rows, axis=-1)."
            )
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        targets = optax.smooth_labels(targets, label_smoothing)
        if loss == "l2":
            return jnp.sum(optax.l2_loss(logits - targets), axis=-1)
        return optax.softmax_cross_entropy(logits, targets)

    # The curvature does not depend on the target: it is that of every smoothing.
    if loss == "l2":
        return Cost(value, _squared_error_exact, _squared_error_sampled)
    bound = partial(_entropy_of_target, label_smoothing) if label_smoothing else None
    return Cost(value, _cross_entropy_exact, _cross_entropy_sampled, bound)


def log_density(outputs: Array) -> Array:
    """log p of the data of a flow (`systems/flow.py`), with a standard normal base.

    Args:
      outputs: z and l side by side, [..., features + 1].

    Returns:
      log N(z; 0, I) + l, [...], in nats.
    """
    z, growth = outputs[..., :-1], outputs[..., -1]
    normal = -0.5 * jnp.sum(jnp.square(z), axis=-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
    return normal + growth


def _density_exact(outputs: Array) -> Array:
    """The Hessian of -log p at (z, l) is I for z and 0 for l."""
    return _squared_error_exact(outputs)[:-1]


def _density_sampled(key: Array, outputs: Array) -> Array:
    return _squared_error_sampled(key, outputs).at[..., -1].set(0)


def _mean_squared_error(outputs: Array, targets: Array) -> Array:
    """See `mean_squared_error`."""
    if targets.size // len(targets) != outputs.shape[-1]:
        raise ValueError(
            f"the targets have shape {targets.shape}, but must be the {outputs.shape[-1]} numbers "
            "that are predicted for each sample."
        )
    targets = targets.reshape(len(targets), -1)
    known = jnp.isfinite(targets)
    errors = jnp.where(known, outputs - jnp.where(known, targets, 0), 0)
    return jnp.sum(jnp.square(errors), axis=-1) / jnp.maximum(jnp.sum(known, axis=-1), 1)


def _entropy_of_target(label_smoothing: float, classes: int) -> float:
    """The cross-entropy of logits that reproduce a smoothed target."""
    rest = label_smoothing / classes
    right = 1 - label_smoothing + rest
    return -(right * math.log(right) + (classes - 1) * rest * math.log(rest))


def _cross_entropy_exact(logits: Array) -> Array:
    probabilities = jax.nn.softmax(logits)
    identity = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    columns = jnp.sqrt(probabilities)[..., None] * (identity - probabilities[..., None, :])
    return jnp.moveaxis(columns, -2, 0)


def _cross_entropy_sampled(key: Array, logits: Array) -> Array:
    drawn = jax.random.categorical(key, logits)
    return jax.nn.softmax(logits) - jax.nn.one_hot(drawn, logits.shape[-1], dtype=logits.dtype)


def _squared_error_exact(logits: Array) -> Array:
    identity = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    shape = (logits.shape[-1], *logits.shape)
    return jnp.broadcast_to(jnp.expand_dims(identity, range(1, logits.ndim)), shape)


def _squared_error_sampled(key: Array, logits: Array) -> Array:
    return jax.random.normal(key, logits.shape, logits.dtype)


cross_entropy = make_cost("cross_entropy")
"""-log softmax(z)[label], in nats; labels are integers."""

squared_error = make_cost("l2")
"""Half the squared distance of z to the one-hot target; labels are integers."""

negative_log_likelihood = Cost(
    lambda outputs, labels: -log_density(outputs),
    _density_exact,
    _density_sampled,
    lambda outputs: -math.inf,
    classifies=False,
)
"""-log p of a flow's data, in nats; labels are not looked at."""

mean_squared_error = Cost(_mean_squared_error, classifies=False)
"""The mean of the squared errors of a sample's predictions [..., numbers], over those whose targets
[batch, ...] are known: NaN is none; 0 where none is known."""
