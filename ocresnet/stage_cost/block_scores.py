"""How much a network would miss each of its residual blocks: scores, the lowest to go first.

Notation
    g_k       gate of block k: its branch becomes g_k F_k; 1 leaves the block, 0 removes it
    g, e_k    all gates; the k-th unit vector
    L, yhat_k, J_N, gamma   as in `problem`
    lambda_k  costate dL/dx_k of a sample's loss, x_k the state that enters block k

Every function here takes a network, the data to score with, and the blocks that are removed
already. It returns an array [blocks], float64, of which removed blocks are NaN. Only `weight_norm`,
`tail` and `random` look at no data; the rest measure in inference mode.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import jax
import numpy as np

from ocresnet.costs import PerSampleLoss, cross_entropy
from ocresnet.problem import weighted_sum
from ocresnet.stage_cost.checks import check_exits, checked_labels, residual_architecture
from ocresnet.stage_cost.gates import gate_derivatives
from ocresnet.stage_cost.recalibration import recalibrate
from ocresnet.stage_cost.trajectory import Trajectory, batches, parameter_norms, trajectory
from ocresnet.systems.architecture import ResidualArchitecture, check_blocks
from ocresnet.systems.blocks import blocks as blocks_of
from ocresnet.systems.blocks import with_blocks
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution

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
    loss: PerSampleLoss = cross_entropy.value
    stage_cost: float = 0.02
    seed: int = 0
    batch_size: int = 250
    statistics_images: np.ndarray | Array | None = None
    execution: Execution = field(default_factory=Execution)


Criterion = Callable[[Network, ScoringData, Collection[int]], np.ndarray]
"""(network, data, removed blocks) -> scores [blocks]."""


def switch_off(network: Network, blocks: Collection[int]) -> Network:
    """The network with the residual branches of `blocks` set to zero, of the same architecture.

    Raises:
      ValueError: for a block that does not exist or is named twice, or a network without residual
        blocks.
    """
    architecture = residual_architecture(network, "switching off blocks")
    check_blocks(architecture, blocks)
    listed = blocks_of(network)
    for index in blocks:
        params = listed[index].params
        zero = jax.tree.map(np.zeros_like, params["residual"])
        listed[index] = listed[index]._replace(params={**params, "residual": zero})
    return with_blocks(network, architecture, listed)


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


def output_residual(
    network: Network, data: ScoringData, removed: Collection[int] = ()
) -> np.ndarray:
    """Mean of ||yhat_{k+1} - yhat_k||: what block k adds to the output (paper, Figures 4 and 5).

    Raises:
      ValueError: if the network has no exits to read.
    """
    check_exits(_architecture(network), "read this score from")
    measured = measure(network, data, removed)
    return _without(removed, np.asarray(measured.output_residuals))


def weight_norm(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """||w_F,k||, the norm of all parameters of the residual branch."""
    norms = parameter_norms(_architecture(network), network.params)
    return _without(removed, norms)


def taylor(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """Mean over the samples of |dL/dg_k| = |<lambda_{k+1}, F_k(x_k)>|, at the gates as they are.

    To first order this is how much a sample's loss changes when block k is removed. The absolute
    value is taken of each sample (Molchanov et al. 2017): over the samples of a trained network the
    derivatives themselves nearly cancel. One backward pass gives it for all blocks.
    """
    architecture = _architecture(network)
    network = shortened(network, data, removed)
    labels = checked_labels(data.labels, len(data.images), architecture.classes)
    totals = np.zeros(architecture.depth)
    for batch, mask in batches(len(labels), data.batch_size):
        derivatives = gate_derivatives(
            architecture,
            network.variables,
            data.images[batch],
            labels[batch],
            loss=data.loss,
            execution=data.execution,
        )
        totals += np.abs(np.asarray(derivatives, np.float64)[:, mask]).sum(axis=1)
    return _without(removed, totals / len(labels))


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
    check_exits(_architecture(network), "read this score from")
    return _increase(network, data, removed, own_output=False)


def loss_increase(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """L(g - e_k) - L(g): how much the loss grows without block k. One pass for each block."""
    return _increase(network, data, removed, own_output=True)


def tail(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """-k: cut from the end."""
    return _without(removed, -np.arange(float(_architecture(network).depth)))


def random(network: Network, data: ScoringData, removed: Collection[int] = ()) -> np.ndarray:
    """A random order, from `data.seed`."""
    order = np.random.default_rng(data.seed).permutation(_architecture(network).depth)
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


def measure(
    network: Network, data: ScoringData, blocks: Collection[int], *, own_output: bool = False
) -> Trajectory:
    """The trajectory of the network without `blocks`, over all its outputs or of its own alone.

    Raises:
      ValueError: for a block that does not exist or is named twice.
    """
    return trajectory(
        shortened(network, data, blocks),
        data.images,
        data.labels,
        own_output=own_output,
        loss=data.loss,
        batch_size=data.batch_size,
        execution=data.execution,
    )


def _increase(
    network: Network, data: ScoringData, removed: Collection[int], *, own_output: bool
) -> np.ndarray:
    """J_N(g - e_k) - J_N(g) for each block that is left; of the own output alone J_N is L."""

    def cost(blocks: Collection[int]) -> float:
        measured = measure(network, data, blocks, own_output=own_output)
        return float(weighted_sum(np.asarray(measured.losses), data.stage_cost))

    before, scores = cost(removed), np.full(_architecture(network).depth, np.nan)
    for block in range(len(scores)):
        if block not in removed:
            scores[block] = cost([*removed, block]) - before
    return scores


def _architecture(network: Network) -> ResidualArchitecture:
    return residual_architecture(network, "scoring blocks")


def _without(removed: Collection[int], scores: np.ndarray) -> np.ndarray:
    """The scores in float64, NaN for the blocks that are removed."""
    scores = np.array(scores, np.float64)
    scores[list(removed)] = np.nan
    return scores
