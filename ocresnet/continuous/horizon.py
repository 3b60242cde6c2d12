"""The horizon as a control: rules that find out for how long an ODE should be integrated.

Notation (SNOpt with free horizon, Liu, Chen and Theodorou 2021)
    T            horizon;   x(T) the state there,   a = dL/dx(T) its adjoint,   dx/dt = F
    L            loss, the mean over the batch;   c T^2 / 2   what the horizon itself costs
    s            dL/dT = a F(T, x(T)), the sum over the samples
    Q_T          s + c T
    Q_TT         s^2 + c                    Gauss-Newton, with a for the factor of the loss
    Q_T,theta    s (dL/dtheta)^T
    <.>          running mean over the steps;   eta   learning rate

    first order     dT = -eta <Q_T>
    second order    dT = -eta (<Q_T> + s <dL/dtheta, dtheta>) / <Q_TT>

The last term of the numerator is feedback, Q_T,theta dtheta: the change dtheta that the parameters
make in the same step changes the loss that the horizon sees.

Both stop where s = -c T. There s is small and Q_TT hardly more than c: the second rule is quick far
away and needs eta (d^2L/dT^2 + c) < 2 (c + c^2 T^2) to settle. Without a price it never does.
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.system import PyTree, State

Array = jax.Array

Order = Literal["first", "second"]


class HorizonState(NamedTuple):
    """Attributes:
    steps: gradients seen, int32.
    slope: running mean of Q_T, without correction for its start at zero.
    curvature: the same of Q_TT.
    """

    steps: Array
    slope: Array
    curvature: Array


def horizon_slope(
    field: VectorField, params: PyTree, horizon: Array | float, state: State, adjoint: State
) -> Array:
    """s = dL/dT = a F(T, x(T)), [].

    Args:
      field, params: F and its theta.
      horizon: T.
      state: x(T), a tree [batch, ...].
      adjoint: dL/dx(T), like it; of a loss that is the mean over the batch it has the 1 / batch.
    """
    slopes = field(params, jnp.asarray(horizon), state)
    products = jax.tree.map(lambda a, slope: jnp.sum(a * slope), adjoint, slopes)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def free_horizon(
    learning_rate: float,
    *,
    order: Order = "second",
    price: float = 1e-3,
    decay: float = 0.99,
    every: int = 1,
    minimum: float = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """The horizon's own optimizer, an optax transformation of the number T.

    Args:
      learning_rate: eta.
      order: "second", the feedback rule of the paper, or "first".
      price: c, at least 0.
      decay: of the running means.
      every: the horizon moves at every so many calls; the others gather statistics.
      minimum: T is never shorter.

    Returns:
      A transformation. Its `update(s, state, T, change=...)` returns dT; `change` is the predicted
      change of the loss by that of the parameters, <dL/dtheta, dtheta>, 0 if it is not given.

    Raises:
      ValueError: for an impossible value, saying what is allowed.

    Example:
      >>> rule = free_horizon(0.1, every=50)
      >>> change, state = rule.update(horizon_slope(...), state, horizon)
      >>> horizon = optax.apply_updates(horizon, change)
    """
    if order not in get_args(Order):
        raise ValueError(f"order is {order!r}, but must be one of {', '.join(get_args(Order))}.")
    for name, value, allowed, what in (
        ("learning_rate", learning_rate, learning_rate > 0, "a positive number"),
        ("price", price, price >= 0, "a number, at least 0"),
        ("decay", decay, 0 <= decay < 1, "a number in [0, 1)"),
        ("minimum", minimum, minimum > 0, "a positive number"),
    ):
        if not allowed or not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}, but must be {what}.")
    if type(every) is not int or every < 1:
        raise ValueError(f"every is {every!r}, but must be a whole number of at least 1.")

    def init(horizon: Array) -> HorizonState:
        zero = jnp.zeros_like(jnp.asarray(horizon, jnp.result_type(float)))
        return HorizonState(jnp.zeros((), jnp.int32), zero, zero)

    def update(
        gradient: Array,
        state: HorizonState,
        horizon: Array | None = None,
        *,
        change: Array | float = 0.0,
        **others: object,
    ) -> tuple[Array, HorizonState]:
        if horizon is None:
            raise ValueError("the rule needs the horizon: call update(s, state, T).")
        steps = state.steps + 1
        slope = decay * state.slope + (1 - decay) * (gradient + price * horizon)
        curvature = decay * state.curvature + (1 - decay) * (jnp.square(gradient) + price)
        seen = 1 - decay**steps
        step = slope / seen
        if order == "second":
            step = (step + gradient * change) * seen / curvature
        moved = jnp.maximum(minimum, horizon - learning_rate * step) - horizon
        moved = jnp.where(steps % every == 0, moved, 0)
        return moved, HorizonState(steps, slope, curvature)

    return optax.GradientTransformationExtraArgs(init, update)
