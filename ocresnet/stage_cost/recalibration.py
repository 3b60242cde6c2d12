"""Batch statistics gathered anew, with every parameter unchanged.

Running batch statistics belong to the network that was trained. Once blocks are removed, the states
that enter all later normalisations have other moments; measuring those again is a cheap repair that
takes one pass over some training images and no training. A network without batch statistics has
nothing to measure, and comes back as it is.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.checks import check_batch_size, check_network
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution, PyTree, Variables

Array = jax.Array


def recalibrate(
    network: Network,
    images: np.ndarray | Array,
    *,
    batch_size: int = 500,
    execution: Execution = Execution(),
) -> Network:
    """Give every batch norm of a network of any family, its exits' too, the statistics of `images`.

    As in training, each layer is measured on what comes out of the layers before it when those
    normalise with the batch's own moments. Moments are the means of those of each batch; a last
    batch that is not full is left out, unless it is the only one.

    Args:
      network: the network, typically with blocks removed; no parameter changes.
      images: [samples, height, width, channels]; training images.
      batch_size: samples a batch.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      The same network with new batch statistics.

    Raises:
      ValueError: if the images do not fit the network, or there are none.

    Example:
      >>> small = recalibrate(remove_blocks(network, [3, 4]), data.train_images[:2000])
    """
    return gather_statistics(
        network, images, backbone=True, batch_size=batch_size, execution=execution
    )


def gather_statistics(
    network: Network,
    images: np.ndarray | Array,
    *,
    backbone: bool,
    batch_size: int,
    execution: Execution,
) -> Network:
    """Batch statistics of the exits, and of the backbone with its output block if wished.

    Raises:
      ValueError: if the images do not fit the network, or there are none.
    """
    check_network(network)
    network.architecture.check_images(images)
    if len(images) == 0:
        raise ValueError("gathering batch statistics needs at least one image: there are none.")
    check_batch_size(batch_size)
    batch_stats = network.batch_stats
    if not jax.tree.leaves(batch_stats):
        return network
    batch_size = min(batch_size, len(images))
    for index in range(len(images) // batch_size):
        batch = images[index * batch_size : (index + 1) * batch_size]
        # Keeping the share n / (n + 1) of what was gathered makes the running value a plain mean.
        momentum = jnp.float32(index / (index + 1))
        variables = Variables(network.params, batch_stats)
        batch_stats = _gather(network.architecture, variables, batch, momentum, backbone, execution)
    return replace(network, batch_stats=batch_stats)


@partial(jax.jit, static_argnames=("architecture", "backbone", "execution"))
def _gather(
    architecture: Architecture,
    variables: Variables,
    images: Array,
    momentum: Array,
    backbone: bool,
    execution: Execution,
) -> PyTree:
    _, batch_stats = networks.apply(
        architecture,
        variables,
        images,
        train=backbone,
        train_exits=True,
        momentum=momentum,
        execution=execution,
    )
    return batch_stats


def fresh_statistics(architecture: Architecture) -> PyTree:
    """The batch statistics of a network that has seen no data yet."""
    return jax.jit(lambda: architecture.init(jax.random.key(0)).batch_stats)()
