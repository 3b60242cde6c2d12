"""Solves of ordinary differential equations that choose their steps, and their gradients.

Notation
    F         vector field:  dx/dt = F(theta, t, x)
    a         adjoint dL/dx(t):   da/dt = -F_x^T a
    g         what of dL/dtheta the times after t contribute:   dg/dt = -F_theta^T a,  g(t1) = 0

    s         the time as a share:  t = t0 + s (t1 - t0),   dx/ds = (t1 - t0) F,   0 <= s <= 1

    backward from t1:  (x, a, g),   dL/dtheta = g(t0)

A state is any tree of arrays; a batch is one state, so that all samples have the same steps.
diffrax, an extra that is imported when it is used, makes the solves; their gradients are here. Its
own direct adjoint cannot be compiled inside `jax.pmap` (0.7.2), and its backsolve does not say that
the backward solve was cut short. It is given s, whose ends are constants, so that it puts no check
of them (a call of the host) into the program; t0 and t1 are parameters beside theta.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ocresnet.systems.architecture import require_one_of, require_whole
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.system import PyTree, State

Array = jax.Array

AdaptiveMethod = Literal["dopri5", "tsit5"]
Adjoint = Literal["direct", "backsolve"]

FIRST_STEP = 0.1
"""Of a solve, in s; the next ones are chosen by the error."""


@dataclass(frozen=True)
class AdaptiveSolver:
    """How an adaptive solve is made.

    Attributes:
      method: an explicit Runge-Kutta pair of order 5(4).
      rtol, atol: the error of a step is kept below atol + rtol |x|, as a root mean square over the
        whole state.
      max_steps: limit on the steps of a solve, rejected ones included.
      adjoint: how its gradient is computed: "direct", through the steps that were taken, the states
        before which are kept, or "backsolve", by a solve of the adjoint equation backward in time,
        which keeps x(t1) alone.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    method: AdaptiveMethod = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-3
    max_steps: int = 100
    adjoint: Adjoint = "direct"

    def __post_init__(self) -> None:
        require_one_of("method", self.method, get_args(AdaptiveMethod))
        require_one_of("adjoint", self.adjoint, get_args(Adjoint))
        require_whole("max_steps", self.max_steps, 1)
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}, but must be a number above 0 and below 1.")


class Solution(NamedTuple):
    """Of an adaptive solve.

    Attributes:
      state: x(t1), for example; infinite where the solve reached its limit of steps before t1.
      steps: those that were tried, int32 [].
      complete: whether t1 was reached, [].
    """

    state: State
    steps: Array
    complete: Array

    @property
    def evaluations(self) -> Array:
        """How often F was evaluated: six times a step, as its last slope is the next one's first,
        and once before them (where the first is rejected, diffrax does that again)."""
        return 6 * self.steps + 1


class Taken(NamedTuple):
    """The steps that a solve has taken.

    Attributes:
      shares: s before the first step and after each of them, [max_steps + 1]; infinite beyond
        `steps`.
      states: the states there, trees [max_steps + 1, ...].
      steps: how many, int32 [].
      complete: whether they reach the end, [].
    """

    shares: Array
    states: State
    steps: Array
    complete: Array


def solution(
    settings: AdaptiveSolver,
    field: VectorField,
    params: PyTree,
    start: Array | float,
    end: Array | float,
    x: State,
) -> Solution:
    """x(end) from x(start) with the number of steps it took, and without gradients.

    Args:
      settings: of the solve.
      field, params: F and its theta.
      start, end: t0 and t1; end may be the earlier one.
      x: x(t0), of at least float32.

    Raises:
      ImportError: without diffrax, saying how to get it.
    """
    return integrate(settings, in_shares(field), with_times(params, start, end), x)


def require_diffrax() -> Any:
    """diffrax.

    Raises:
      ImportError: without it, saying how to get it.
    """
    try:
        import diffrax  # an extra
    except ImportError as error:
        raise ImportError(
            f"the adaptive solvers {', '.join(get_args(AdaptiveMethod))} need diffrax: install "
            "'ocresnet[ode]', or choose solver euler, midpoint or rk4 with a number of steps."
        ) from error
    return diffrax


def with_times(params: PyTree, start: Array | float, end: Array | float) -> PyTree:
    """(theta, t0, t1)."""
    return params, *(jnp.asarray(time, jnp.result_type(float)) for time in (start, end))


