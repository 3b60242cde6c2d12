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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

Factor = Literal["gradient", "sampled", "exact"]


@dataclass(frozen=True)
class Cost:
    """A per-sample cost with the factors of its curvature.

    Attributes:
      value: (logits [batch, classes], labels [batch]) -> [batch].
      exact: logits [..., classes] -> [columns, ..., classes], or None if it is not known.
      sampled: (key, logits [..., classes]) -> [..., classes], or None if it is not known.
    """

    value: Callable[[Array, Array], Array]
    exact: Callable[[Array], Array] | None = None
    sampled: Callable[[Array, Array], Array] | None = None


def _cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _cross_entropy_exact(logits: Array) -> Array:
    probabilities = jax.nn.softmax(logits)
    identity = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    columns = jnp.sqrt(probabilities)[..., None] * (identity - probabilities[..., None, :])
    return jnp.moveaxis(columns, -2, 0)


def _cross_entropy_sampled(key: Array, logits: Array) -> Array:
    drawn = jax.random.categorical(key, logits)
    return jax.nn.softmax(logits) - jax.nn.one_hot(drawn, logits.shape[-1], dtype=logits.dtype)


def _squared_error(logits: Array, labels: Array) -> Array:
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.sum(optax.l2_loss(logits - targets), axis=-1)


def _squared_error_exact(logits: Array) -> Array:
    identity = jnp.eye(logits.shape[-1], dtype=logits.dtype)
    shape = (logits.shape[-1], *logits.shape)
    return jnp.broadcast_to(jnp.expand_dims(identity, range(1, logits.ndim)), shape)


def _squared_error_sampled(key: Array, logits: Array) -> Array:
    return jax.random.normal(key, logits.shape, logits.dtype)


cross_entropy = Cost(_cross_entropy, _cross_entropy_exact, _cross_entropy_sampled)
"""-log softmax(z)[label], in nats; labels are integers."""

squared_error = Cost(_squared_error, _squared_error_exact, _squared_error_sampled)
"""Half the squared distance of z to the one-hot target; labels are integers."""
