"""The feasible point of Lemma 2 in the stage-cost paper: a SubResNet inside a deeper network.

A ResNet-N whose first M blocks are those of its SubResNet-M, and whose other residual branches are
zero, passes x_M on through its skip connections: every output from yhat_M on is the SubResNet's.
The bounds of Theorems 1 and 2 are the objective at this point (see `bounds`).
"""

import jax
import numpy as np

from ocresnet.stage_cost.checks import residual_architecture
from ocresnet.stage_cost.recalibration import fresh_statistics
from ocresnet.systems.architecture import OUTPUT_BLOCK, ResidualArchitecture, residual
from ocresnet.systems.blocks import Block, blocks, with_blocks
from ocresnet.systems.network import Network
from ocresnet.systems.system import PyTree


def embed(network: Network, architecture: ResidualArchitecture) -> Network:
    """The network of another architecture that computes what its SubResNet `network` computes.

    The inverse of `pruning.prune`: the first M blocks are those of `network`, the residual branches
    of blocks M ... N-1 are zero (in all parameters, so that they add no weight decay), and
    exits M ... N-1 have the head and the batch statistics of the network's own output. Then
    yhat_k = yhat_M for k = M ... N, in inference mode with these running statistics as in training
    mode with those of the batch.

    It is a point to evaluate, not one to train from: a residual branch that is zero in all of its
    parameters has no gradient.

    Args:
      network: a ResNet-M.
      architecture: of the ResNet-N, N >= M; its `subresnet(M)` must be the network's.

    Returns:
      A network of that architecture.

    Raises:
      ValueError: if `network` is not a SubResNet of it, or has no residual blocks.

    Example:
      >>> deep = embed(shallow, replace(shallow.architecture, blocks=(54,)))
      >>> trajectory(deep, images, labels).losses  # constant from output M on
    """
    kept = residual_architecture(network, "embedding").depth
    residual(architecture, "embedding")
    if kept > architecture.depth or architecture.subresnet(kept) != network.architecture:
        raise ValueError(
            f"a {network.architecture} is not a SubResNet of a {architecture}: the two must be "
            "equal in all but the last blocks."
        )
    own_statistics = network.batch_stats.get(OUTPUT_BLOCK)
    added = [
        _with_exit(block, architecture.own_head(network.params, index), own_statistics)
        for index, block in list(enumerate(_empty_blocks(architecture)))[kept:]
    ]
    return with_blocks(network, architecture, [*blocks(network), *added])


def _empty_blocks(architecture: ResidualArchitecture) -> list[Block]:
    """Blocks that do nothing, as of a network that has seen no data."""
    shapes = jax.eval_shape(lambda: architecture.init(jax.random.key(0)).params)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return blocks(Network(architecture, zeros, fresh_statistics(architecture)))


def _with_exit(block: Block, head: PyTree, batch_stats: PyTree) -> Block:
    """The block with another exit, where it has one of its own."""
    parts = zip(block, (head, batch_stats), strict=True)
    return Block(*({**own, "exit": exit} if "exit" in own else own for own, exit in parts))
