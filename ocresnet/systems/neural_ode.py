"""Neural ODEs as controlled systems: a stem, dx/dt = F(theta, t, x) over the horizon, a read-out.

    x(0) = stem(images),   dx/dt = F(theta, t, x),   0 <= t <= T
    F(theta, t, x) = layer_2(sigma(layer_1(x, t)), t)      the time is one more feature, or channel
    yhat_k = read(x(t_k)),   yhat = read(x(T))

theta is the same at all times. The N equal steps x_{k+1} = x_k + h (slope at t_k) of an explicit
solver are residual blocks with one set of parameters: one stage of the control problem, with an
exit at every t_k = k h. How deep a network has to be is then how long it has to be integrated. With
an adaptive solver, which chooses its steps itself, the whole solve is one block.

The convolutional network is that of SNOpt (Liu et al. 2021), but for kernels of 3x3 pixels, padded,
throughout. There are no norms, and so no batch statistics.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Literal, Self, get_args

import jax
import jax.numpy as jnp

from ocresnet.systems import explicit_steps, layers
from ocresnet.systems.adaptive_gradients import solve
from ocresnet.systems.adaptive_solves import require_diffrax
from ocresnet.systems.architecture import (
    MOMENTUM,
    OUTPUT_BLOCK,
    ResidualArchitecture,
    check_blocks,
    require_one_of,
    require_whole,
    whole_numbers,
)
from ocresnet.systems.dynamics import Dynamics
from ocresnet.systems.explicit_steps import VectorField
from ocresnet.systems.layers import AxisName, Convolution, Params
from ocresnet.systems.mlp import Activation
from ocresnet.systems.solver_settings import SolverSettings
from ocresnet.systems.system import (
    Execution,
    Output,
    PyTree,
    Segment,
    Stage,
    System,
    Transition,
    Variables,
)

Array = jax.Array

ODE = "ode"
"""The segment of the differential equation; theta is its "residual"."""

LEAST_FREE_HORIZON = 0.1
"""A horizon that is moved in training becomes no shorter."""


@dataclass(frozen=True)
class NeuralODEConfig(SolverSettings, ResidualArchitecture):
    """The architecture of a Neural ODE.

    Attributes:
      vector_field: whether the state is a vector and F has dense layers, or the state is an image
        and F has 3x3 convolutions.
      width: features, or channels, of the state.
      hidden: features, or channels, inside F; 0 means as many as `width`.
      strides: stride of every convolution of a convolutional stem; a dense stem has none.
      activation: sigma, in F and between the convolutions of the stem.
      free_horizon: whether T is a parameter, which starts at `horizon`, at least 0.1, and is moved
        by a rule of its own.
      exits: "none", or "shared": read at every t_k < T through the network's own output block.
      horizon, solver, steps, rtol, atol, max_steps, adjoint: as of `SolverSettings`.
      classes, image_shape, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    vector_field: Literal["dense", "convolutional"] = "dense"
    width: int = 64
    hidden: int = 0
    strides: tuple[int, ...] = ()
    activation: Activation = "tanh"
    free_horizon: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", whole_numbers("strides", self.strides, 1))
        super().__post_init__()
        require_one_of("vector_field", self.vector_field, ("dense", "convolutional"))
        require_one_of("activation", self.activation, get_args(Activation))
        require_whole("width", self.width, 1)
        require_whole("hidden", self.hidden, 0)
        if self.exits == "separate":
            raise ValueError(
                "exits is 'separate', but a Neural ODE has one set of parameters for all times: "
                "choose none or shared."
            )
        if bool(self.strides) != (self.vector_field == "convolutional"):
            raise ValueError(
                f"strides is {self.strides}, but must be one for each convolution of the stem, as "
                "(1, 2, 2), with a convolutional vector_field, and empty with a dense one."
            )
        self.check_solver()
        if not isinstance(self.free_horizon, bool):
            raise ValueError(f"free_horizon is {self.free_horizon!r}, but must be True or False.")
        if self.free_horizon and self.horizon < LEAST_FREE_HORIZON:
            raise ValueError(
                f"horizon is {self.horizon}, but a free one must start at {LEAST_FREE_HORIZON} at "
                "least, which its rule does not go below."
            )

    @property
    def depth(self) -> int:
        """N, the number of residual blocks: of steps, or one where the solver is adaptive."""
        return self.transitions

    @property
    def times(self) -> tuple[float, ...]:
        """t_k of every output, from 0 to the horizon: [depth + 1].

        Raises:
          ValueError: where the horizon is free, and so among the parameters.
        """
        if self.free_horizon:
            raise ValueError(
                "the horizon of this Neural ODE is free, and its times are not known without its "
                "parameters: make it constant with continuous.trained_horizon.fix_horizon(network)."
            )
        return super().times

    def without(self, blocks: Collection[int]) -> Self:
        """The architecture with a shorter horizon, of as many steps less, each as long as before.

        Raises:
          ValueError: for a block that does not exist or is named twice, blocks that are not the
            last ones, and all of them.
        """
        check_blocks(self, blocks)
        kept = self.depth - len(blocks)
        if not blocks:
            return self
        times = self.times
        if sorted(blocks) != list(range(kept, self.depth)):
            raise ValueError(
                f"cannot remove blocks {sorted(blocks)}: the steps of an ODE are one after the "
                "other in time, and only the last ones can go."
            )
        if kept == 0:
            raise ValueError(
                "cannot remove all steps of an ODE, whose horizon must be positive: keep at least "
                "one."
            )
        return replace(self, steps=kept, horizon=times[kept])

    def horizon_of(self, params: PyTree) -> Array | float:
        """T of a network with these parameters."""
        return self.dynamics.horizon(params[ODE])

    @property
    def dynamics(self) -> Dynamics:
        """The differential equation, of `params["ode"]`.

        Raises:
          ImportError: for an adaptive solver without diffrax.
        """
        field, adaptive = self.field(), self.adaptive
        if adaptive is not None:
            require_diffrax()

        def slope(params: PyTree, time: Array, x: Array) -> Array:
            return field(params["residual"], time, x)

        def one_step(params: PyTree, time: Array, h: Array | float, x: Array) -> Array:
            return explicit_steps.step(self.fixed, field, params["residual"], time, h, x)

        def whole_solve(params: PyTree, time: Array, h: Array | float, x: Array) -> Array:
            assert adaptive is not None
            # In half precision the error that chooses the steps would be that of rounding.
            exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            end = solve(adaptive, field, params["residual"], time, time + h, exact)
            return end.astype(x.dtype)

        def horizon(params: PyTree) -> Array | float:
            return params["horizon"] if self.free_horizon else self.horizon

        advance = one_step if adaptive is None else whole_solve
        return Dynamics(slope, advance, horizon, self.free_horizon)

    def field(self) -> VectorField:
        """F, of the parameters `params["ode"]["residual"]`, the time and a state [batch, ...]."""
        return _two_layers(self._layer, self.activation)

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Stem, the ODE with exits as outputs, output block.

        An adaptive solve keeps what it needs for its gradient itself: with one, nothing is
        recomputed, whatever the execution says.

        Raises:
          ImportError: for an adaptive solver without diffrax.
        """

        def read_out(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            if self.strides:
                x = jnp.mean(jax.nn.relu(x), axis=(1, 2))
            return layers.dense(stage.shared["head"]["dense"], x), {}

        def initial_state(images: Array) -> Array:
            return self.normalise(images, execution)

        exit_output = None if self.exits == "none" else read_out
        if self.adaptive is not None:
            execution = replace(execution, remat="none")
        return System(
            (*self._stem(), self._ode(exit_output), Segment(OUTPUT_BLOCK, read_out)),
            shared=("head",),
            shared_layers={"head/dense": layers.dense},
            initial_state=initial_state,
            execution=execution,
        )

    def _stem(self) -> list[Segment]:
        """The segments before the differential equation."""
        activation = getattr(jax.nn, self.activation)

        def dense(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params, x.reshape(x.shape[0], -1)), {}

        def convolution(layer: Convolution, last: bool) -> Transition:
            def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
                y = layer(stage.params, x)
                return y if last else activation(y), {}

            return transition

        names = [name for name, _ in self._stem_widths()]
        if not self.strides:
            return [Segment(names[0], dense, layers={"": layers.dense})]
        convolutions = [Convolution(stride=stride) for stride in self.strides]
        return [
            Segment(name, convolution(layer, last=name == names[-1]), layers={"": layer})
            for name, layer in zip(names, convolutions, strict=True)
        ]

    def _ode(self, output: Output | None) -> Segment:
        """The segment of the differential equation; its transitions' times are shares of T."""
        dynamics = self.dynamics

        def skip(stage: Stage, x: Array) -> Array:
            return x

        def transition(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            horizon = dynamics.horizon(stage.params)
            h = horizon / self.depth
            return dynamics.advance(stage.params, horizon * stage.time, h, x), {}

        return Segment(
            ODE,
            transition,
            output,
            skip,
            length=self.depth,
            tied=True,
            times=tuple(k / self.depth for k in range(self.depth)),
            layers=dict.fromkeys(("residual/layer_1", "residual/layer_2"), self._layer),
            dynamics=dynamics,
        )

    @property
    def _layer(self) -> layers.Dense | Convolution:
        """The kind that F has two of."""
        return Convolution() if self.strides else layers.dense

    def init(self, key: Array) -> Variables:
        """He-normal convolutions, LeCun-normal dense layers, zero biases, float32; no statistics.

        `params` has the stem, ode (`residual`: layer_1 and layer_2 of F; `horizon` where it is
        free) and head.
        """
        *stem_keys, first_key, second_key, head_key = jax.random.split(
            key, len(self._stem_widths()) + 3
        )
        hidden = self.hidden or self.width

        def init_layer(key: Array, features_in: int, features_out: int) -> Params:
            if not self.strides:
                return layers.init_dense(key, features_in, features_out)
            return {
                **layers.init_convolution(key, 3, features_in, features_out),
                "bias": jnp.zeros(features_out, jnp.float32),
            }

        params = {
            name: init_layer(own, *widths)
            for (name, widths), own in zip(self._stem_widths(), stem_keys, strict=True)
        }
        theta = {
            "layer_1": init_layer(first_key, self.width + 1, hidden),
            "layer_2": init_layer(second_key, hidden + 1, self.width),
        }
        ode: PyTree = {"residual": theta}
        if self.free_horizon:
            ode["horizon"] = jnp.asarray(self.horizon, jnp.float32)
        head = {"dense": layers.init_dense(head_key, self.width, self.classes)}
        return Variables({**params, ODE: ode, "head": head}, {})

    def _stem_widths(self) -> list[tuple[str, tuple[int, int]]]:
        """(name, (features in, features out)) of every layer of the stem."""
        if not self.strides:
            return [("stem", (math.prod(self.image_shape), self.width))]
        channels = pairwise((self.image_shape[2], *[self.width] * len(self.strides)))
        return [(f"stem_{index}", widths) for index, widths in enumerate(channels)]


@cache  # one function for equal configurations, so that programs are compiled once
def _two_layers(layer: layers.Dense | Convolution, activation: Activation) -> VectorField:
    """F of two layers, each of which sees the time."""
    sigma = getattr(jax.nn, activation)

    def with_time(x: Array, time: Array) -> Array:
        time = jnp.broadcast_to(time.astype(x.dtype), (*x.shape[:-1], 1))
        return jnp.concatenate([x, time], axis=-1)

    def field(params: PyTree, time: Array, x: Array) -> Array:
        inner = sigma(layer(params["layer_1"], with_time(x, time)))
        return layer(params["layer_2"], with_time(inner, time))

    return field
