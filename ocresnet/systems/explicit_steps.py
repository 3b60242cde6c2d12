"""Explicit solvers of ordinary differential equations with steps of a given size.

Notation
    F     vector field:  dx/dt = F(theta, t, x)
    h     size of a step

A state is any tree of arrays.
"""

from collections.abc import Callable
from typing import Literal

import jax

from ocresnet.systems.system import PyTree, State

Array = jax.Array

VectorField = Callable[[PyTree, Array, State], State]
"""F: (theta, t, x) -> dx/dt."""

FixedStepMethod = Literal["euler", "midpoint", "rk4"]

EVALUATIONS: dict[FixedStepMethod, int] = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Of F, in a step."""


def step(
    method: FixedStepMethod,
    field: VectorField,
    params: PyTree,
    time: Array,
    h: Array | float,
    x: State,
) -> State:
    """x(t + h) from x(t), to the first (euler), second (midpoint) or fourth (rk4) order of h.

    Args:
      method: which.
      field, params: F and its theta.
      time: t, [].
      h: the step, [].
      x: the state at t.
    """

    def moved(direction: State, length: Array | float) -> State:
        # A length that is an array may be more precise than the state.
        return jax.tree.map(
            lambda leaf, slope: leaf + (length * slope).astype(leaf.dtype), x, direction
        )

    def slope(after: Array | float, state: State) -> State:
        return field(params, time + after, state)

    k_1 = slope(0, x)
    if method == "euler":
        return moved(k_1, h)
    k_2 = slope(h / 2, moved(k_1, h / 2))
    if method == "midpoint":
        return moved(k_2, h)
    k_3 = slope(h / 2, moved(k_2, h / 2))
    k_4 = slope(h, moved(k_3, h))
    return moved(jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k_1, k_2, k_3, k_4), h / 6)
