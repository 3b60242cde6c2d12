"""Continuous normalizing flows as controlled systems: densities instead of classes.

    x(0) = the normalised data,   l(0) = -sum log pixel_deviation
    dx/dt = F(theta, t, x),   dl/dt = tr F_x,   0 <= t <= T
    z = x(T),   log p(data) = log N(z; 0, I) + l(T)

The state is (x, l), side by side in one array [batch, features + 1], and the last one is the
network's output: the cost `negative_log_likelihood` (`costs.py`) reads log p from it. F is dense
(`dense_field.py`), theta the same at all times. Samples, and log p for a user, are in
`continuous/flows.py`.

In training, the trace may be estimated with a random vector, which stays the same during a step of
the solver (an adaptive solve is one). Its draws are counted by the batch statistics: they are what
a transition reads and changes besides the state, so that a resumed run draws what it would have
drawn, and a second forward pass what the first one drew. In inference mode the trace is exact.
"""

import math
from dataclasses import dataclass, replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ocresnet.costs import Loss
from ocresnet.systems import explicit_steps
from ocresnet.systems.adaptive_gradients import solve
from ocresnet.systems.adaptive_solves import require_diffrax
from ocresnet.systems.architecture import (
    MOMENTUM,
    Architecture,
    require_one_of,
    whole_numbers,
)
from ocresnet.systems.dense_field import (
    Trace,
    dense_field,
    directions,
    field_layers,
    field_with_growth,
    init_dense_field,
)
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.layers import AxisName
from ocresnet.systems.mlp import Activation
from ocresnet.systems.solver_settings import SolverSettings
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables

Array = jax.Array

FLOW = "flow"
"""The one segment there is."""

FIRST_DRAWS = 2**22
"""Draws are counted from a random number below this one; float32 counts to 2^24."""


@dataclass(frozen=True)
class FlowConfig(SolverSettings, Architecture):
    """The architecture of a continuous normalizing flow.

    Attributes:
      hidden: width of every hidden layer of F. Without any F is affine, and the density normal.
      activation: sigma, after every layer of F but the last.
      trace: in training: exact, or an estimate along one random vector, of signs (rademacher) or
        normal numbers (gaussian), which costs as much in any dimension.
      horizon, solver, steps, rtol, atol, max_steps, adjoint: as of `SolverSettings`.
      classes: of the data; a flow does not tell them apart.
      image_shape, pixel_mean, pixel_deviation: as in every architecture. Data of several features
        are images of one pixel, with a channel for each.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    hidden: tuple[int, ...] = (64, 64)
    activation: Activation = "tanh"
    trace: Trace = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", whole_numbers("hidden", self.hidden, 1))
        super().__post_init__()
        require_one_of("activation", self.activation, get_args(Activation))
        require_one_of("trace", self.trace, get_args(Trace))
        self.check_solver()

    @property
    def classifies(self) -> bool:
        """See `Architecture.classifies`."""
        return False

    @property
    def losses(self) -> tuple[Loss, ...]:
        """See `Architecture.losses`."""
        return ("negative_log_likelihood",)

    @property
    def features(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.image_shape)

    def field(self) -> VectorField:
        """F, of the parameters `params["flow"]`, the time and x [batch, features]."""
        return dense_field(len(self.hidden), self.activation)

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """The differential equation of (x, l), from data [batch, height, width, channels].

        States are at least float32, whatever the precision of the activations.

        Raises:
          ImportError: for an adaptive solver without diffrax.
        """
        field, adaptive = field_with_growth(len(self.hidden), self.activation), self.adaptive
        if adaptive is not None:
            require_diffrax()
            execution = replace(execution, remat="none")  # it keeps what its gradient needs

        def transition(stage: Stage, state: Array) -> tuple[Array, PyTree]:
            vectors, drawn = self._draw(stage, state[:, :-1], axis_name)
            params = stage.params, vectors
            if adaptive is not None:
                return solve(adaptive, field, params, 0.0, self.horizon, state), drawn
            h = self.horizon / self.transitions
            return explicit_steps.step(self.fixed, field, params, stage.time, h, state), drawn

        def initial_state(images: Array) -> Array:
            x = self.normalise(images, execution).reshape(images.shape[0], -1)
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return jnp.concatenate([x, jnp.full_like(x[:, :1], self.log_scale)], axis=-1)

        segment = Segment(
            FLOW,
            transition,
            length=self.transitions,
            tied=True,
            times=self.times[:-1],
            layers=field_layers(len(self.hidden)),
        )
        return System((segment,), initial_state=initial_state, execution=execution)

    def _draw(self, stage: Stage, x: Array, axis_name: AxisName) -> tuple[Array | None, PyTree]:
        """The random directions of a transition's trace, if any, and the new batch statistics."""
        if self.trace == "exact" or not stage.train:
            return None, {}
        draws = stage.batch_stats["draws"]
        key = jax.random.fold_in(jax.random.key(0), draws.astype(jnp.int32))
        if axis_name is not None:
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        return directions(self.trace, key, x), {"draws": draws + 1}

    @property
    def log_scale(self) -> float:
        """l(0): the log of the volume's growth in the normalisation."""
        height, width, channels = self.image_shape
        logs = np.log(np.broadcast_to(self.pixel_deviation, channels))
        return -float(height * width * logs.sum())

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels without biases; where the trace is estimated, the numbers of the
        next draws, [transitions]; all float32."""
        own, draws = jax.random.split(key)
        params = init_dense_field(own, self.features, self.hidden)
        return Variables({FLOW: params}, self.statistics(draws))

    def statistics(self, key: Array) -> PyTree:
        """Batch statistics from which other random vectors are drawn; none for the exact trace."""
        if self.trace == "exact":
            return {}
        first = jax.random.randint(key, (self.transitions,), 0, FIRST_DRAWS)
        return {FLOW: {"draws": first.astype(jnp.float32)}}
