"""What a continuous normalizing flow is for: log-likelihoods of data, and samples like it.

    to_base      data -> z = x(T) and l(T)           forward in time
    from_base    z -> data                           backward in time
    log p(data) = log N(z; 0, I) + l(T);   a sample is from_base of a normal z

Points are [samples, features], or images of the network's shape, in the units of its data.

A solver's x and l have errors of their own, so that with coarse steps what is computed need not be
a density: its mass may be above one, and training is rewarded for that. `finer` solves the same
equation better; where the two log-likelihoods differ, the finer one is nearer.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ocresnet.costs import log_density
from ocresnet.systems import explicit_steps
from ocresnet.systems.adaptive_gradients import solve
from ocresnet.systems.dense_field import Trace
from ocresnet.systems.flow import FLOW, FlowConfig
from ocresnet.systems.network import Network, apply
from ocresnet.systems.system import Execution, Precision, PyTree, Variables

Array = jax.Array

SMALLEST_TOLERANCE = 1e-6
"""What float32 can keep to."""


class Base(NamedTuple):
    """Where the flow takes points.

    Attributes:
      points: z, [samples, features]; standard normal, if the flow fits the data.
      growth: l(T), log of the volume's growth on the way, [samples].
    """

    points: Array
    growth: Array


def log_likelihood(
    network: Network,
    points: np.ndarray | Array,
    *,
    trace: Trace = "exact",
    key: Array | None = None,
) -> Array:
    """log p of every point, in nats, as the network's own solver has it (see `finer`).

    Args:
      network: a flow.
      points: [samples, features] or [samples, height, width, channels].
      trace: exact, or estimated along one random vector a point.
      key: of the estimate.

    Returns:
      [samples].

    Raises:
      ValueError: for another network, points that do not fit it, an estimate without a key, or a
        solve that reaches its limit of steps.

    Example:
      >>> log_likelihood(run.network, data.images("test")).mean()
    """
    z, growth = to_base(network, points, trace=trace, key=key)
    return log_density(jnp.concatenate([z, growth[:, None]], axis=-1))


def finer(network: Network, factor: int = 8) -> Network:
    """The same flow with a finer solver: `factor` times as many steps, or tolerances as much
    smaller (down to 1e-6) and as many more steps allowed.

    Raises:
      ValueError: for another network.
    """
    architecture = _flow(network)
    adaptive = architecture.adaptive
    if adaptive is None:
        assert architecture.steps is not None
        fine = replace(architecture, steps=factor * architecture.steps)
        return Network(fine, network.params, fine.statistics(jax.random.key(0)))

    def smaller(tolerance: float) -> float:
        return min(tolerance, max(tolerance / factor, SMALLEST_TOLERANCE))

    fine = replace(
        architecture,
        rtol=smaller(adaptive.rtol),
        atol=smaller(adaptive.atol),
        max_steps=factor * adaptive.max_steps,
    )
    return Network(fine, network.params, network.batch_stats)


def sample(network: Network, key: Array, samples: int) -> Array:
    """Points that the flow thinks are like its data.

    Args:
      network: a flow.
      key: of the normal numbers that they are made of.
      samples: how many.

    Returns:
      [samples, features], in the units of the data.

    Raises:
      ValueError: for another network, no samples, or a solve that reaches its limit of steps.

    Example:
      >>> sample(run.network, jax.random.key(0), 1000)
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}, but must be at least 1.")
    features = _flow(network).features
    return from_base(network, jax.random.normal(key, (samples, features)))


def to_base(
    network: Network,
    points: np.ndarray | Array,
    *,
    trace: Trace = "exact",
    key: Array | None = None,
) -> Base:
    """z and l(T) of every point; arguments and errors are those of `log_likelihood`."""
    architecture = _flow(network)
    if trace != "exact" and key is None:
        raise ValueError(f"trace is {trace!r}, which needs a key to draw its directions with.")
    points = jnp.asarray(_checked(architecture, points)).reshape(-1, *architecture.image_shape)
    outputs = _outputs(architecture, trace, network.params, points, key)
    return Base(_finite(architecture, outputs)[:, :-1], outputs[:, -1])


def from_base(network: Network, points: np.ndarray | Array) -> Array:
    """The data whose z is this: the inverse of `to_base`.

    An adaptive solver's error is within its tolerances both ways. Equal steps backward undo equal
    steps forward up to an error of the solver's order.

    Args:
      network: a flow.
      points: z, [samples, features].

    Returns:
      [samples, features], in the units of the data.

    Raises:
      ValueError: for another network, points that do not fit it, or a solve that reaches its limit
        of steps.
    """
    architecture = _flow(network)
    points = jnp.asarray(_checked(architecture, points)).reshape(-1, architecture.features)
    return _finite(architecture, _backward(architecture, network.params, points))


@partial(jax.jit, static_argnames=("architecture", "trace"))
def _outputs(
    architecture: FlowConfig, trace: Trace, params: PyTree, points: Array, key: Array | None
) -> Array:
    estimating = replace(architecture, trace=trace)
    stats = {} if key is None else estimating.statistics(key)
    execution = Execution(precision=_precision(points), remat="none")
    variables = Variables(params, stats)
    return apply(estimating, variables, points, train=trace != "exact", execution=execution)[0][-1]


@partial(jax.jit, static_argnames="architecture")
def _backward(architecture: FlowConfig, params: PyTree, points: Array) -> Array:
    field, theta, adaptive = architecture.field(), params[FLOW], architecture.adaptive
    if adaptive is not None:
        x = solve(adaptive, field, theta, architecture.horizon, 0.0, points)
    else:
        ends = jnp.asarray(architecture.times[1:], jnp.result_type(float))
        h = architecture.horizon / len(ends)

        def step_back(x: Array, time: Array) -> tuple[Array, None]:
            return explicit_steps.step(architecture.fixed, field, theta, time, -h, x), None

        x, _ = lax.scan(step_back, points, ends, reverse=True)
    mean, deviation = (
        jnp.asarray(values, x.dtype)
        for values in (architecture.pixel_mean, architecture.pixel_deviation)
    )
    images = x.reshape(-1, *architecture.image_shape) * deviation + mean
    return images.reshape(x.shape)


def _precision(points: Array) -> Precision:
    return "float64" if points.dtype == jnp.float64 else "float32"


def _flow(network: Network) -> FlowConfig:
    """The architecture of a flow."""
    architecture = getattr(network, "architecture", None)
    if not isinstance(architecture, FlowConfig):
        what = type(network if architecture is None else architecture).__name__
        raise ValueError(f"only a flow has a likelihood and samples, and this is a {what}.")
    return architecture


def _checked(architecture: FlowConfig, points: np.ndarray | Array) -> np.ndarray | Array:
    """Points of the flow's shape, in floating point."""
    features, shape = architecture.features, np.shape(points)
    if len(shape) < 2 or shape[1:] not in ((features,), architecture.image_shape) or not shape[0]:
        raise ValueError(
            f"points have shape {shape}, but this flow needs [samples, {features}], at least one."
        )
    return points if np.asarray(points).dtype.kind == "f" else np.asarray(points, np.float32)


def _finite(architecture: FlowConfig, values: Array) -> Array:
    if architecture.not_finite and not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError(f"the flow does not end: {architecture.not_finite}.")
    return values
