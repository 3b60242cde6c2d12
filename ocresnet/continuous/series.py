"""What a GRU-ODE says of series: the prediction of every value from those before it."""

from functools import partial

import jax
import numpy as np

from ocresnet.data.time_series import Series, packed
from ocresnet.stage_cost.checks import check_batch_size, check_finite, check_network
from ocresnet.stage_cost.trajectory import batches
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.gru_ode import GRUODEConfig
from ocresnet.systems.network import Network
from ocresnet.systems.system import Variables

Array = jax.Array


def predictions(network: Network, series: Series, *, batch_size: int = 500) -> np.ndarray:
    """The prediction of every row's values from the rows before it.

    A row of which nothing is observed asks for a prediction at its time and changes no other, so
    that any times can be asked for, also after the last observation.

    Args:
      network: a GRU-ODE with the task "prediction".
      series: with as many features as the network was trained on, and any number of rows.
      batch_size: samples computed at a time.

    Returns:
      [samples, rows, features], float32.

    Raises:
      ValueError: for another network, series that are wrong or do not fit it, or where an adaptive
        solver gave up.
    """
    check_network(network)
    check_batch_size(batch_size)
    architecture = network.architecture
    if not isinstance(architecture, GRUODEConfig) or architecture.classifies:
        raise ValueError(
            f"predictions are those of a GRUODEConfig(task='prediction'), but the network is a "
            f"{type(architecture).__name__} that has none."
        )
    images = packed(series)
    longer = architecture.with_rows(images.shape[1])
    longer.check_images(images)
    parts = []
    for batch, mask in batches(len(images), batch_size):
        outputs = _outputs(longer, network.variables, images[batch])
        check_finite(longer, outputs)
        parts.append(np.asarray(outputs)[: int(mask.sum())])
    return np.concatenate(parts).reshape(images.shape[:-1])


@partial(jax.jit, static_argnames="architecture")
def _outputs(architecture: Architecture, variables: Variables, images: Array) -> Array:
    return networks.apply(architecture, variables, images)[0][-1]
