"""The trace of a vector field's Jacobian: how fast the flow makes volumes grow.

Notation
    F        vector field of samples that do not see each other:  dx/dt = F(theta, t, x)
    l        log of the volume's growth along the flow:  dl/dt = tr F_x
    v_d      directions, with sum_d v_d v_d^T = I, or a random sum with that mean

    tr F_x = sum_d v_d^T F_x v_d       exact: the unit vectors;  Hutchinson (1990): random v

So the exact trace and its estimates are one computation; what differs is the directions. A product
v^T F_x is one backward pass through F.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ocresnet.systems.architecture import require_one_of
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.system import PyTree, State

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
      [directions, batch or 1, features], in the dtype of the states.

    Raises:
      ValueError: for an unknown trace, or a random one without a key.
    """
    require_one_of("trace", trace, get_args(Trace))
    if trace == "exact":
        return jnp.eye(like.shape[-1], dtype=like.dtype)[:, None]
    if key is None:
        raise ValueError(f"trace is {trace!r}, which needs a key to draw its directions with.")
    draw = jax.random.rademacher if trace == "rademacher" else jax.random.normal
    return draw(key, (1, *like.shape), like.dtype)


def with_divergence(field: VectorField) -> VectorField:
    """(dx/dt, dl/dt) side by side, as a vector field of states (x, l).

    Args:
      field: F, of (theta, t, x) with x [batch, features].

    Returns:
      A field of ((theta, v), t, (x, l)), where v are `directions` and (x, l) is one array,
      [batch, features + 1].
    """

    def augmented(params: PyTree, time: Array, state: State) -> State:
        theta, vectors = params
        x = state[..., :-1]
        slope, pull_back = jax.vjp(lambda x: field(theta, time, x), x)
        vectors = jnp.broadcast_to(vectors, (len(vectors), *x.shape))
        products = jax.vmap(lambda v: pull_back(v)[0])(vectors)
        divergence = jnp.sum(vectors * products, axis=(0, -1))
        return jnp.concatenate([slope, divergence[..., None]], axis=-1)

    return augmented
