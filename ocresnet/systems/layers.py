"""The layers that every network here is built from: pure functions over parameter dictionaries.

Shapes: images are [batch, height, width, channels]; kernels are [height, width, in, out]; dense
kernels and 1x1 projections are [in, out]. Parameters and statistics keep their own dtype (float32
in training); activations are computed in the dtype of `x`.
"""

from functools import partial
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

BATCH_NORM_EPSILON = 1e-5

MATRIX_PRODUCT = taps.Operation(product=jnp.matmul, rows=lambda x: x)
"""What a dense layer does along the last axis of x."""


def init_convolution(key: Array, size: int, channels_in: int, channels_out: int) -> Params:
    """He-normal kernel [size, size, channels_in, channels_out], float32, no bias."""
    shape = (size, size, channels_in, channels_out)
    return {"kernel": jax.nn.initializers.he_normal()(key, shape, jnp.float32)}


def convolution(params: Params, x: Array, stride: int = 1) -> Array:
    """x * kernel (+ bias), zero-padded by half the kernel on every side."""
    kernel = params["kernel"].astype(x.dtype)
    operation = taps.Operation(
        partial(convolutions.convolution, stride=stride),
        partial(convolutions.patches, kernel_shape=kernel.shape[:2], stride=stride),
    )
    y = operation.product(x, kernel)
    if "bias" in params:
        y += params["bias"].astype(x.dtype)
    y = checkpoint_name(y, CONVOLUTION_OUTPUT)
    return taps.record(params, operation, x, y)


def init_projection(key: Array, channels_in: int, channels_out: int) -> Params:
    """He-normal 1x1 kernel [channels_in, channels_out], float32, no bias."""
    kernel = jax.nn.initializers.he_normal()(key, (channels_in, channels_out), jnp.float32)
    return {"kernel": kernel}


def subsample(x: Array, stride: int) -> Array:
    """Every `stride`-th row and column of `x`, starting with the first."""
    return x if stride == 1 else x[:, ::stride, ::stride]


def max_pool(x: Array, size: int, stride: int) -> Array:
    """Maximum over `size` x `size` pixels (odd) around every `stride`-th row and column of `x`."""
    border = (size // 2, size // 2)
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        ((0, 0), border, border, (0, 0)),
    )


def dense(params: Params, x: Array) -> Array:
    """x @ kernel (+ bias), along the last axis of `x`."""
    y = x @ params["kernel"].astype(x.dtype)
    if "bias" in params:
        y += params["bias"].astype(x.dtype)
    return taps.record(params, MATRIX_PRODUCT, x, y)


def init_dense(key: Array, features_in: int, features_out: int) -> Params:
    """LeCun-normal kernel [features_in, features_out] and zero bias, float32."""
    shape = (features_in, features_out)
    return {
        "kernel": jax.nn.initializers.lecun_normal()(key, shape, jnp.float32),
        "bias": jnp.zeros(features_out, jnp.float32),
    }


def init_batch_norm(channels: int) -> tuple[Params, Params]:
    """Scale 1 and bias 0; running mean 0 and variance 1; all [channels], float32."""
    params = {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}
    stats = {"mean": jnp.zeros(channels), "variance": jnp.ones(channels)}
    return params, stats


def batch_norm(
    params: Params,
    stats: Params,
    x: Array,
    train: bool,
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
    multiplier = params["scale"] * lax.rsqrt(variance + BATCH_NORM_EPSILON)
    offset = params["bias"] - mean * multiplier
    return (x * multiplier + offset).astype(x.dtype), stats
