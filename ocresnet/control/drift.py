"""Momentum and weight decay, which change the parameters besides the policy.

Notation
    m, mu     accumulator of directions, and its decay
    lambda    weight decay, decoupled from the gradient as in AdamW
    rho       share of the base optimizer's step that the policy took the last time, in [0, 1]
    s         drift: what a step changes whatever the policy decides
    u         what the policy changes

    d theta = s + u,   s = -eta (mu m + rho lambda theta)

The policy counts on s (`value.py`); the arithmetic is optax's own. A policy takes no more of
-eta M^-1 g than the terminal curvature lets it, however large eta is, and m gathers what it took.
Weights decay with the rate at which the policy learns, eta rho, and not with eta.

With `region="fixed"` all of s is counted on: what momentum brings is left out of u, or taken
back, which at large eta amplifies the noise of the batches. A region that follows the cost is kept
to by counting ahead instead: a direction that is decided now will be repeated by momentum, and
changes the parameters by eta (1 + mu + mu^2 + ...) = eta / (1 - mu) times itself in all. The policy
decides with that rate, a second forward pass follows the direction with all its repetitions, and
of s the decay alone is counted on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ocresnet.systems.system import PyTree

Array = jax.Array


class Drift(NamedTuple):
    """Momentum and decoupled weight decay, as optax has them: what changes besides the policy.

    Attributes:
      momentum: mu; None: none.
      weight_decay: lambda; None: none.
      mask: which parameters decay, as `optax.add_decayed_weights` takes it.
    """

    momentum: float | Array | None
    weight_decay: float | Array | None
    mask: Any

    @classmethod
    def of(cls, momentum: float | Array | None, weight_decay: float | Array, mask: Any) -> "Drift":
        """Without those that are zero for certain."""
        return cls(
            None if _is_zero(momentum) else momentum,
            None if _is_zero(weight_decay) else weight_decay,
            mask,
        )

    def init(self, params: PyTree) -> optax.OptState:
        return tuple(part.init(params) for part in self._parts(1.0))

    def update(
        self, directions: PyTree, state: optax.OptState, params: PyTree, share: float | Array
    ) -> tuple[PyTree, optax.OptState]:
        """directions + mu m + rho lambda theta, and the new accumulators."""
        states = []
        for part, own in zip(self._parts(share), state, strict=True):
            directions, own = part.update(directions, own, params)
            states.append(own)
        return directions, tuple(states)

    def predict(
        self,
        state: optax.OptState,
        params: PyTree,
        learning_rate: float | Array,
        share: float | Array,
    ) -> PyTree | None:
        """s = -eta (mu m + rho lambda theta); None where there is neither."""
        if self.momentum is None and self.weight_decay is None:
            return None
        directions, _ = self.update(jax.tree.map(jnp.zeros_like, params), state, params, share)
        return jax.tree.map(lambda d: -learning_rate * d, dict(directions))

    def predict_decay(
        self, params: PyTree, learning_rate: float | Array, share: float | Array
    ) -> PyTree | None:
        """-eta rho lambda theta, s without momentum; None where there is no decay."""
        decay = self._replace(momentum=None)
        return decay.predict(decay.init(params), params, learning_rate, share)

    def lasting(self, learning_rate: float | Array) -> float | Array:
        """eta / (1 - mu): the rate of a direction with all its repetitions."""
        return learning_rate if self.momentum is None else learning_rate / (1 - self.momentum)

    def _parts(self, share: float | Array) -> list[optax.GradientTransformation]:
        parts = []
        if self.momentum is not None:
            parts.append(optax.trace(self.momentum))
        if self.weight_decay is not None:
            parts.append(optax.add_decayed_weights(share * self.weight_decay, self.mask))
        return parts


def _is_zero(number: float | Array | None) -> bool:
    return number is None or (isinstance(number, int | float) and number == 0)
