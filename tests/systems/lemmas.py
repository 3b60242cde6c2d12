"""What the stage-cost paper's two lemmas do to a network's arrays, written on the arrays alone."""

from collections.abc import Collection

import jax
import numpy as np

from ocresnet.systems.architecture import OUTPUT_BLOCK, ResidualArchitecture
from ocresnet.systems.blocks import blocks, with_blocks
from ocresnet.systems.network import Network
from ocresnet.systems.system import PyTree


def zero_branches(
    architecture: ResidualArchitecture, params: PyTree, removed: Collection[int]
) -> PyTree:
    """Lemma 1: the parameters with w_F,k = 0 for the removed blocks."""
    params, start = dict(params), 0
    for segment in architecture.system().blocks:
        kept = [start + index not in removed for index in range(segment.transitions)]
        mask = np.array(kept if segment.stacked else kept[0])
        start += segment.transitions

        def masked(leaf: jax.Array, mask: np.ndarray = mask) -> jax.Array:
            return leaf * mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))

        entry = params[segment.name]
        params[segment.name] = {**entry, "residual": jax.tree.map(masked, entry["residual"])}
    return params


def subresnet(network: Network, count: int) -> Network:
    """Lemma 2: the first blocks, with the exit after them as the network's own output."""
    architecture, listed = network.architecture, blocks(network)
    smaller = with_blocks(network, architecture.subresnet(count), listed[:count])
    if count == architecture.depth:
        return smaller
    after, batch_stats = listed[count], dict(smaller.batch_stats)
    if "exit" in after.batch_stats:
        batch_stats[OUTPUT_BLOCK] = after.batch_stats["exit"]
    params = smaller.params
    if "exit" in after.params:
        params = architecture.with_own_head(params, after.params["exit"])
    return smaller.replace(params=params, batch_stats=batch_stats)
