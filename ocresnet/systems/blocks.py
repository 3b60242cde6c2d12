"""The residual blocks of a network as a list.

A network keeps the arrays of its blocks stacked, one entry a segment. Cutting, removing, adding and
comparing blocks is easier on a list of them: `blocks` takes the list out, `with_blocks` puts
another one into a network of another depth. The blocks of a tied segment have one set of parameters
in common: each of them is listed with it, and what is put back has to agree on it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.systems.architecture import ResidualArchitecture, residual
from ocresnet.systems.network import Network
from ocresnet.systems.system import PyTree


class Block(NamedTuple):
    """The arrays of one residual block, in the memory of the host.

    Attributes:
      params: `residual`, all parameters of its branch; `exit`, its separate exit head, if it has.
      batch_stats: of the same parts, where they have some; empty where none has.
    """

    params: PyTree
    batch_stats: PyTree


def blocks(network: Network) -> list[Block]:
    """The residual blocks of a network, in order.

    Raises:
      ValueError: for a network without residual blocks.
    """
    residual(network.architecture, "a list of blocks")
    listed = []
    for segment in network.architecture.system().blocks:
        own = Block(network.params[segment.name], network.batch_stats.get(segment.name, {}))
        own = jax.device_get(own)
        if segment.length is None:
            listed.append(own)
        else:
            several = own._replace(params={}) if segment.tied else own
            for index in range(segment.length):
                one = jax.tree.map(lambda leaf, i=index: leaf[i], several)
                listed.append(one._replace(params=own.params) if segment.tied else one)
    return listed


def with_blocks(
    network: Network, architecture: ResidualArchitecture, listed: Sequence[Block]
) -> Network:
    """The network of another architecture, with these blocks; all other arrays are `network`'s.

    Args:
      network: of the same family.
      architecture: of the result; its depth is the number of blocks.
      listed: the blocks, of the shapes that the architecture has in their places.

    Raises:
      ValueError: for more or fewer blocks than the architecture has, or blocks of a tied segment
        that differ in their parameters.
    """
    if len(listed) != architecture.depth:
        raise ValueError(f"{len(listed)} blocks do not make a network of {architecture.depth}.")
    old = {segment.name for segment in network.architecture.system().blocks}
    params, batch_stats = (
        {name: entry for name, entry in tree.items() if name not in old}
        for tree in network.variables
    )
    waiting = list(listed)
    for segment in architecture.system().blocks:
        own, waiting = waiting[: segment.transitions], waiting[segment.transitions :]
        stacked = own[0] if segment.length is None else jax.tree.map(_stacked, *own)
        if segment.tied:
            _require_equal(segment.name, [block.params for block in own])
            stacked = stacked._replace(params=own[0].params)
        params[segment.name] = jax.tree.map(jnp.asarray, stacked.params)
        if stacked.batch_stats:
            batch_stats[segment.name] = jax.tree.map(jnp.asarray, stacked.batch_stats)
    return Network(architecture, params, batch_stats)


def _require_equal(name: str, params: Sequence[PyTree]) -> None:
    """Refuse blocks of a tied segment that are not the same."""
    for other in params[1:]:
        if not all(jax.tree.leaves(jax.tree.map(np.array_equal, params[0], other))):
            raise ValueError(
                f"the blocks of segment {name!r} have their parameters in common: one cannot be "
                "changed without the others."
            )


def _stacked(*leaves: np.ndarray) -> np.ndarray:
    return np.stack(leaves)
