"""A system whose differential equations are observed at a grid of times.

Notation (dx/dt = F, T its horizon)
    t_j       times of the grid;   w_j their shares of T, as in the trapezoidal rule, sum_j w_j = 1
    a(t)      adjoint, the gradient of a sample's cost with respect to x(t)
    z, delta  input of a layer of F at (t_j, x(t_j)), and the gradient of T a(t_j) F there with
              respect to the layer's output

The gradient of a layer of F is the integral of a times dF/dW: the mean over t of z delta^T. Taps in
the layer (`systems/taps.py`) record the mean over the grid, sum_j w_j (what their rule makes of z
and delta), however many evaluations of F the solver needs in between, and wherever it puts them.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.systems import taps
from ocresnet.systems.dynamics import Dynamics
from ocresnet.systems.system import PyTree, Segment, Stage, State, System

Array = jax.Array


def has_dynamics(system: System) -> bool:
    """Whether a segment of the system solves a differential equation."""
    return any(segment.dynamics is not None for segment in system.segments)


def on_grid(system: System, grid: int) -> System:
    """The same system, where taps in a differential equation record at a grid of times.

    States and outputs are those of the system: a solver of equal steps is observed at all of them,
    and where these are fewer than `grid`, each is divided into as many as that needs; an adaptive
    solve is divided into `grid` parts. What is recorded is for gradients with respect to taps
    alone: that of the parameters is right too, but it takes more steps than that of the system.

    Args:
      system: as an architecture makes it.
      grid: of every differential equation at least so many equal parts, at whose ends t_j lie.
    """
    return replace(
        system, segments=tuple(_segment_on_grid(segment, grid) for segment in system.segments)
    )


def _segment_on_grid(segment: Segment, grid: int) -> Segment:
    dynamics = segment.dynamics
    if dynamics is None:
        return segment
    parts = -(-grid // segment.transitions)
    share = 1 / (parts * segment.transitions)

    def transition(stage: Stage, x: State) -> tuple[State, PyTree]:
        params, recording = taps.split(stage.params)
        horizon = dynamics.horizon(params)

        def observe(x: State, time: Array, weight: Array | float) -> State:
            return _observe(dynamics, params, recording, time, horizon, weight * share, x)

        # Of an adaptive solve only one part at a time keeps its steps for the backward pass.
        @partial(jax.checkpoint, prevent_cse=False)
        def part(x: State, index: Array) -> tuple[State, None]:
            time = horizon * (stage.time + index * share)
            x = observe(x, time, jnp.where(index == 0, 0.5, 1.0))
            return dynamics.advance(params, time, horizon * share, x), None

        x, _ = lax.scan(part, x, jnp.arange(parts))
        return observe(x, horizon * (stage.time + parts * share), 0.5), {}

    return replace(segment, transition=transition)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _observe(
    dynamics: Dynamics,
    params: PyTree,
    recording: PyTree,
    time: Array,
    horizon: Array,
    weight: Array,
    x: State,
) -> State:
    """x itself, whose backward pass records."""
    return x


def _forward(dynamics: Dynamics, *arguments: PyTree) -> tuple[State, PyTree]:
    return arguments[-1], arguments


def _backward(dynamics: Dynamics, arguments: PyTree, adjoint: State) -> tuple[PyTree, ...]:
    params, recording, time, horizon, weight, x = arguments

    def slope(recording: PyTree) -> State:
        return dynamics.field(taps.join(params, recording), time, x)

    def scaled(tree: PyTree, factor: Array) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)

    (recorded,) = jax.vjp(slope, recording)[1](scaled(adjoint, horizon))
    return None, scaled(recorded, weight), None, None, None, adjoint


_observe.defvjp(_forward, _backward)
