"""The differential equation that a segment solves, for whoever needs its times and not its blocks.

Notation
    F     vector field:  dx/dt = F(theta, t, x),   0 <= t <= T
    T     horizon

The transitions of such a segment take equal parts of [0, T], one after the other.
"""

from collections.abc import Callable
from typing import NamedTuple

from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.system import Array, PyTree, State


class Dynamics(NamedTuple):
    """A segment in continuous time; all its functions take the segment's parameters.

    Attributes:
      field: F: (params, t, x) -> dx/dt.
      advance: (params, t, h, x(t)) -> x(t + h), as the network's own solver does it: of equal steps
        one, of an adaptive solver as many as it chooses.
      horizon: params -> T.
      free: whether T is a parameter, `params["horizon"]`.
    """

    field: VectorField
    advance: Callable[[PyTree, Array, Array | float, State], State]
    horizon: Callable[[PyTree], Array | float]
    free: bool = False
