"""Cutting a network to the depth it needs.

By Lemma 2 of the stage-cost paper, the intermediate output yhat_M of a ResNet-N is the output of
its SubResNet-M with the same parameters. Pruning to M blocks therefore keeps the first M blocks,
makes exit M the output block, and changes no number that the kept network computes.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.checks import check_exits, check_network, residual_architecture
from ocresnet.stage_cost.trajectory import Trajectory, trajectory
from ocresnet.systems import blocks as block_list
from ocresnet.systems import counts
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import OUTPUT_BLOCK, ResidualArchitecture
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution, PyTree

Array = jax.Array


def prune(network: Network, blocks: int) -> Network:
    """The SubResNet of the first `blocks` blocks, with the output that exit `blocks` had.

    Shared exits before the cut stay; separate exit heads are dropped, except that of the cut,
    which becomes the output block.

    Args:
      network: a network with exits (see `exits.calibrate_exits` for one trained without).
      blocks: M, how many blocks to keep, 0 ... N.

    Returns:
      A network of `blocks` blocks that is complete in itself.

    Raises:
      ValueError: if there are not that many blocks, the network has no exits to cut at, or no
        residual blocks at all.

    Example:
      >>> small = prune(network, recommend_depth(validation))
    """
    architecture = residual_architecture(network, "pruning")
    kept = architecture.subresnet(blocks)
    listed = block_list.blocks(network)
    params, batch_stats = dict(network.params), dict(network.batch_stats)
    if blocks < architecture.depth:
        check_exits(architecture, "cut at")
        at_the_cut = jax.tree.map(jnp.asarray, listed[blocks])
        if architecture.exits == "separate":
            params = architecture.with_own_head(params, at_the_cut.params["exit"])
        if OUTPUT_BLOCK in batch_stats:
            batch_stats[OUTPUT_BLOCK] = at_the_cut.batch_stats["exit"]
    if architecture.exits == "separate":
        kept = replace(kept, exits="none")
        listed = [block_list.Block(*map(_without_exit, block)) for block in listed]
    whole = Network(architecture, params, batch_stats)
    return block_list.with_blocks(whole, kept, listed[:blocks])


def _without_exit(tree: PyTree) -> PyTree:
    return {name: part for name, part in tree.items() if name != "exit"}


def recommend_depth(measured: Trajectory, tolerance: float = 0.5) -> int:
    """The depth rule: the smallest M whose exit does nearly as well as the whole network.

    M is the first exit at which two shares are at most `tolerance` percentage points below those of
    the network's own output: that of the samples classified correctly, and the mean probability of
    the right class. The second still tells depths apart where a small validation set no longer
    does: on 200 samples nearly every exit may make the same mistakes.

    Args:
      measured: trajectory on a validation split (or, without one, on the training set); never on
        the test set.
      tolerance: percentage points that may be lost, >= 0.

    Returns:
      How many blocks to keep, 0 ... blocks.

    Raises:
      ValueError: for a negative tolerance, a trajectory that is not finite or has one output, or
        what is no trajectory.
    """
    if not isinstance(measured, Trajectory):
        raise ValueError(
            f"measured is a {type(measured).__name__}, but must be a Trajectory: of several, "
            'choose that of one split, as in run.trajectories["validation"].'
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance} points, but must not be negative.")
    if len(measured.accuracies) < 2:
        raise ValueError(
            "a trajectory of one output leaves no depth to choose: measure a network with exits, "
            "or give it some with calibrate_exits first."
        )
    within = np.ones(len(measured.accuracies), bool)
    for values in (measured.accuracies, measured.probabilities):
        if not np.isfinite(values).all():
            raise ValueError("a depth can only be chosen from a finite trajectory.")
        # The slack is for rounding: 98.5 against 99.0 is within half a point.
        within &= values >= values[-1] - tolerance / 100 - 1e-9
    return int(np.argmax(within))


def best_depth_within(
    measured: Trajectory, architecture: ResidualArchitecture, multiply_adds: float
) -> int:
    """The depth rule for a budget: the M whose exit is right most often, among the SubResNets that
    cost no more; of equal ones the smallest.

    Args:
      measured: trajectory on a validation split, as for `recommend_depth`.
      architecture: of the network that it is of.
      multiply_adds: of one image that the cut network may cost.

    Returns:
      How many blocks to keep, 0 ... blocks.

    Raises:
      ValueError: if no depth is cheap enough, or the trajectory is of another network or not
        finite.
    """
    if len(measured.accuracies) != architecture.depth + 1:
        raise ValueError(
            f"the trajectory has {len(measured.accuracies)} outputs, but a network of "
            f"{architecture.depth} blocks has {architecture.depth + 1}: measure this one."
        )
    if not np.isfinite(measured.accuracies).all():
        raise ValueError("a depth can only be chosen from a finite trajectory.")
    costs = np.array(
        [
            counts.multiply_adds(architecture.subresnet(blocks)).total
            for blocks in range(architecture.depth + 1)
        ]
    )
    within = costs <= multiply_adds
    if not within.any():
        raise ValueError(
            f"no depth costs {multiply_adds:.3g} multiply-adds or less: without any block it is "
            f"{costs.min():.3g}."
        )
    return int(np.argmax(np.where(within, measured.accuracies, -np.inf)))


def latency(
    network: Network,
    images: np.ndarray,
    *,
    repeats: int = 20,
    execution: Execution = Execution(),
) -> float:
    """Median seconds of computing the network's own output for `images`, compilation excluded."""
    check_network(network)
    apply = partial(networks.apply, network.architecture, own_output=True, execution=execution)
    forward = jax.jit(lambda variables, images: apply(variables, images)[0])
    images = jax.device_put(images)
    jax.block_until_ready(forward(network.variables, images))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(forward(network.variables, images))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


