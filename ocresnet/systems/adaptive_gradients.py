"""Gradients of adaptive solves: through the steps that were taken, or by the adjoint equation.

Notation (F, theta and s as in `adaptive_solves.py`)
    a     adjoint dL/dx(t):   da/dt = -F_x^T a
    g     what of dL/dtheta the times after t contribute:   dg/dt = -F_theta^T a,  g(t1) = 0

    backward from t1:  (x, a, g),   dL/dtheta = g(t0)

diffrax has both; but its direct adjoint cannot be compiled inside `jax.pmap` (0.7.2), and its
backsolve does not say that the backward solve was cut short.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.systems.adaptive_solves import (
    AdaptiveSolver,
    Solution,
    Taken,
    in_shares,
    integrate,
    one_step,
    only_if,
    taken_steps,
    with_times,
)
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.system import PyTree, State

Array = jax.Array


def solve(
    settings: AdaptiveSolver,
    field: VectorField,
    params: PyTree,
    start: Array | float,
    end: Array | float,
    x: State,
) -> State:
    """x(end) from x(start), differentiable (in reverse) in all but the settings and the field.

    Where the solve, or that of its adjoint, reaches its limit of steps, the result (or its
    gradient) is infinite: inside a compiled program nothing can be raised.

    Args:
      settings: of the solve.
      field, params: F and its theta; of other arrays F must not know, lest gradients lack them.
      start, end: t0 and t1; end may be the earlier one.
      x: x(t0), of at least float32.

    Raises:
      ImportError: without diffrax, saying how to get it.
    """
    return _solve(settings, in_shares(field), with_times(params, start, end), x)


def adjoint_solution(
    settings: AdaptiveSolver,
    field: VectorField,
    params: PyTree,
    start: Array | float,
    end: Array | float,
    x: State,
    adjoint: State,
) -> Solution:
    """The adjoint equation, backward from t1 to t0.

    Args:
      settings, field, params: of the forward solve.
      start, end: t0 and t1.
      x, adjoint: x(t1) and a(t1).

    Returns:
      The solution with (x, a, g) at t0 as its state.
    """
    whole = with_times(params, start, end)
    solved = _adjoint(settings, in_shares(field), whole, x, adjoint)
    return solved._replace(state=(*solved.state[:2], solved.state[2][0]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _solve(settings: AdaptiveSolver, field: VectorField, params: PyTree, x: State) -> State:
    return integrate(settings, field, params, x).state


def _forward(
    settings: AdaptiveSolver, field: VectorField, params: PyTree, x: State
) -> tuple[State, PyTree]:
    if settings.adjoint == "backsolve":
        end = integrate(settings, field, params, x).state
        return end, (params, end)
    taken = taken_steps(settings, field, params, x)
    end = jax.tree.map(lambda leaf: only_if(taken.complete, leaf[taken.steps]), taken.states)
    return end, (params, taken)


def _backward(
    settings: AdaptiveSolver, field: VectorField, residuals: PyTree, adjoint: State
) -> tuple[PyTree, State]:
    params, kept = residuals
    if settings.adjoint == "direct":
        return _back_through_steps(settings, field, params, kept, adjoint)
    _, adjoint, gradient = _adjoint(settings, field, params, kept, adjoint).state
    return gradient, adjoint


_solve.defvjp(_forward, _backward)


def _adjoint(
    settings: AdaptiveSolver, field: VectorField, params: PyTree, x: State, adjoint: State
) -> Solution:
    """(x, a, g) backward in time. The error of g, an integral that nothing feeds on, does not
    choose the steps: so taps (`systems/taps.py`) in the parameters, whose records are parts of g,
    leave the gradient as it is."""

    def back(params: PyTree, share: Array, state: State) -> State:
        x, adjoint, _ = state
        slope, pull_back = jax.vjp(lambda params, x: field(params, 1 - share, x), params, x)
        gradient, adjoint = pull_back(adjoint)
        return jax.tree.map(jnp.negative, slope), adjoint, gradient

    state = x, adjoint, jax.tree.map(jnp.zeros_like, params)
    return integrate(settings, back, params, state, lambda state: state[:2])


def _back_through_steps(
    settings: AdaptiveSolver, field: VectorField, params: PyTree, taken: Taken, adjoint: State
) -> tuple[PyTree, State]:
    """Cotangents of the parameters and of the first state; the steps' sizes are constants."""

    def back(index: Array, carry: tuple[PyTree, State]) -> tuple[PyTree, State]:
        gradient, adjoint = carry
        k = taken.steps - 1 - index
        x = jax.tree.map(lambda leaf: leaf[k], taken.states)
        step = partial(one_step, settings, field, taken.shares[k], taken.shares[k + 1])
        more, adjoint = jax.vjp(step, params, x)[1](adjoint)
        return jax.tree.map(jnp.add, gradient, more), adjoint

    start = jax.tree.map(jnp.zeros_like, params), adjoint
    result = lax.fori_loop(0, taken.steps, back, start)
    return jax.tree.map(partial(only_if, taken.complete), result)
