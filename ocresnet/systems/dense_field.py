"""A dense vector field, and how fast its flow makes volumes grow, in one pass.

Notation
    F        vector field of samples that do not see each other:  dx/dt = F(theta, t, x)
    l        log of the volume's growth along the flow:  dl/dt = tr F_x
    v_d      directions, with sum_d v_d v_d^T = I, or a random sum with that mean
    W_n      kernel of layer n;  sigma  activation

    y = (x, t, 1) W_1,   x' = sigma(y),   y' = (x', t, 1) W_2,   ...       every layer sees the time
    dy_d = (v_d, 0, 0) W_1,   v'_d = sigma'(y) dy_d,   ...                 the last is F_x v_d
    tr F_x = sum_d v_d^T F_x v_d       exact: the unit vectors;  Hutchinson (1990): random v

So the exact trace and its estimates are one computation; what differs is the directions. A layer
reads a sample and its directions as rows of one input, and has no bias beside its kernel: the
kernel's gradient, and K-FAC's factors of it, are of all that it does.
"""

from functools import cache
from itertools import pairwise
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.architecture import require_one_of
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.layers import Params
from ocresnet.systems.mlp import Activation
from ocresnet.systems.system import PyTree

Array = jax.Array

Trace = Literal["exact", "rademacher", "gaussian"]
"""The unit vectors, or one random vector a sample: signs, or normal numbers."""


def directions(trace: Trace, key: Array | None, like: Array) -> Array:
    """v_d.

    Args:
      trace: which.
      key: of random ones; the exact trace needs none.
      like: states x that the trace is wanted at, [batch, features].

    Returns:
      [batch, directions, features], in the dtype of the states.

    Raises:
      ValueError: for an unknown trace, or a random one without a key.
    """
    require_one_of("trace", trace, get_args(Trace))
    batch, features = like.shape
    if trace == "exact":
        return jnp.broadcast_to(jnp.eye(features, dtype=like.dtype), (batch, features, features))
    if key is None:
        raise ValueError(f"trace is {trace!r}, which needs a key to draw its directions with.")
    draw = jax.random.rademacher if trace == "rademacher" else jax.random.normal
    return draw(key, (batch, 1, features), like.dtype)


@cache  # one function for equal fields, so that programs are compiled once
def dense_field(hidden: int, activation: Activation) -> VectorField:
    """F with so many hidden layers, of (theta, t, x), x [batch, features]."""

    def field(params: PyTree, time: Array, x: Array) -> Array:
        none = jnp.zeros((len(x), 0, x.shape[-1]), x.dtype)
        return _with_products(hidden, activation, params, time, x, none)[0]

    return field


@cache
def field_with_growth(hidden: int, activation: Activation) -> VectorField:
    """(dx/dt, dl/dt) side by side, as a vector field of states (x, l).

    Its parameters are (theta, v), v as `directions` gives them, or None: the unit vectors, which
    are no parameters (in a solve these have adjoints). A state is one array, [batch, features + 1].
    """

    def field(params: PyTree, time: Array, state: Array) -> Array:
        theta, vectors = params
        x = state[:, :-1]
        vectors = directions("exact", None, x) if vectors is None else vectors
        slope, products = _with_products(hidden, activation, theta, time, x, vectors)
        growth = jnp.sum(vectors * products, axis=(1, 2))
        return jnp.concatenate([slope, growth[:, None]], axis=-1)

    return field


def _with_products(
    hidden: int, activation: Activation, params: PyTree, time: Array, x: Array, vectors: Array
) -> tuple[Array, Array]:
    """F [batch, features] and F_x v_d [batch, directions, features]."""
    sigma = getattr(jax.nn, activation)
    z = jnp.concatenate([x[:, None], vectors], axis=1)
    seen = jnp.zeros((*z.shape[:2], 2), x.dtype)
    seen = seen.at[:, 0].set(jnp.stack([time.astype(x.dtype), jnp.ones((), x.dtype)]))
    for index in range(1, hidden + 2):
        y = layers.dense(params[_name(index)], jnp.concatenate([z, seen], axis=-1))
        value, tangents = y[:, :1], y[:, 1:]
        if index <= hidden:
            value, slope = jax.jvp(sigma, (value,), (jnp.ones_like(value),))
            tangents = slope * tangents
        z = jnp.concatenate([value, tangents], axis=1)
    return z[:, 0], z[:, 1:]


def init_dense_field(key: Array, features: int, hidden: tuple[int, ...]) -> Params:
    """LeCun-normal kernels [features in + 2, features out], their last row, the bias, zero."""
    pairs = list(pairwise((features, *hidden, features)))
    params = {}
    keys = jax.random.split(key, len(pairs))
    for index, (own, (wide, out)) in enumerate(zip(keys, pairs, strict=True), start=1):
        kernel = layers.init_dense(own, wide + 1, out)["kernel"]
        params[_name(index)] = {"kernel": jnp.pad(kernel, ((0, 1), (0, 0)))}
    return params


def field_layers(hidden: int) -> dict[str, layers.Dense]:
    """The affine layers among theta, as a segment declares them."""
    return {_name(index): layers.dense for index in range(1, hidden + 2)}


def _name(index: int) -> str:
    return f"layer_{index}"
