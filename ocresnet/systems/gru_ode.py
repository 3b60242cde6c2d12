"""A GRU-ODE: a state that moves by an ODE between observations, and by a GRU cell at each.

    h          hidden state, [batch, width]; 0 before the first observation
    t_k        time of row k of a series, y_k its values, m_k its mask: 1 where y_k was observed

    dh/dt = F(theta, h),              t_{k-1} < t <= t_k      F: dense layers with tanh between them
    h(t_k+) = GRU([m_k y_k, m_k], h(t_k))                     unless nothing was observed

    classification   yhat = W h(t_K+) + b
    prediction       yhat_k = W h(t_k) + b for every row k: of y_k, from what came before t_k

The GRU cell (Cho et al. 2014), with u = [m y, m]:
    r = sigma(W_r u + U_r h + b_r + c_r)                  reset gate
    z = sigma(W_z u + U_z h + b_z + c_z)                  update gate
    n = tanh(W_n u + b_n + r (U_n h + c_n))               candidate
    h+ = (1 - z) n + z h

A series is an image: a row for every time, a column for every feature, and three channels:
    0   the time since the row before, the same in every column; 0 in the first row
    1   the value
    2   the mask
A row with time 0 and mask 0 changes nothing, so that series of several lengths are padded with it.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax import lax

from ocresnet.costs import Loss
from ocresnet.systems import explicit_steps, layers
from ocresnet.systems.adaptive_gradients import solve
from ocresnet.systems.adaptive_solves import require_diffrax
from ocresnet.systems.architecture import (
    MOMENTUM,
    Architecture,
    require_one_of,
    require_whole,
)
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.layers import AxisName, Params
from ocresnet.systems.solver_settings import SolverChoice
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, State, System, Variables

Array = jax.Array

GRU_ODE = "gru_ode"
"""The segment that reads the series; its parameters are "field" (F) and "cell"."""

CHANNELS = 3
"""Of a series as an image: time since the row before, value, mask."""

Task = Literal["classification", "prediction"]


@dataclass(frozen=True)
class GRUODEConfig(SolverChoice, Architecture):
    """The architecture of a GRU-ODE.

    Attributes:
      task: one class for a series, or a prediction of every value from those before it.
      width: features of the hidden state.
      hidden: features inside F; 0 means as many as `width`.
      field_layers: dense layers of F.
      solver, steps, rtol, atol, max_steps, adjoint: as of `SolverChoice`, for every solve from a
        row to the next.
      classes: of a classification.
      image_shape: (rows, features, 3).
      pixel_mean, pixel_deviation: what values are normalised with, as (0, mean, 0) and
        (1, deviation, 1).

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    task: Task = "classification"
    width: int = 32
    hidden: int = 0
    field_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("task", self.task, get_args(Task))
        for name, smallest in (("width", 1), ("hidden", 0), ("field_layers", 1)):
            require_whole(name, getattr(self, name), smallest)
        self.check_solver()
        if self.image_shape[2] != CHANNELS:
            raise ValueError(
                f"image_shape is {self.image_shape}, but a GRU-ODE takes series, which are (rows, "
                "features, 3): the channels are the time since the row before, value and mask."
            )
        for name, kept in (("pixel_mean", 0.0), ("pixel_deviation", 1.0)):
            given = getattr(self, name)
            if (given[0], given[-1]) != (kept, kept):
                raise ValueError(
                    f"{name} is {given}, but of a series only the values are normalised, the "
                    f"second channel: its first and last number must be {kept:g}."
                )

    @property
    def classifies(self) -> bool:
        """See `Architecture.classifies`."""
        return self.task == "classification"

    @property
    def losses(self) -> tuple[Loss, ...]:
        """See `Architecture.losses`."""
        return super().losses if self.classifies else ("mean_squared_error",)

    def with_rows(self, rows: int) -> Self:
        """The architecture for series of another length, with the same arrays."""
        return replace(self, image_shape=(rows, *self.image_shape[1:]))

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """A transition for every row, all tied, and the head.

        Raises:
          ImportError: for an adaptive solver without diffrax.
        """
        rows = self.image_shape[0]
        if self.adaptive is not None:
            require_diffrax()
            execution = replace(execution, remat="none")

        def initial_state(images: Array) -> State:
            series = self.normalise(images, execution)
            state = {"series": series, "h": jnp.zeros((len(series), self.width), series.dtype)}
            if self.task == "prediction":
                state["before"] = jnp.zeros((len(series), rows, self.width), series.dtype)
            return state

        def row(stage: Stage, state: State) -> tuple[State, PyTree]:
            given = lax.dynamic_index_in_dim(state["series"], stage.time, axis=1, keepdims=False)
            gap, observed = given[:, :1, 0], given[..., 2] > 0
            values = jnp.where(observed, given[..., 1], 0)
            inputs = jnp.concatenate([values, observed.astype(values.dtype)], axis=-1)
            before = self.evolve(stage.params["field"], gap, state["h"])
            after = gru_cell(stage.params["cell"], inputs, before)
            seen = jnp.any(observed, axis=-1, keepdims=True)
            state = {**state, "h": jnp.where(seen, after, before)}
            if self.task == "prediction":
                kept = lax.dynamic_update_index_in_dim(state["before"], before, stage.time, axis=1)
                state["before"] = kept
            return state, {}

        def head(stage: Stage, state: State) -> tuple[Array, PyTree]:
            if self.task == "classification":
                return layers.dense(stage.params, state["h"]), {}
            predictions = layers.dense(stage.params, state["before"])
            # Of the values: the second of three channels, or that of all.
            mean, scale = (row[len(row) // 2] for row in (self.pixel_mean, self.pixel_deviation))
            return (predictions * scale + mean).reshape(len(predictions), -1), {}

        names = [f"field/{name}" for name in _field_names(self.field_layers)]
        reader = Segment(
            GRU_ODE,
            row,
            length=rows,
            tied=True,
            layers=dict.fromkeys([*names, "cell/input", "cell/state"], layers.dense),
        )
        return System(
            (reader, Segment("head", head, layers={"": layers.dense})),
            initial_state=initial_state,
            execution=execution,
        )

    def evolve(self, params: Params, gap: Array, h: Array) -> Array:
        """h(t + gap) of dh/dt = F(h), each sample over its own time.

        Args:
          params: of F.
          gap: [batch, 1].
          h: h(t), [batch, width].
        """
        field, given = _in_shares(self.field_layers), (params, gap)
        if self.adaptive is not None:
            # In half precision the error that chooses the steps would be that of rounding.
            exact = h.astype(jnp.promote_types(h.dtype, jnp.float32))
            given = params, gap.astype(exact.dtype)
            return solve(self.adaptive, field, given, 0.0, 1.0, exact).astype(h.dtype)
        assert self.steps is not None
        share, method = 1 / self.steps, self.fixed

        def step(k: Array, h: Array) -> Array:
            return explicit_steps.step(method, field, given, k * share, share, h)

        return lax.fori_loop(0, self.steps, step, h)

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels, zero biases, float32; no statistics.

        `params` has gru_ode (`field`, with layer_1 and so on, and `cell`, with `input` and `state`,
        whose outputs are those for reset gate, update gate and candidate) and head.
        """
        field_key, input_key, state_key, head_key = jax.random.split(key, 4)
        features = self.image_shape[1]
        inner = [self.hidden or self.width] * (self.field_layers - 1)
        widths = [self.width, *inner, self.width]
        keys = jax.random.split(field_key, self.field_layers)
        names = _field_names(self.field_layers)
        field = {
            name: layers.init_dense(own, *widths[index : index + 2])
            for index, (name, own) in enumerate(zip(names, keys, strict=True))
        }
        cell = {
            "input": layers.init_dense(input_key, 2 * features, 3 * self.width),
            "state": layers.init_dense(state_key, self.width, 3 * self.width),
        }
        outputs = features if self.task == "prediction" else self.classes
        head = layers.init_dense(head_key, self.width, outputs)
        return Variables({GRU_ODE: {"field": field, "cell": cell}, "head": head}, {})


def gru_cell(params: Params, inputs: Array, h: Array) -> Array:
    """The next hidden state.

    Args:
      params: `input` and `state`, dense layers with outputs [..., 3 width]: those for reset gate,
        update gate and candidate, in this order.
      inputs: u, [batch, features].
      h: [batch, width].
    """
    of_input = jnp.split(layers.dense(params["input"], inputs), 3, axis=-1)
    of_state = jnp.split(layers.dense(params["state"], h), 3, axis=-1)
    reset = jax.nn.sigmoid(of_input[0] + of_state[0])
    update = jax.nn.sigmoid(of_input[1] + of_state[1])
    candidate = jnp.tanh(of_input[2] + reset * of_state[2])
    return (1 - update) * candidate + update * h


def _field_names(count: int) -> list[str]:
    return [f"layer_{index}" for index in range(1, count + 1)]


@cache  # one function for equal configurations, so that programs are compiled once
def _in_shares(count: int) -> VectorField:
    """dh/ds = gap F(h), where s is the share of a gap that has passed: of (theta, gap)."""
    names = _field_names(count)

    def field(params: PyTree, share: Array, h: Array) -> Array:
        theta, gap = params
        for name in names[:-1]:
            h = jnp.tanh(layers.dense(theta[name], h))
        return gap * layers.dense(theta[names[-1]], h)

    return field