@dataclass(frozen=True)
class NetworkReport:
    """What a network does and costs.

    Attributes:
      blocks: residual blocks.
      accuracy: on the images the report was made with, in [0, 1].
      parameters: numbers trained.
      multiply_adds: for one image.
      milliseconds: median time for a batch of `batch_size` images, own output only.
      batch_size: images in that batch.
    """

    blocks: int
    accuracy: float
    parameters: int
    multiply_adds: int
    milliseconds: float
    batch_size: int


def report(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 256,
    execution: Execution = Execution(),
) -> NetworkReport:
    """Measure a network on labelled images.

    Raises:
      ValueError: for a network without residual blocks, or images and labels that do not fit it.
    """
    architecture = residual_architecture(network, "a report over blocks")
    batch_size = min(batch_size, len(labels))
    measured = trajectory(
        network,
        images,
        labels,
        own_output=True,
        batch_size=max(batch_size, 500),
        execution=execution,
    )
    return NetworkReport(
        blocks=architecture.depth,
        accuracy=float(measured.accuracies[-1]),
        parameters=counts.parameter_count(network.params),
        multiply_adds=counts.multiply_adds(architecture).total,
        milliseconds=1e3 * latency(network, images[:batch_size], execution=execution),
        batch_size=batch_size,
    )


def report_table(full: NetworkReport, pruned: NetworkReport) -> str:
    """The two reports side by side, as a Markdown table."""

    def row(name: str, before: float, after: float, form: str) -> str:
        ratio = f"{after / before:.2f}" if before else "-"
        return f"| {name} | {before:{form}} | {after:{form}} | {ratio} |"

    return "\n".join(
        [
            "| | full | pruned | ratio |",
            "|---|---:|---:|---:|",
            row("residual blocks", full.blocks, pruned.blocks, "d"),
            row("accuracy (%)", 100 * full.accuracy, 100 * pruned.accuracy, ".2f"),
            row("parameters", full.parameters, pruned.parameters, ",d"),
            row("multiply-adds per image", full.multiply_adds, pruned.multiply_adds, ",d"),
            row(
                f"milliseconds per {full.batch_size} images",
                full.milliseconds,
                pruned.milliseconds,
                ".1f",
            ),
        ]
    )
