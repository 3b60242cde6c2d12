"""Measuring a network over its depth on all devices, of all processes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ocresnet.costs import PerSampleLoss
from ocresnet.stage_cost.checks import check_finite
from ocresnet.stage_cost.trajectory import Trajectory, trajectory_sums
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution

BATCH_SIZE = 500
"""Samples that a device computes at a time."""


def evaluate(
    network: Network,
    images: Any,
    labels: np.ndarray,
    *,
    loss: PerSampleLoss,
    devices: Sequence[jax.Device],
    own_output: bool = False,
    execution: Execution = Execution(),
) -> Trajectory:
    """What `trajectory` gives in inference mode, on several devices.

    Each batch is divided over the devices. With several processes each measures a part of the
    samples, and the sums are added: all of them have to call it.

    Args:
      network: of any family.
      images: [samples, height, width, channels], or anything with a length that gives them for an
        array of indices.
      labels: [samples], integers, or whatever targets [samples, ...] the loss takes.
      loss: per-sample loss.
      devices: local devices.
      own_output: measure the network's own output only, and compute none of its exits.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      The trajectory, in float64.

    Raises:
      ValueError: where an adaptive solver of an ODE gave up.
    """
    mesh = Mesh(np.array(devices), ("samples",))
    replicated = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("samples"))
    variables = jax.device_put(network.variables, replicated)
    samples, processes = len(labels), jax.process_count()
    own = -(-samples // processes)
    # All batches have one size: the program is compiled once.
    size = min(BATCH_SIZE, -(-own // len(devices))) * len(devices)
    totals: Trajectory | None = None
    for start in range(0, own, size):
        index = jax.process_index() + processes * np.arange(start, start + size)
        inside = np.minimum(index, samples - 1)
        batch = jax.device_put((images[inside], labels[inside], index < samples), divided)
        sums = trajectory_sums(
            network.architecture,
            variables,
            *batch,
            own_output=own_output,
            loss=loss,
            train=False,
            execution=execution,
        )
        part = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)
        totals = part if totals is None else jax.tree.map(np.add, totals, part)
    if processes > 1:
        totals = jax.tree.map(_sum_over_processes, totals)
    measured: Trajectory = jax.tree.map(lambda total: total / samples, totals)
    check_finite(network.architecture, measured.losses)
    return measured


def _sum_over_processes(total: np.ndarray) -> np.ndarray:
    """[...] float64, whose bits are gathered: as numbers they would become float32."""
    from jax.experimental import multihost_utils  # slow to import

    gathered = multihost_utils.process_allgather(total.view(np.uint32))
    return np.sum(np.asarray(gathered).view(np.float64), axis=0)
