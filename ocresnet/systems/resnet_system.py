"""What a convolutional residual network computes (pre-activation, ResNet-v2), and its arrays.

Notation (Puettschneider et al. 2025, equations 1 and 2; architecture: He et al. 2016b)
    V     stem: convolution, batch norm, ReLU (and for ImageNet a maximum over 3x3 pixels)
    F_k   residual branch of block k: (batch norm, ReLU, convolution) two or three times
    S_k   skip connection of block k: the identity, or where a level begins a 1x1 convolution
    H     output block: batch norm, ReLU, mean over pixels, dense layer
    E_k   exit head of block k

    x_0 = V(images)
    x_{k+1} = S_k(x_k) + F_k(x_k)                             k = 0 ... N-1
    yhat_k = E_k(x_k) = H(S_{N-1}( ... S_k(x_k) ... ))        k = 0 ... N-1
    yhat = H(x_N)

S_k is linear: unlike in He et al. 2016b, where a projection reads the normalised and rectified
state, it reads the state itself, without which an exit could not apply those that are still to come
(equation 2). The stem keeps its batch norm and ReLU, as they do before their first block; that
block begins with a batch norm all the same, as every other.

Levels after the first halve the resolution. A network whose last levels have no blocks is the
SubResNet of Definition 1: its head keeps the skip projections of those levels. Where the block that
opens a level was pruned away, its bare skip x -> S_k(x) stays; an exit before it would be the same
as the one after it, so it has none.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ocresnet.systems import layers
from ocresnet.systems.architecture import OUTPUT_BLOCK
from ocresnet.systems.layers import Array, AxisName, Convolution, Params
from ocresnet.systems.pieces import STATE, Piece, add, composed
from ocresnet.systems.residual_branch import (
    Norm,
    branch_convolutions,
    branch_pieces,
    init_residual_branch,
)
from ocresnet.systems.system import (
    Execution,
    Output,
    PyTree,
    Segment,
    Skip,
    Stage,
    System,
    Transition,
    Variables,
)
from ocresnet.systems.taps import AffineLayer

if TYPE_CHECKING:
    from ocresnet.systems.resnet import BlockRun, ResNetConfig

Head = Callable[[PyTree, PyTree, Array, bool | None], tuple[Array, PyTree]]
"""(params, batch_stats, x, train) -> (logits, new batch_stats)."""


def resnet_system(
    config: "ResNetConfig",
    *,
    momentum: float | Array,
    axis_name: AxisName,
    execution: Execution,
) -> System:
    """The network as a controlled system: stem, blocks with exits as outputs, output block.

    Args:
      config: the architecture.
      momentum: share of the running batch statistics that one training step keeps.
      axis_name: the mapped axis, or axes, over which batch norm is synchronised, or None.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      A system whose inputs are images, whose initial state are normalised images and whose final
      state are the logits yhat; its outputs are the logits of the exits, yhat_0 ... yhat_{N-1}.
      Bare skips are segments `skip_<l>` without output and arrays of their own.
    """
    norm: Norm = partial(layers.batch_norm, momentum=momentum, axis_name=axis_name)
    stem_convolution = stem_layer(config)

    def stem(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        x = stem_convolution(stage.params["convolution"], x)
        x, norm_stats = norm(stage.params["norm"], stage.batch_stats["norm"], x, stage.train)
        x = jax.nn.relu(x)
        if config.stem == "imagenet":
            x = layers.max_pool(x, size=3, stride=2)
        return x, {"norm": norm_stats}

    def projection(level: int) -> Skip:
        """S_k of a block, or a bare skip, that opens a level."""

        def skip(stage: Stage, x: Array) -> Array:
            x = layers.subsample(x, config.stride(level))
            return layers.dense(stage.shared["projections"][projection_name(level)], x)

        return skip

    def bare_skip(level: int) -> Transition:
        return lambda stage, x: (projection(level)(stage, x), {})

    def block(run: "BlockRun") -> tuple[Piece, ...]:
        """The convolutions, the projection where it opens a level, and the sum."""
        pieces = branch_pieces(branch_convolutions(config, run.level, run.opening), norm)
        shortcut, branch = STATE, pieces[-1].name
        if run.opening:
            shortcut, path = "projection", f"projections/{projection_name(run.level)}"
            pieces.append(Piece(shortcut, bare_skip(run.level), shared=(path,)))
        return *pieces, Piece("sum", add, (shortcut, branch))

    def read_out(level: int) -> Head:
        """H(S(...S(x))) for a state with the shape of `level`."""
        pending = range(level + 1, len(config.filters))
        stride = math.prod(config.stride(later) for later in pending)

        def head(
            parts: PyTree, stats: PyTree, x: Array, train: bool | None
        ) -> tuple[Array, PyTree]:
            # 1x1 convolutions act on each pixel alone, so all their strides can be taken first.
            x = layers.subsample(x, stride)
            for later in pending:
                x = layers.dense(parts["projections"][projection_name(later)], x)
            x, norm_stats = norm(parts["norm"], stats["norm"], x, train)
            features = jnp.mean(jax.nn.relu(x), axis=(1, 2))
            return layers.dense(parts["dense"], features), {"norm": norm_stats}

        return head

    def exit_output(level: int) -> Output:
        head = read_out(level)

        def output(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            separate = config.exits == "separate"
            parts = stage.params["exit"] if separate else _own_head(stage.shared)
            logits, stats = head(parts, stage.batch_stats["exit"], x, stage.train)
            return logits, {"exit": stats}

        return output

    def output_block(stage: Stage, x: Array) -> tuple[Array, PyTree]:
        head = read_out(config.state_level)
        return head(_own_head(stage.shared), stage.batch_stats, x, stage.train)

    segments = [Segment("stem", stem, layers={"convolution": stem_convolution})]
    for run in config.runs():
        segments += [Segment(f"skip_{level}", bare_skip(level)) for level in run.bare_levels]
        pieces = block(run)
        segments.append(
            Segment(
                run.name,
                composed(pieces),
                output=exit_output(run.input_level) if config.exits != "none" else None,
                skip=projection(run.level) if run.opening else _identity,
                length=None if run.opening else run.length,
                layers=_block_layers(config, run),
                pieces=pieces,
            )
        )
    segments.append(Segment(OUTPUT_BLOCK, output_block))
    return System(
        tuple(segments),
        shared=("projections", "head"),
        shared_layers={
            "head/dense": layers.dense,
            **{
                f"projections/{projection_name(level)}": layers.dense
                for level in range(config.stem_level + 1, len(config.filters))
            },
        },
        initial_state=partial(config.normalise, execution=execution),
        execution=execution,
    )


def init(config: "ResNetConfig", key: Array) -> Variables:
    """Draw the parameters (He-normal kernels) and fresh batch statistics, all float32.

    `params` has the entries stem, one a run of blocks (`residual` and, with separate heads,
    `exit`), `projections` (one a level that opens with one, [in, out]) and `head`; `batch_stats`
    has stem, one a run of blocks, and output_block. Arrays of a `level_<l>` have its blocks as
    leading axis.
    """
    keys = _key_stream(key)
    stem_norm, stem_stats = layers.init_batch_norm(config.filters[0])
    size = stem_layer(config).sides[0]
    stem = layers.init_convolution(next(keys), size, config.image_shape[2], config.filters[0])
    last = config.widths[-1]
    params: Params = {"stem": {"convolution": stem, "norm": stem_norm}}
    batch_stats: Params = {"stem": {"norm": stem_stats}}

    for run in config.runs():

        def init_block(key: Array, run: "BlockRun" = run) -> tuple[Params, Params]:
            residual_key, exit_key = jax.random.split(key)
            convolutions = branch_convolutions(config, run.level, run.opening)
            residual, residual_stats = init_residual_branch(convolutions, residual_key)
            block, stats = {"residual": residual}, {"residual": residual_stats}
            if config.exits != "none":
                stats["exit"] = {"norm": layers.init_batch_norm(last)[1]}
            if config.exits == "separate":
                block["exit"] = _init_head(config, exit_key, run.input_level)
            return block, stats

        if not run.opening:
            block_keys = jax.random.split(next(keys), run.length)
            params[run.name], batch_stats[run.name] = jax.vmap(init_block)(block_keys)
        else:
            params[run.name], batch_stats[run.name] = init_block(next(keys))

    head = _init_head(config, next(keys), config.stem_level)
    params["projections"] = head.pop("projections")
    params["head"] = head
    batch_stats[OUTPUT_BLOCK] = {"norm": layers.init_batch_norm(last)[1]}
    return Variables(params, batch_stats)


def stem_layer(config: "ResNetConfig") -> Convolution:
    """The stem's convolution."""
    if config.stem == "imagenet":
        return Convolution((7, 7), stride=2)
    return Convolution((3, 3), config.stem_stride)


