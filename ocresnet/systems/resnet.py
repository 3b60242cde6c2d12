"""Pre-activation residual networks (ResNet-v2) as controlled systems, with an exit at every depth.

Notation (Puettschneider et al. 2025, equations 1 and 2; architecture: He et al. 2016b)
    V     stem: 3x3 convolution, batch norm, ReLU
    F_k   residual branch of block k: (batch norm, ReLU, 3x3 convolution) twice
    S_k   skip connection of block k: the identity, or where a stage begins a 1x1 convolution
    H     output block: batch norm, ReLU, mean over pixels, dense layer
    E_k   exit head of block k

    x_0 = V(images)
    x_{k+1} = S_k(x_k) + F_k(x_k)                             k = 0 ... N-1
    yhat_k = E_k(x_k) = H(S_{N-1}( ... S_k(x_k) ... ))        k = 0 ... N-1
    yhat = H(x_N)

Stages after the first halve the resolution. A network whose last stages have no blocks is the
SubResNet of Definition 1: its head keeps the skip projections of those stages. Where the block that
opens a stage was pruned away, its bare skip x -> S_k(x) stays; an exit before it would be the same
as the one after it, so it has none.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.systems import layers
from ocresnet.systems.layers import Array, AxisName, Params
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.systems.system import (
    Output,
    PyTree,
    Segment,
    System,
    Transition,
    Variables,
    rollout,
)

Norm = Callable[[PyTree, PyTree, Array, bool], tuple[Array, PyTree]]
"""(params, batch_stats, x, train) -> (normalised x, new batch_stats)."""

Head = Callable[[PyTree, PyTree, Array, bool], tuple[Array, PyTree]]
"""(params, batch_stats, x, train) -> (logits, new batch_stats)."""

MOMENTUM = 0.9
"""Share of the running batch statistics that one training step keeps."""


class BlockSegment(NamedTuple):
    """Where a segment of blocks lies: in `stage`; the one that opens the stage is a transition.

    `bare_stages` are the stages whose bare skips come directly before it.
    """

    name: str
    stage: int
    transition: bool
    length: int
    bare_stages: tuple[int, ...] = ()

    @property
    def input_stage(self) -> int:
        """The stage whose shape the segment's input state has."""
        return self.stage - 1 if self.transition else self.stage


def block_segments(config: ResNetConfig) -> list[BlockSegment]:
    """The segments of residual blocks, in order: `transition_<s>` opens stage s, `stage_<s>` is its
    run of homogeneous blocks. Bare skips are no blocks: the segment after them names them."""
    segments: list[BlockSegment] = []
    bare: tuple[int, ...] = ()

    def add(name: str, stage: int, transition: bool, length: int) -> None:
        nonlocal bare
        segments.append(BlockSegment(f"{name}_{stage}", stage, transition, length, bare))
        bare = ()

    for stage, count in enumerate(config.blocks):
        if stage in config.bare_stages:
            bare += (stage,)
        elif stage > 0 and count > 0:
            add("transition", stage, True, 1)
            count -= 1
        if count > 0:
            add("stage", stage, False, count)
    return segments


