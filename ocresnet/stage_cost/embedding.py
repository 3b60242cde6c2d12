"""The feasible point of Lemma 2 in the stage-cost paper: a SubResNet inside a deeper network.

A ResNet-N whose first M blocks are those of its SubResNet-M, and whose other residual branches are
zero, passes x_M on through its skip connections: every output from yhat_M on is the SubResNet's.
The bounds of Theorems 1 and 2 are the objective at this point (see `bounds`).
"""

import jax
import numpy as np

from ocresnet.systems import resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import BlockSegment
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.systems.system import PyTree


def embed(network: Network, config: ResNetConfig) -> Network:
    """The network of architecture `config` that computes what its SubResNet `network` computes.

    The inverse of `pruning.prune`: the first M blocks are those of `network`, the residual branches
    of blocks M ... N-1 are zero (kernels, scales and biases, so that they add no weight decay), and
    exits M ... N-1 have the head and the batch statistics of the network's own output. Then
    yhat_k = yhat_M for k = M ... N, in inference mode with these running statistics as in training
    mode with those of the batch.

    It is a point to evaluate, not one to train from: a residual branch that is zero in all of its
    parameters has no gradient.

    Args:
      network: a ResNet-M.
      config: the architecture of the ResNet-N, N >= M; `config.subresnet(M)` must be the network's.

    Returns:
      A network of architecture `config`, with arrays of numpy where blocks were added.

    Raises:
      ValueError: if `network` is not a SubResNet of `config`.

    Example:
      >>> deep = embed(shallow, replace(shallow.config, blocks=(54,)))
      >>> trajectory(deep, images, labels).losses  # constant from output M on
    """
    kept = network.config
    if kept.depth > config.depth or config.subresnet(kept.depth) != kept:
        raise ValueError(
            f"a network of blocks {kept.blocks}, filters {kept.filters} and exits {kept.exits!r} "
            f"is not a SubResNet of blocks {config.blocks}, filters {config.filters} and exits "
            f"{config.exits!r}: the two must be equal in all but the last blocks."
        )
    empty = jax.tree.map_with_path(
        _without_effect, jax.eval_shape(lambda: resnet.init(config, jax.random.key(0)))
    )
    params, batch_stats = dict(network.params), dict(network.batch_stats)
    lengths = {segment.name: segment.length for segment in resnet.block_segments(kept)}
    for segment in resnet.block_segments(config):
        added = segment.length - lengths.get(segment.name, 0)
        if added == 0:
            continue
        exit_params, exit_stats = _own_output_as_exit(network, segment)
        for tree, new, own_exit in (
            (params, dict(empty.params[segment.name]), exit_params),
            (batch_stats, dict(empty.batch_stats[segment.name]), exit_stats),
        ):
            if "exit" in new:
                new["exit"] = own_exit
                if not segment.transition:
                    new["exit"] = _repeated(own_exit, segment.length)
            if segment.name in tree:
                new = jax.tree.map(
                    lambda first, rest, n=added: np.concatenate([first, rest[-n:]]),
                    tree[segment.name],
                    new,
                )
            tree[segment.name] = new
    return Network(config, params, batch_stats)


def _without_effect(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Zeros, and ones for running variances: what they are in a network that saw no data."""
    value = 1 if path[-1].key == "variance" else 0
    return np.full(leaf.shape, value, leaf.dtype)


def _own_output_as_exit(network: Network, segment: BlockSegment) -> tuple[PyTree, PyTree]:
    """Parameters and batch statistics of a separate exit head in `segment` that is the network's
    own projections and output block."""
    projections = {
        resnet.projection_name(stage): network.params["projections"][resnet.projection_name(stage)]
        for stage in range(segment.input_stage + 1, len(network.config.filters))
    }
    head = {**network.params["head"], "projections": projections}
    return head, network.batch_stats["output_block"]["norm"]


def _repeated(tree: PyTree, times: int) -> PyTree:
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (times, *leaf.shape)), tree)
