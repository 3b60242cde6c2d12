"""Reading intermediate outputs from a network that was trained without them.

Where exits normalise with batch statistics, every exit needs its own (paper, A.1); a network
trained without stage cost has none. They are gathered here from data, with the backbone's weights
unchanged.
"""

from dataclasses import replace

import jax
import numpy as np

from ocresnet.stage_cost.checks import residual_architecture
from ocresnet.stage_cost.recalibration import fresh_statistics, gather_statistics
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution

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
      ValueError: if the images do not fit the network, there are none, or the network has no
        residual blocks to exit before.
    """
    architecture = residual_architecture(network, "reading exits")
    if architecture.exits == "none":
        architecture = replace(architecture, exits="shared")
    batch_stats = dict(network.batch_stats)
    for name, fresh in fresh_statistics(architecture).items():
        if "exit" in fresh:
            batch_stats[name] = {**batch_stats.get(name, {}), "exit": fresh["exit"]}
    return gather_statistics(
        Network(architecture, network.params, batch_stats),
        images,
        backbone=False,
        batch_size=batch_size,
        execution=execution,
    )
