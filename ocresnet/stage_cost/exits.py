"""Reading intermediate outputs from a network that was trained without them.

Every exit needs batch statistics of its own (paper, A.1); a network trained without stage cost has
none. They are gathered here from data, with the backbone's weights unchanged.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.recalibration import gather_statistics
from ocresnet.systems import layers, resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.systems.system import PyTree

Array = jax.Array


def calibrate_exits(
    network: Network,
    images: np.ndarray | Array,
    *,
    batch_size: int = 500,
    execution: Execution = Execution(),
) -> Network:
    """Give every exit the batch statistics of `images`; backbone and output stay as they are.

    A network without exits gets shared ones. Moments are the means of those of each batch; a last
    batch that is not full is left out, unless it is the only one.

    Args:
      network: the network to read out; nothing in it is trained.
      images: [samples, height, width, channels]; training images.
      batch_size: samples a batch.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      The same network, with exits.

    Raises:
      ValueError: if the images do not fit the network, or there are none.
    """
    config = network.config
    if config.exits == "none":
        config = replace(config, exits="shared")
    batch_stats = _with_fresh_exit_statistics(config, network.batch_stats)
    network = Network(config, network.params, batch_stats)
    return gather_statistics(
        network, images, backbone=False, batch_size=batch_size, execution=execution
    )


def _with_fresh_exit_statistics(config: ResNetConfig, batch_stats: PyTree) -> PyTree:
    fresh = dict(batch_stats)
    for segment in resnet.block_segments(config):
        stats = layers.init_batch_norm(config.widths[-1])[1]
        if not segment.transition:
            stats = jax.tree.map(lambda leaf, n=segment.length: jnp.stack([leaf] * n), stats)
        fresh[segment.name] = {**batch_stats[segment.name], "exit": stats}
    return fresh