def resnet_system(
    config: ResNetConfig,
    *,
    momentum: float | Array = MOMENTUM,
    axis_name: AxisName = None,
    execution: Execution = Execution(),
) -> System:
    """The network as a controlled system: stem, blocks with exits as outputs, output block.

    Args:
      config: the architecture.
      momentum: share of the running batch statistics that one training step keeps.
      axis_name: the mapped axis, or axes, over which batch norm is synchronised, or None.
      execution: gives the precision of the activations.

    Returns:
      A system whose inputs are images, whose initial state are normalised images and whose final
      state are the logits yhat; its outputs are the logits of the exits, yhat_0 ... yhat_{N-1}.
      Bare skips are segments `skip_<s>` without output and arrays of their own.
    """
    norm: Norm = partial(layers.batch_norm, momentum=momentum, axis_name=axis_name)

    def stem(
        shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
    ) -> tuple[Array, PyTree]:
        x = layers.convolution(params["convolution"], x, config.stem_stride)
        x, norm_stats = norm(params["norm"], stats["norm"], x, train)
        return jax.nn.relu(x), {"norm": norm_stats}

    def skip_connection(shared: PyTree, stage: int, x: Array) -> Array:
        """S_k, where it opens `stage`."""
        return layers.dense(shared["projections"][_projection(stage)], layers.subsample(x, 2))

    def bare_skip(stage: int) -> Transition:
        def transition(
            shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
        ) -> tuple[Array, PyTree]:
            return skip_connection(shared, stage, x), {}

        return transition

    def block(segment: BlockSegment) -> Transition:
        stride = 2 if segment.transition else 1

        def transition(
            shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
        ) -> tuple[Array, PyTree]:
            skip = skip_connection(shared, segment.stage, x) if segment.transition else x
            branch, branch_stats = _residual_branch(
                params["residual"], stats["residual"], x, stride, train, norm
            )
            return skip + branch, {"residual": branch_stats}

        return transition

    def read_out(stage: int) -> Head:
        """H(S(...S(x))) for a state with the shape of `stage`."""
        pending = [_projection(later) for later in range(stage + 1, len(config.filters))]

        def head(parts: PyTree, stats: PyTree, x: Array, train: bool) -> tuple[Array, PyTree]:
            # 1x1 convolutions act on each pixel alone, so all their strides can be taken first.
            x = layers.subsample(x, 2 ** len(pending))
            for name in pending:
                x = layers.dense(parts["projections"][name], x)
            x, norm_stats = norm(parts["norm"], stats, x, train)
            features = jnp.mean(jax.nn.relu(x), axis=(1, 2))
            return layers.dense(parts["dense"], features), norm_stats

        return head

    def exit_output(stage: int) -> Output:
        head = read_out(stage)

        def output(
            shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
        ) -> tuple[Array, PyTree]:
            separate = config.exits == "separate"
            parts = params["exit"] if separate else _own_head(shared)
            logits, norm_stats = head(parts, stats["exit"], x, train)
            return logits, {"exit": norm_stats}

        return output

    def output_block(
        shared: PyTree, params: PyTree, stats: PyTree, x: Array, train: bool
    ) -> tuple[Array, PyTree]:
        head = read_out(config.state_stage)
        logits, norm_stats = head(_own_head(shared), stats["norm"], x, train)
        return logits, {"norm": norm_stats}

    segments = [Segment("stem", stem)]
    for segment in block_segments(config):
        segments += [Segment(f"skip_{stage}", bare_skip(stage)) for stage in segment.bare_stages]
        output = exit_output(segment.input_stage) if config.exits != "none" else None
        length = None if segment.transition else segment.length
        segments.append(Segment(segment.name, block(segment), output, length))
    segments.append(Segment("output_block", output_block))
    return System(
        tuple(segments),
        shared=("projections", "head"),
        initial_state=partial(normalise, config, execution=execution),
    )


def init(config: ResNetConfig, key: Array) -> Variables:
    """Draw the parameters (He-normal kernels) and fresh batch statistics, all float32.

    `params` has the entries stem, one a segment of blocks (`residual` and, with separate heads,
    `exit`), `projections` (one a later stage, [in, out]) and `head`; `batch_stats` has stem, one a
    segment of blocks, and output_block. Arrays of a `stage_<s>` have its blocks as leading axis.
    """
    keys = _key_stream(key)
    stem_norm, stem_stats = layers.init_batch_norm(config.filters[0])
    stem = layers.init_convolution(next(keys), 3, config.image_shape[2], config.filters[0])
    last = config.filters[-1]
    params: Params = {"stem": {"convolution": stem, "norm": stem_norm}}
    batch_stats: Params = {"stem": {"norm": stem_stats}}

    for segment in block_segments(config):
        channels = config.filters[segment.input_stage], config.filters[segment.stage]

        def init_block(
            key: Array, segment: BlockSegment = segment, channels: tuple[int, int] = channels
        ) -> tuple[Params, Params]:
            residual_key, exit_key = jax.random.split(key)
            residual, residual_stats = _init_residual_branch(residual_key, *channels)
            block, stats = {"residual": residual}, {"residual": residual_stats}
            if config.exits != "none":
                stats["exit"] = layers.init_batch_norm(last)[1]
            if config.exits == "separate":
                block["exit"] = _init_head(config, exit_key, segment.input_stage)
            return block, stats

        if not segment.transition:
            block_keys = jax.random.split(next(keys), segment.length)
            params[segment.name], batch_stats[segment.name] = jax.vmap(init_block)(block_keys)
        else:
            params[segment.name], batch_stats[segment.name] = init_block(next(keys))

    head = _init_head(config, next(keys), 0)
    params["projections"] = head.pop("projections")
    params["head"] = head
    batch_stats["output_block"] = {"norm": layers.init_batch_norm(last)[1]}
    return Variables(params, batch_stats)


