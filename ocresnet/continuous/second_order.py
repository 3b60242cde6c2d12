"""The second-order adjoint of a differential equation, in factors of low rank (Liu et al. 2021).

Notation (dx/dt = F(theta, t, x), 0 <= t <= T; L a loss of x(T); Gauss-Newton: second derivatives of
F are dropped)
    Q_x, Q_u            gradients of L with respect to x(t), and to theta from t on
    Q_xx, Q_xu, Q_uu    their second derivatives

    -dQ_x/dt  = F_x^T Q_x                        Q_x(T)  = L_x
    -dQ_u/dt  = F_theta^T Q_x                    Q_u(T)  = 0
    -dQ_xx/dt = F_x^T Q_xx + Q_xx F_x            Q_xx(T) = L_xx = sum_i y_i y_i^T
    -dQ_xu/dt = F_x^T Q_xu + Q_xx F_theta        Q_xu(T) = 0
    -dQ_uu/dt = F_theta^T Q_xu + Q_ux F_theta    Q_uu(T) = 0

    -dr_i/dt = F_x^T r_i,  r_i(T) = y_i          -dp_i/dt = F_theta^T r_i,  p_i(T) = 0
    Q_xx = sum_i r_i r_i^T,   Q_xu = sum_i r_i p_i^T,   Q_uu = sum_i p_i p_i^T

A factor is as large as the state and the parameters together, where the matrices are that squared.
With y = L_x the factor r is the adjoint Q_x, and p the gradient Q_u: it costs nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.systems import explicit_steps
from ocresnet.systems.explicit_steps import FixedStepMethod, VectorField
from ocresnet.systems.system import PyTree, State

Array = jax.Array


class Factors(NamedTuple):
    """Of the second-order adjoint at t = 0, with a leading axis [factors].

    Attributes:
      states: r_i, like the state.
      controls: p_i, like the parameters.
    """

    states: State
    controls: PyTree


def second_order_adjoint(
    field: VectorField,
    params: PyTree,
    horizon: Array | float,
    state: State,
    terminal: State,
    *,
    method: FixedStepMethod = "rk4",
    steps: int = 20,
) -> Factors:
    """Factors of the terminal curvature, backward from T to 0; of gradients, when given L_x.

    The state is solved for backward too, so that no memory grows with the number of steps.

    Args:
      field, params: F and its theta.
      horizon: T.
      state: x(T), a tree.
      terminal: y_i, trees like the state with a leading axis [factors].
      method, steps: of the backward solve.

    Returns:
      r_i and p_i at t = 0.

    Raises:
      ValueError: for a number of steps that is not positive.

    Example:
      >>> r, p = second_order_adjoint(field, theta, 1.0, x, adjoint[None])  # p[0] is dL/dtheta
    """
    if type(steps) is not int or steps < 1:
        raise ValueError(f"steps is {steps!r}, but must be a whole number of at least 1.")

    def back(params: PyTree, elapsed: Array, carried: tuple) -> tuple:
        state, costates, _ = carried
        slope, pull_back = jax.vjp(
            lambda params, x: field(params, horizon - elapsed, x), params, state
        )
        controls, costates = jax.vmap(pull_back)(costates)
        return jax.tree.map(jnp.negative, slope), costates, controls

    count = len(jax.tree.leaves(terminal)[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), params)
    h = horizon / steps

    def step(carried: tuple, index: Array) -> tuple[tuple, None]:
        return explicit_steps.step(method, back, params, index * h, h, carried), None

    (_, costates, controls), _ = lax.scan(step, (state, terminal, zeros), jnp.arange(steps))
    return Factors(costates, controls)
