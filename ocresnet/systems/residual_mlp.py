"""Fully connected residual networks, pre-norm and homogeneous, with an exit before every block.

    x_0 = images W + b
    x_{k+1} = x_k + relu(norm(x_k) W_k1 + b_k1) W_k2 + b_k2        k = 0 ... N-1
    yhat_k = norm(x_k) W + b,   yhat = the same of x_N

Every norm is a layer norm, so that there are no batch statistics.
"""

import math
from dataclasses import dataclass

import jax

from ocresnet.systems import layers
from ocresnet.systems.architecture import MOMENTUM, require_whole
from ocresnet.systems.layers import AxisName, Params
from ocresnet.systems.pieces import STATE, Piece, add, composed
from ocresnet.systems.residual_chain import BLOCKS, ResidualChain
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, System, Variables

Array = jax.Array


@dataclass(frozen=True)
class ResidualMLPConfig(ResidualChain):
    """The architecture of a fully connected residual network.

    Attributes:
      blocks: how many residual blocks, N.
      width: features of the states.
      hidden: features inside a block; 0 means as many as `width`.
      classes, image_shape, exits, pixel_mean, pixel_deviation: as in every architecture.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    hidden: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("hidden", self.hidden, 0)

    def system(
        self,
        *,
        momentum: float | Array = MOMENTUM,
        axis_name: AxisName = None,
        execution: Execution = Execution(),
    ) -> System:
        """Stem, blocks with exits as outputs, output block."""

        def stem(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params, x), {}

        def dense_1(stage: Stage, x: Array) -> tuple[Array, PyTree]:
            branch = stage.params["residual"]
            return layers.dense(branch["dense_1"], layers.layer_norm(branch["norm"], x)), {}

        def dense_2(stage: Stage, inner: Array) -> tuple[Array, PyTree]:
            return layers.dense(stage.params["residual"]["dense_2"], jax.nn.relu(inner)), {}

        pieces = (
            Piece("dense_1", dense_1, entries=("residual/norm", "residual/dense_1")),
            Piece("dense_2", dense_2, ("dense_1",), ("residual/dense_2",)),
            Piece("sum", add, (STATE, "dense_2")),
        )
        of_block = {f"residual/{name}": layers.dense for name in ("dense_1", "dense_2")}

        def initial_state(images: Array) -> Array:
            return self.normalise(images, execution).reshape(images.shape[0], -1)

        return self.chain(
            Segment("stem", stem, layers={"": layers.dense}),
            Segment(BLOCKS, composed(pieces), layers=of_block, pieces=pieces),
            initial_state,
            execution,
        )

    def init(self, key: Array) -> Variables:
        """LeCun-normal kernels, zero biases, float32; `params` is that of `init_chain`."""
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        hidden = self.hidden or self.width

        def init_block(key: Array) -> tuple[Params, Array]:
            first_key, second_key, exit_key = jax.random.split(key, 3)
            branch = {
                "norm": layers.init_layer_norm(self.width),
                "dense_1": layers.init_dense(first_key, self.width, hidden),
                "dense_2": layers.init_dense(second_key, hidden, self.width),
            }
            return branch, exit_key

        stem = layers.init_dense(stem_key, math.prod(self.image_shape), self.width)
        return self.init_chain(stem, init_block, blocks_key, head_key)