def apply(
    config: ResNetConfig,
    variables: Variables,
    images: Array,
    *,
    train: bool = False,
    train_exits: bool | None = None,
    momentum: float | Array = MOMENTUM,
    axis_name: AxisName = None,
    execution: Execution = Execution(),
) -> tuple[Array, PyTree]:
    """All outputs of the network in one forward pass, equations (1) and (2).

    Args:
      config: the architecture.
      variables: its parameters and batch statistics.
      images: [batch, height, width, channels], in the units of `config.pixel_mean`.
      train: normalise with batch statistics and update the running ones.
      train_exits: the same for the exits' statistics alone; None means as `train`.
      momentum: share of the running batch statistics that a training pass keeps.
      axis_name: the mapped axis over which batch norm is synchronised, or None.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      Logits [outputs, batch, classes], float32: index k is yhat_k, the last is yhat; and the new
      batch statistics.

    Raises:
      ValueError: if the images do not have `config.image_shape`, or for float64 without x64.
    """
    check_images(config, images)
    if (
        execution.precision == "float64"
        and not jax.dtypes.canonicalize_dtype("float64") == "float64"
    ):
        raise ValueError("precision float64 needs jax_enable_x64, which is off.")
    system = resnet_system(config, momentum=momentum, axis_name=axis_name, execution=execution)
    result = rollout(
        system,
        variables,
        system.initial_state(images),
        train=train,
        train_outputs=train_exits,
        unroll=execution.unroll,
        remat=execution.remat,
    )
    logits = result.state[None]
    if result.outputs is not None:
        logits = jnp.concatenate([result.outputs, logits])
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), result.batch_stats


def check_images(config: ResNetConfig, images: Array | np.ndarray) -> None:
    """Refuse images that do not have the shape that the network takes."""
    if images.ndim != 4 or images.shape[1:] != config.image_shape:
        raise ValueError(
            f"images have shape {images.shape}, but this network needs "
            f"[batch, {', '.join(map(str, config.image_shape))}]."
        )


def normalise(config: ResNetConfig, images: Array, execution: Execution = Execution()) -> Array:
    """(images - pixel_mean) / pixel_deviation, in the precision of the activations."""
    precision = jnp.dtype(execution.precision)
    statistics_dtype = jnp.promote_types(precision, jnp.float32)
    mean = jnp.asarray(config.pixel_mean, statistics_dtype)
    deviation = jnp.asarray(config.pixel_deviation, statistics_dtype)
    return ((images.astype(statistics_dtype) - mean) / deviation).astype(precision)


def _projection(stage: int) -> str:
    """Key of the skip projection that opens `stage`."""
    return f"stage_{stage}"


def _own_head(shared: PyTree) -> PyTree:
    """The backbone's own projections and output block, as one head."""
    return {"projections": shared["projections"], **shared["head"]}


def _residual_branch(
    params: PyTree, stats: PyTree, x: Array, stride: int, train: bool, norm: Norm
) -> tuple[Array, PyTree]:
    """F_k: (batch norm, ReLU, 3x3 convolution) twice; the first convolution takes the stride."""
    x, stats_1 = norm(params["norm_1"], stats["norm_1"], x, train)
    x = layers.convolution(params["convolution_1"], jax.nn.relu(x), stride)
    x, stats_2 = norm(params["norm_2"], stats["norm_2"], x, train)
    x = layers.convolution(params["convolution_2"], jax.nn.relu(x))
    return x, {"norm_1": stats_1, "norm_2": stats_2}


def _init_residual_branch(key: Array, channels_in: int, channels: int) -> tuple[Params, Params]:
    key_1, key_2 = jax.random.split(key)
    norm_1, stats_1 = layers.init_batch_norm(channels_in)
    norm_2, stats_2 = layers.init_batch_norm(channels)
    params = {
        "norm_1": norm_1,
        "convolution_1": layers.init_convolution(key_1, 3, channels_in, channels),
        "norm_2": norm_2,
        "convolution_2": layers.init_convolution(key_2, 3, channels, channels),
    }
    return params, {"norm_1": stats_1, "norm_2": stats_2}


def _init_head(config: ResNetConfig, key: Array, stage: int) -> Params:
    """Projections of the stages after `stage`, batch norm and dense layer."""
    keys = _key_stream(key)
    widths = config.filters
    return {
        "dense": layers.init_dense(next(keys), widths[-1], config.classes),
        "norm": layers.init_batch_norm(widths[-1])[0],
        "projections": {
            _projection(later): layers.init_projection(next(keys), widths[later - 1], widths[later])
            for later in range(stage + 1, len(widths))
        },
    }


def _key_stream(key: Array) -> Iterator[Array]:
    """An endless iterator of independent keys."""
    while True:
        key, subkey = jax.random.split(key)
        yield subkey
