"""Cutting a network to the depth it needs.

By Lemma 2 of the stage-cost paper, the intermediate output yhat_M of a ResNet-N is the output of
its SubResNet-M with the same parameters. Pruning to M blocks therefore keeps the first M blocks,
makes exit M the output block, and changes no number that the kept network computes.
"""

import time
from dataclasses import dataclass, replace

import jax
import numpy as np

from ocresnet.stage_cost.trajectory import Trajectory, trajectory
from ocresnet.systems import counts, resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import Execution
from ocresnet.systems.system import PyTree

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
      ValueError: if there are not that many blocks, or the network has no exits to cut at.

    Example:
      >>> small = prune(network, recommend_depth(validation))
    """
    config = network.config
    kept = config.subresnet(blocks)
    if config.exits == "separate":
        kept = replace(kept, exits="none")
    if blocks < config.depth and config.exits == "none":
        raise ValueError(
            "this network has no exits to cut at: give it some with calibrate_exits first."
        )

    params, batch_stats = dict(network.params), dict(network.batch_stats)
    if blocks < config.depth:
        exit_params, exit_stats = _exit(network, blocks)
        batch_stats["output_block"] = {"norm": exit_stats}
        if config.exits == "separate":
            params["projections"] = {**params["projections"], **exit_params["projections"]}
            params["head"] = {name: exit_params[name] for name in ("dense", "norm")}

    lengths = {segment.name: segment for segment in resnet.block_segments(kept)}
    for segment in resnet.block_segments(config):
        for tree in (params, batch_stats):
            entry = dict(tree.pop(segment.name))
            if segment.name not in lengths:
                continue
            if kept.exits == "none":
                entry.pop("exit", None)
            if not segment.transition:
                length = lengths[segment.name].length
                entry = jax.tree.map(lambda leaf, n=length: leaf[:n], entry)
            tree[segment.name] = entry
    return Network(kept, params, batch_stats)


def _exit(network: Network, block: int) -> tuple[PyTree, PyTree]:
    """Parameters (None where shared) and batch statistics of exit `block`."""
    for segment in resnet.block_segments(network.config):
        if block < segment.length:
            trees = network.params[segment.name], network.batch_stats[segment.name]
            if not segment.transition:
                trees = jax.tree.map(lambda leaf, k=block: leaf[k], trees)
            return trees[0].get("exit"), trees[1]["exit"]
        block -= segment.length
    raise ValueError("the network has no such exit.")


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
      ValueError: for a negative tolerance, or a trajectory that is not finite or has one output.
    """
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


def latency(
    network: Network,
    images: np.ndarray,
    *,
    repeats: int = 20,
    execution: Execution = Execution(),
) -> float:
    """Median seconds of computing the network's own output for `images`, compilation excluded."""
    config = replace(network.config, exits="none")
    forward = jax.jit(
        lambda variables, images: resnet.apply(config, variables, images, execution=execution)[0]
    )
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
    """Measure a network on labelled images."""
    batch_size = min(batch_size, len(labels))
    measured = trajectory(
        network, images, labels, batch_size=max(batch_size, 500), execution=execution
    )
    return NetworkReport(
        blocks=network.config.depth,
        accuracy=float(measured.accuracies[-1]),
        parameters=counts.parameter_count(network.params),
        multiply_adds=counts.multiply_adds(network.config).total,
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
