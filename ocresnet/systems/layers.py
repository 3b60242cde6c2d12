"""The layers that every network here is built from: pure functions over parameter dictionaries.

Shapes: images are [batch, height, width, channels]; kernels are [height, width, in, out]; dense
kernels and 1x1 projections are [in, out]. Parameters and statistics keep their own dtype (float32
in training); activations are computed in the dtype of `x`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from ocresnet.systems import convolution as convolutions
from ocresnet.systems import taps
from ocresnet.systems.system import CONVOLUTION_OUTPUT

Params = dict[str, Any]
Array = jax.Array
AxisName = str | tuple[str, ...] | None

NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Dense:
    """x @ kernel (+ bias), along the last axis of `x`; also a 1x1 convolution.

    Called with the layer's parameters, `kernel` [in, out] and perhaps `bias` [out], and its input.
    """

    def __call__(self, params: Params, x: Array) -> Array:
        y = self.product(x, params["kernel"].astype(x.dtype))
        return taps.record(params, self, x, _with_bias(params, y))

    def product(self, x: Array, kernel: Array) -> Array:
        """What the kernel does, linear in both."""
        return x @ kernel

    def rows(self, x: Array) -> Array:
        """What the kernel is multiplied with at every location, [batch, ..., rows_in]."""
        return x


@dataclass(frozen=True)
class Convolution:
    """x * kernel (+ bias), zero-padded by half the kernel on every side.

    Called with the layer's parameters, `kernel` [height, width, in, out] and perhaps `bias` [out],
    and its input.

    Attributes:
      sides: height and width of the kernel, odd.
      stride: step between output pixels, the same in both directions.
    """

    sides: tuple[int, int] = (3, 3)
    stride: int = 1

    def __call__(self, params: Params, x: Array) -> Array:
        y = self.product(x, params["kernel"].astype(x.dtype))
        y = checkpoint_name(_with_bias(params, y), CONVOLUTION_OUTPUT)
        return taps.record(params, self, x, y)

    def product(self, x: Array, kernel: Array) -> Array:
        """What the kernel does, linear in both."""
        return convolutions.convolution(x, kernel, self.stride)

    def rows(self, x: Array) -> Array:
        """What the kernel is multiplied with at every location, [batch, ..., rows_in]."""
        return convolutions.patches(x, self.sides, self.stride)


dense = Dense()
"""The one dense layer there is: it has no settings."""


@dataclass(frozen=True)
class Parallel:
    """Affine layers that act in one stage, none on another's output: the players' parts of it.

    Called with a dictionary of the layers' parameters by name, and one of their inputs by label; it
    returns a dictionary of their outputs by name. For taps and for the curvature it is one layer.

    Attributes:
      layers: (name, layer) of each.
      reads: the label of each layer's input; equal labels are the same input.

    Raises:
      ValueError: for names that are no identifiers or equal, or not one label a layer.

    Example:
      >>> branches = Parallel((("branch_1", dense), ("pool", dense)), reads=("x", "pooled"))
      >>> y = branches(params, {"x": x, "pooled": max_pool(x, 3, 1)})["pool"]
    """

    layers: tuple[tuple[str, Dense | Convolution], ...]
    reads: tuple[str, ...]

    def __post_init__(self) -> None:
        identifiers = all(name.isidentifier() for name in self.names)
        if not self.layers or not identifiers or len(set(self.names)) < len(self.layers):
            raise ValueError(
                f"parallel layers need different names of letters, digits and underscores, but got "
                f"{self.names}."
            )
        if len(self.reads) != len(self.layers):
            raise ValueError(
                f"{len(self.layers)} parallel layers need as many labels of what they read, but "
                f"got {self.reads}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers, in order."""
        return tuple(name for name, _ in self.layers)

    def __call__(self, params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = {
            name: layer(params[name], inputs[label])
            for (name, layer), label in zip(self.layers, self.reads, strict=True)
        }
        return taps.record(params, self, inputs, outputs)


def one_by_one(declared: Mapping[str, Any]) -> dict[str, Any]:
    """Declared layers (`Segment.layers`) by their paths, parallel ones each by its own."""
    result: dict[str, Any] = {}
    for path, layer in declared.items():
        if isinstance(layer, Parallel):
            parts = {"/".join(filter(None, (path, name))): part for name, part in layer.layers}
            result.update(parts)
        else:
            result[path] = layer
    return result


def _with_bias(params: Params, y: Array) -> Array:
    return y + params["bias"].astype(y.dtype) if "bias" in params else y


def init_convolution(key: Array, size: int, channels_in: int, channels_out: int) -> Params:
    """He-normal kernel [size, size, channels_in, channels_out], float32, no bias."""
    shape = (size, size, channels_in, channels_out)
    return {"kernel": jax.nn.initializers.he_normal()(key, shape, jnp.float32)}


def init_projection(key: Array, channels_in: int, channels_out: int) -> Params:
    """He-normal 1x1 kernel [channels_in, channels_out], float32, no bias."""
    kernel = jax.nn.initializers.he_normal()(key, (channels_in, channels_out), jnp.float32)
    return {"kernel": kernel}


def subsample(x: Array, stride: int) -> Array:
    """Every `stride`-th row and column of `x`, starting with the first."""
    return x if stride == 1 else x[:, ::stride, ::stride]


def max_pool(x: Array, size: int, stride: int) -> Array:
    """Maximum over `size` x `size` pixels (odd) around every `stride`-th row and column of `x`.

    Written as choices between shifted images, first by rows, then by columns: on CPU its
    derivatives are several times faster than those of `lax.reduce_window`. Of equal pixels the
    first one is chosen; what is no number stays.
    """
    border, infinity = size // 2, jnp.asarray(-jnp.inf, x.dtype)
    for axis in (1, 2):
        padding = [(border, border, 0) if other == axis else (0, 0, 0) for other in range(4)]
        padded, last = lax.pad(x, infinity, padding), (x.shape[axis] - 1) // stride * stride
        shifted = [
            lax.slice_in_dim(padded, shift, shift + last + 1, stride, axis) for shift in range(size)
        ]
        x = shifted[0]
        for other in shifted[1:]:
            x = jnp.where((other > x) | jnp.isnan(other), other, x)
    return x


def init_dense(key: Array, features_in: int, features_out: int) -> Params:
    """LeCun-normal kernel [features_in, features_out] and zero bias, float32."""
    shape = (features_in, features_out)
    return {
        "kernel": jax.nn.initializers.lecun_normal()(key, shape, jnp.float32),
        "bias": jnp.zeros(features_out, jnp.float32),
    }


def init_batch_norm(channels: int) -> tuple[Params, Params]:
    """Scale 1 and bias 0; running mean 0 and variance 1; all [channels], float32."""
    params = {"scale": jnp.ones(channels, jnp.float32), "bias": jnp.zeros(channels, jnp.float32)}
    stats = {"mean": jnp.zeros(channels, jnp.float32), "variance": jnp.ones(channels, jnp.float32)}
    return params, stats


def batch_norm(
    params: Params,
    stats: Params,
    x: Array,
    train: bool | None,
    *,
    momentum: float | Array,
    axis_name: AxisName,
) -> tuple[Array, Params]:
    """Batch normalisation, synchronised over the devices of `axis_name`.

    y = scale (x - mean) / sqrt(variance + 1e-5) + bias, per channel. In training, mean and
    (biased) variance are those of the whole batch, over all devices, and the running statistics
    move to  momentum * running + (1 - momentum) * batch.
    Moments are taken in the dtype of the statistics.

    Args:
      params: `scale`, `bias` [channels].
      stats: running `mean`, `variance` [channels].
      x: [..., channels].
      train: normalise with the batch's own statistics and update the running ones.
      momentum: share of the running statistics that is kept.
      axis_name: the mapped axis over which the batch is split, or None.

    Returns:
      y, of the shape and dtype of `x`, and the new running statistics.
    """
    mean, variance = stats["mean"], stats["variance"]
    if train:
        values = x.astype(mean.dtype)
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(values, axes)
        square = jnp.mean(jnp.square(values), axes)
        if axis_name is not None:
            mean, square = lax.pmean((mean, square), axis_name)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        stats = {
            "mean": momentum * stats["mean"] + (1 - momentum) * mean,
            "variance": momentum * stats["variance"] + (1 - momentum) * variance,
        }
    multiplier = params["scale"] * lax.rsqrt(variance + NORM_EPSILON)
    offset = params["bias"] - mean * multiplier
    return (x * multiplier + offset).astype(x.dtype), stats


def init_layer_norm(features: int) -> Params:
    """Scale 1 and bias 0, [features], float32."""
    return {"scale": jnp.ones(features, jnp.float32), "bias": jnp.zeros(features, jnp.float32)}


def layer_norm(params: Params, x: Array) -> Array:
    """scale (x - mean) / sqrt(variance + 1e-5) + bias, with the moments of every position's own
    features, the last axis of `x`, taken in the dtype of the parameters."""
    values = x.astype(params["scale"].dtype)
    mean = jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(values - mean), axis=-1, keepdims=True)
    normalised = (values - mean) * lax.rsqrt(variance + NORM_EPSILON)
    return (normalised * params["scale"] + params["bias"]).astype(x.dtype)
