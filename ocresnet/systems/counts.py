"""What a network costs: parameters and multiply-adds, counted from what its system computes."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.fold import shared_parameters, stages
from ocresnet.systems.system import PyTree, Segment, Stage

CONVOLUTIONS = ("conv_general_dilated", "bilinear_convolution")
"""What the primitives of `convolution.py` are called."""


class MultiplyAdds(NamedTuple):
    """Multiply-adds for one image, of convolutions and products of matrices.

    Of a loop that nobody knows the length of before it is run, as in an adaptive solve of an ODE,
    one round is counted: it costs more.

    Attributes:
      stem: of the first segment.
      blocks: of each residual block, [blocks].
      skips: of what is directly before each block (a bare skip, if anything), [blocks].
      exits: of each exit head, [blocks]; what reading yhat_k costs on top of the blocks.
      output_block: of what comes after the last block: the network's own output block. Of a
        network without residual blocks all but the first segment.
    """

    stem: int
    blocks: np.ndarray
    skips: np.ndarray
    exits: np.ndarray
    output_block: int

    @property
    def total(self) -> int:
        """Of computing the network's own output and no other."""
        return int(self.stem + self.blocks.sum() + self.skips.sum() + self.output_block)


class SegmentSize(NamedTuple):
    """What a segment costs, for one image.

    Attributes:
      segment: which.
      state: shapes and dtypes of what enters it, with a batch of one.
      parameters: numbers in all of its parameters.
      transition, output: multiply-adds of one transition, and of one output.
    """

    segment: Segment
    state: PyTree
    parameters: int
    transition: int
    output: int


def parameter_count(params: PyTree) -> int:
    """How many numbers the parameters hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def segment_sizes(architecture: Architecture) -> list[SegmentSize]:
    """Every segment's costs, in order."""
    system = architecture.system()
    variables = jax.eval_shape(architecture.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *architecture.image_shape), np.float32)
    state = jax.eval_shape(system.initial_state, images)
    shared = shared_parameters(system, variables.params)
    given = jax.eval_shape(lambda variables: stages(system, variables), variables)
    sizes = []
    for segment in system.segments:
        stage = given[segment.name]
        if segment.length is not None:
            stage = stage._replace(
                batch_stats=_first(stage.batch_stats),
                time=_first(stage.time),
                params=stage.params if segment.tied else _first(stage.params),
            )
        stage = stage._replace(shared=shared)
        output = segment.output
        sizes.append(
            SegmentSize(
                segment,
                state,
                parameter_count(variables.params.get(segment.name, {})),
                _count(segment.transition, stage, state),
                0 if output is None else _count(output, stage, state),
            )
        )
        state = jax.eval_shape(_in_inference(segment.transition), stage, state)[0]
    return sizes


@cache
def multiply_adds(architecture: Architecture) -> MultiplyAdds:
    """Count the multiply-adds of one forward pass for one image; norms and ReLUs are left out."""
    stem, *sizes = segment_sizes(architecture)
    blocks: list[int] = []
    skips: list[int] = []
    exits: list[int] = []
    since_last_block = 0
    for size in sizes:
        count = size.segment.transitions
        if size.segment.skip is None:
            since_last_block += size.transition * count
            continue
        blocks += [size.transition] * count
        exits += [size.output] * count
        skips += [since_last_block] + [0] * (count - 1)
        since_last_block = 0
    return MultiplyAdds(
        stem=stem.transition * stem.segment.transitions,
        blocks=np.array(blocks, np.int64),
        skips=np.array(skips, np.int64),
        exits=np.array(exits, np.int64),
        output_block=since_last_block,
    )


def _in_inference(function: Callable) -> Callable:
    """`function` with a stage that does not train, whatever is traced in that place."""
    return lambda stage, state: function(stage._replace(train=False), state)


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def _count(function: Callable, stage: Stage, state: PyTree) -> int:
    return _count_jaxpr(jax.make_jaxpr(_in_inference(function))(stage, state).jaxpr)


def _count_jaxpr(jaxpr: Any) -> int:
    """Multiply-adds of the products and convolutions in it, those of inner functions too."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [getattr(variable.aval, "shape", ()) for variable in equation.invars]
        results = [getattr(variable.aval, "shape", ()) for variable in equation.outvars]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += math.prod(results[0]) * math.prod(shapes[0][axis] for axis in contracted)
        elif equation.primitive.name in CONVOLUTIONS:  # kernels are [height, width, in, out]
            total += math.prod(results[0]) * math.prod(shapes[1][:-1])
        for inner in jaxprs_in_params(equation.params):
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += times * _count_jaxpr(inner)
    return total
