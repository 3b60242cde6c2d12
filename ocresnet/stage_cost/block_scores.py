"""How much a network would miss each of its residual blocks: scores, the lowest to go first.

Notation
    g_k       gate of block k: its branch becomes g_k F_k; 1 leaves the block, 0 removes it
    g, e_k    all gates; the k-th unit vector
    L, yhat_k, J_N, gamma   as in `objective`
    lambda_k  costate dL/dx_k of a sample's loss, x_k the state that enters block k

Every function here takes a network, the data to score with, and the blocks that are removed
already. It returns an array [blocks], float64, of which removed blocks are NaN. Only `weight_norm`,
`tail` and `random` look at no data; the rest measure in inference mode.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.gate_derivatives import gate_derivatives, scale_branch
from ocresnet.stage_cost.objective import PerSampleLoss
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.trajectory import (
    CROSS_ENTROPY,
    Trajectory,
    batches,
    parameter_norms,
    trajectory,
)
from ocresnet.systems import resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import Execution, ResNetConfig

Array = jax.Array


@dataclass(frozen=True, eq=False)
class ScoringData:
    """What blocks are scored with.

    Attributes:
      images: [samples, height, width, channels]; of the validation or training set, a thousand or
        two are enough. Not of the test set.
      labels: [samples].
      loss: per-sample loss L.
      stage_cost: gamma of `stage_cost_sensitivity`.
      seed: of the `random` scores.
      batch_size: samples computed at a time.
      statistics_images: training images, a few hundred, on which all batch statistics are measured
        anew for every set of removed blocks, so that scores are those of networks repaired by
        `recalibrate`; None: the statistics stay as they are.
      execution: precision, recomputation, scan or unrolled.
    """

    images: np.ndarray | Array
    labels: np.ndarray | Array
    loss: PerSampleLoss = CROSS_ENTROPY
    stage_cost: float = 0.02
    seed: int = 0
    batch_size: int = 250
    statistics_images: np.ndarray | Array | None = None
    execution: Execution = field(default_factory=Execution)


Criterion = Callable[[Network, ScoringData, Collection[int]], np.ndarray]
"""(network, data, removed blocks) -> scores [blocks]."""


def gate(network: Network, gates: np.ndarray | Array) -> Network:
    """The network with every residual branch multiplied by its gate: x_{k+1} = S_k(x_k) + g_k F_k.

    A branch ends in a convolution without bias, so it is enough to scale that kernel. The result
    has the same architecture, and runs in the same compiled programs.

    Args:
      network: the network.
      gates: [blocks], real; zeros and ones switch blocks off and on.

    Raises:
      ValueError: if there is not one gate for each block.
    """
    gates = jnp.asarray(gates)
    if gates.shape != (network.config.depth,):
        raise ValueError(
            f"gates have shape {gates.shape}, but this network needs one for each of its "
            f"{network.config.depth} blocks."
        )
    params, start = dict(network.params), 0
    for segment in resnet.block_segments(network.config):
        own = gates[start : start + segment.length]
        start += segment.length
        own = own[0] if segment.transition else own
        params[segment.name] = scale_branch(params[segment.name], own)
    return replace(network, params=params)


def switch_off(network: Network, blocks: Collection[int]) -> Network:
    """The network with the residual branches of `blocks` set to zero, of the same architecture.

    Raises:
      ValueError: for a block that does not exist or is named twice.
    """
    check_blocks(network.config, blocks)
    gates = np.ones(network.config.depth, np.float32)
    gates[list(blocks)] = 0
    return gate(network, gates)


def shortened(network: Network, data: ScoringData, blocks: Collection[int]) -> Network:
    """The network with `blocks` switched off, recalibrated if the data asks for that.

    Raises:
      ValueError: for a block that does not exist or is named twice.
    """
    network = switch_off(network, blocks)
    if data.statistics_images is None:
        return network
    return recalibrate(
        network, data.statistics_images, batch_size=data.batch_size, execution=data.execution
    )


def check_blocks(config: ResNetConfig, blocks: Collection[int]) -> None:
    """Refuse blocks that do not exist or are named twice."""
    for block in blocks:
        if not 0 <= block < config.depth:
            raise ValueError(
                f"there is no block {block}: this network has blocks 0 to {config.depth - 1}."
            )
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"blocks {sorted(blocks)} name a block twice.")


def output_residual(
    network: Network, data: ScoringData, removed: Collection[int] = ()
) -> np.ndarray:
    """Mean of ||yhat_{k+1} - yhat_k||: what block k adds to the output (paper, Figures 4 and 5).

    Raises:
      ValueError: if the network has no exits to read.
    """
    _check_exits(network)
    measured = measure(network, data, removed)
    return _without(removed, np.asarray(measured.output_residuals))


def weight_norm(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """||w_F,k||, the norm of all parameters of the residual branch."""
    norms = parameter_norms(network.config, network.params)
    return _without(removed, np.asarray(norms))


def taylor(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """Mean over the samples of |dL/dg_k| = |<lambda_{k+1}, F_k(x_k)>|, at the gates as they are.

    To first order this is how much a sample's loss changes when block k is removed. The absolute
    value is taken of each sample (Molchanov et al. 2017): over the samples of a trained network the
    derivatives themselves nearly cancel. One backward pass gives it for all blocks.
    """
    network = shortened(own_output(network), data, removed)
    totals = np.zeros(network.config.depth)
    for batch, mask in batches(len(data.labels), data.batch_size):
        derivatives = gate_derivatives(
            network.config,
            network.variables,
            data.images[batch],
            data.labels[batch],
            loss=data.loss,
            execution=data.execution,
        )
        totals += np.abs(np.asarray(derivatives, np.float64)[:, mask]).sum(axis=1)
    return _without(removed, totals / len(data.labels))


def stage_cost_sensitivity(
    network: Network, data: ScoringData, removed: Collection[int] = ()
) -> np.ndarray:
    """J_N(g - e_k) - J_N(g), with J_N of equation (3): the effect on the cost-to-go.

    The exits up to k do not see block k, so the difference is that of the costs from stage k + 1 to
    the end: the price of the control w_F,k = 0 at stage k. All N exits stay in the sum, those of
    removed blocks too. One pass for each block.

    Raises:
      ValueError: if the network has no exits to read.
    """
    _check_exits(network)
    return _increase(network, data, removed)


def loss_increase(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """L(g - e_k) - L(g): how much the loss grows without block k. One pass for each block."""
    return _increase(own_output(network), data, removed)


def tail(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """-k: cut from the end."""
    return _without(removed, -np.arange(float(network.config.depth)))


def random(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """A random order, from `data.seed`."""
    order = np.random.default_rng(data.seed).permutation(network.config.depth)
    return _without(removed, order.astype(float))


CRITERIA: dict[str, Criterion] = {
    criterion.__name__: criterion
    for criterion in (
        output_residual,
        weight_norm,
        taylor,
        stage_cost_sensitivity,
        loss_increase,
        tail,
        random,
    )
}

RESCORED = ("output_residual", "taylor", "stage_cost_sensitivity", "loss_increase")
"""The criteria whose scores change when other blocks are removed."""


def own_output(network: Network) -> Network:
    """The network without its exits, which saves computing them."""
    return replace(network, config=replace(network.config, exits="none"))


def measure(network: Network, data: ScoringData, blocks: Collection[int]) -> Trajectory:
    """The trajectory of the network without `blocks`, over all its outputs.

    Raises:
      ValueError: for a block that does not exist or is named twice.
    """
    return trajectory(
        shortened(network, data, blocks),
        data.images,
        data.labels,
        loss=data.loss,
        batch_size=data.batch_size,
        execution=data.execution,
    )


def _increase(network: Network, data: ScoringData, removed: Collection[int]) -> np.ndarray:
    """J_N(g - e_k) - J_N(g) for each block that is left; of a network without exits J_N is L."""

    def cost(blocks: Collection[int]) -> float:
        losses = np.asarray(measure(network, data, blocks).losses)
        # In float64, which `objective` would leave: the differences can be small.
        return float(losses[-1] + data.stage_cost * losses[:-1].sum())

    check_blocks(network.config, removed)
    before, scores = cost(removed), np.full(network.config.depth, np.nan)
    for block in range(network.config.depth):
        if block not in removed:
            scores[block] = cost([*removed, block]) - before
    return scores


def _without(removed: Collection[int], scores: np.ndarray) -> np.ndarray:
    """The scores in float64, NaN for the blocks that are removed."""
    scores = np.array(scores, np.float64)
    scores[list(removed)] = np.nan
    return scores


def _check_exits(network: Network) -> None:
    if network.config.exits == "none":
        raise ValueError(
            "this score reads the exits, and the network has none: give it some with "
            "calibrate_exits first."
        )