def projection_name(level: int) -> str:
    """Key of the skip projection that opens `level`."""
    return f"level_{level}"


def _identity(stage: Stage, x: Array) -> Array:
    return x


def _block_layers(config: "ResNetConfig", run: "BlockRun") -> dict[str, AffineLayer]:
    """The affine layers of a block, and of its own exit head, where it has one."""
    convolutions = branch_convolutions(config, run.level, run.opening)
    declared: dict[str, AffineLayer] = {
        f"residual/convolution_{number}": convolution.layer
        for number, convolution in enumerate(convolutions, start=1)
    }
    if config.exits == "separate":
        declared["exit/dense"] = layers.dense
        for level in range(run.input_level + 1, len(config.filters)):
            declared[f"exit/projections/{projection_name(level)}"] = layers.dense
    return declared


def _own_head(shared: PyTree) -> PyTree:
    """The backbone's own projections and output block, as one head."""
    return {"projections": shared["projections"], **shared["head"]}


def _init_head(config: "ResNetConfig", key: Array, level: int) -> Params:
    """Projections of the levels after `level`, batch norm and dense layer."""
    keys = _key_stream(key)
    widths = config.widths
    return {
        "dense": layers.init_dense(next(keys), widths[-1], config.classes),
        "norm": layers.init_batch_norm(widths[-1])[0],
        "projections": {
            projection_name(later): layers.init_projection(
                next(keys), config.input_width(later), widths[later]
            )
            for later in range(level + 1, len(widths))
        },
    }


def _key_stream(key: Array) -> Iterator[Array]:
    """An endless iterator of independent keys."""
    while True:
        key, subkey = jax.random.split(key)
        yield subkey