def in_shares(field: VectorField) -> VectorField:
    """dx/ds, of (theta, t0, t1)."""

    def scaled(params: PyTree, share: Array, x: State) -> State:
        theta, start, end = params
        slope = field(theta, start + share * (end - start), x)
        return jax.tree.map(lambda leaf: (end - start).astype(leaf.dtype) * leaf, slope)

    return scaled


def integrate(
    settings: AdaptiveSolver,
    field: VectorField,
    params: PyTree,
    x: State,
    measured: Callable[[State], PyTree] = lambda state: state,
) -> Solution:
    """A solve over 0 <= s <= 1, whose steps are chosen by the error of what is `measured` of the
    state."""
    saved = require_diffrax().SaveAt(t1=True)
    shares, states, counts = _diffrax_solve(settings, field, params, x, saved, measured)
    state = jax.tree.map(lambda leaf: leaf[-1], states)
    complete = _arrived(shares[-1], state)
    state = jax.tree.map(partial(only_if, complete), state)
    return Solution(state, counts["num_steps"].astype(jnp.int32), complete)


def taken_steps(settings: AdaptiveSolver, field: VectorField, params: PyTree, x: State) -> Taken:
    """A solve that keeps all its states."""
    saved = require_diffrax().SaveAt(t0=True, steps=True)
    shares, states, counts = _diffrax_solve(settings, field, params, x, saved)
    steps = counts["num_accepted_steps"].astype(jnp.int32)
    last = jax.tree.map(lambda leaf: leaf[steps], states)
    return Taken(shares, states, steps, _arrived(shares[steps], last))


def _diffrax_solve(
    settings: AdaptiveSolver,
    field: VectorField,
    params: PyTree,
    x: State,
    saved: Any,
    measured: Callable[[State], PyTree] = lambda state: state,
) -> tuple[Array, State, dict[str, Array]]:
    """What is saved, s and states of the types of `x`, and the numbers of steps."""
    diffrax = require_diffrax()
    from optimistix import rms_norm  # diffrax brings it

    result = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda share, state, params: field(params, share, state)),
        _method(settings),
        0.0,
        1.0,
        FIRST_STEP,
        x,
        args=params,
        saveat=saved,
        stepsize_controller=diffrax.PIDController(
            rtol=settings.rtol, atol=settings.atol, norm=lambda state: rms_norm(measured(state))
        ),
        adjoint=diffrax.ForwardMode(),
        max_steps=settings.max_steps,
        throw=False,
    )
    # Where float64 is enabled, diffrax computes in it.
    states = jax.tree.map(lambda leaf, given: leaf.astype(given.dtype), result.ys, x)
    return result.ts, states, result.stats


def _method(settings: AdaptiveSolver) -> Any:
    diffrax = require_diffrax()
    return {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}[settings.method]()


def _arrived(share: Array, state: State) -> Array:
    """Whether a solve reached its end with a state that is finite: to diffrax a step that is not a
    number is a success."""
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]
    return jnp.all(jnp.stack([share == 1, *finite]))


def only_if(complete: Array, leaf: Array) -> Array:
    """What a solve has reached, and infinity unless it reached its end. Not NaN: on CPU the maximum
    of that and zero, as in a ReLU, is zero again."""
    return jnp.where(complete, leaf, jnp.inf)


def one_step(
    settings: AdaptiveSolver,
    field: VectorField,
    share: Array,
    after: Array,
    params: PyTree,
    x: State,
) -> State:
    """The step of the method from one share of the time to another."""
    tableau = _method(settings).tableau
    h = after - share

    def moved(weights: Any, slopes: list[State]) -> State:
        def of_leaf(leaf: Array, *slopes: Array) -> Array:
            terms = (float(w) * slope for w, slope in zip(weights, slopes, strict=True))
            return leaf + h.astype(leaf.dtype) * sum(terms)

        return jax.tree.map(of_leaf, x, *slopes)

    slopes = [field(params, share, x)]
    for c, weights in zip(tableau.c[:-1], tableau.a_lower[:-1], strict=True):
        slopes.append(field(params, share + float(c) * h, moved(weights, slopes)))
    return moved(tableau.b_sol[:-1], slopes)  # the last slope is that of the next step
