"""Momentum and weight decay, which change the parameters besides the policy.

Notation
    m, mu     accumulator of directions, and its decay
    lambda    weight decay, decoupled from the gradient as in AdamW
    s         drift: what a step changes whatever the policy decides

    s = -eta (mu m + lambda theta),   d theta = s + u

The policy counts on s (`value.py`); the arithmetic is optax's own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ocresnet.systems.system import PyTree

Array = jax.Array


class Drift(NamedTuple):
    """Momentum and decoupled weight decay, as optax has them: what changes besides the policy."""

    parts: tuple[optax.GradientTransformation, ...]

    @classmethod
    def of(cls, momentum: float | Array | None, weight_decay: float | Array, mask: Any) -> "Drift":
        """Those that are not zero for certain."""
        parts = []
        if momentum is not None and not (isinstance(momentum, int | float) and momentum == 0):
            parts.append(optax.trace(momentum))
        if not (isinstance(weight_decay, int | float) and weight_decay == 0):
            parts.append(optax.add_decayed_weights(weight_decay, mask))
        return cls(tuple(parts))

    def init(self, params: PyTree) -> optax.OptState:
        return tuple(part.init(params) for part in self.parts)

    def update(
        self, directions: PyTree, state: optax.OptState, params: PyTree
    ) -> tuple[PyTree, optax.OptState]:
        """directions + mu m + lambda theta, and the new accumulators."""
        states = []
        for part, own in zip(self.parts, state, strict=True):
            directions, own = part.update(directions, own, params)
            states.append(own)
        return directions, tuple(states)

    def predict(
        self, state: optax.OptState, params: PyTree, learning_rate: float | Array
    ) -> PyTree | None:
        """s = -eta (mu m + lambda theta); None where there is neither."""
        if not self.parts:
            return None
        directions, _ = self.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return jax.tree.map(lambda d: -learning_rate * d, dict(directions))
