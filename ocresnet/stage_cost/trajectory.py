"""What a network does over its depth: the trajectories of Figures 2 to 5 of the stage-cost paper.

Notation: yhat_k and L as in `problem`; w_F,k the parameters of residual branch k.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.costs import PerSampleLoss, cross_entropy
from ocresnet.stage_cost.checks import (
    check_batch_size,
    check_finite,
    check_images,
    checked_labels,
)
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture, residual
from ocresnet.systems.blocks import blocks
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution, PyTree, Variables

Array = jax.Array
TreeT = TypeVar("TreeT")

Mode = Literal["inference", "training"]
"""What normalises: the running statistics, or those of each batch, of which nothing is kept."""


class Trajectory(NamedTuple):
    """Means over the samples, at every output (the last is the network's own).

    Of a network that tells no classes apart, accuracies and probabilities have no length.

    Attributes:
      losses: L(yhat_k), [outputs].
      accuracies: share of samples classified correctly, in [0, 1], [outputs].
      probabilities: mean softmax probability of the right class, in [0, 1], [outputs].
      output_residuals: mean of ||yhat_{k+1} - yhat_k||, [outputs - 1].
    """

    losses: np.ndarray | Array
    accuracies: np.ndarray | Array
    probabilities: np.ndarray | Array
    output_residuals: np.ndarray | Array


def trajectory(
    network: Network,
    images: np.ndarray | Array,
    labels: np.ndarray | Array,
    *,
    own_output: bool = False,
    loss: PerSampleLoss = cross_entropy.value,
    batch_size: int = 500,
    mode: Mode = "inference",
    execution: Execution = Execution(),
) -> Trajectory:
    """Losses, accuracies and output residuals over depth.

    In training mode every batch is normalised with its own statistics, as in a training step; the
    training objective, which the paper's theorems bound, is made of such losses. What comes out
    then depends on `batch_size` and on the order of the samples, and a last batch that is not full
    is left out, unless it is the only one.

    Args:
      network: of any family; without exits only its own output is measured.
      images: [samples, height, width, channels], in the units of the network's `pixel_mean`.
      labels: [samples], integers.
      own_output: measure the network's own output only, and compute none of its exits.
      loss: per-sample loss.
      batch_size: samples computed at a time.
      mode: "inference" (running statistics) or "training" (statistics of each batch).
      execution: precision, recomputation, scan or unrolled.

    Returns:
      The trajectory, in float64.

    Raises:
      ValueError: if images, labels and network do not fit together, there are no samples, the
        mode is unknown, or an adaptive solver of an ODE gave up.

    Example:
      >>> trajectory(network, images, labels).accuracies[-1]  # of the network's own output
    """
    check_images(network, images)
    labels = checked_labels(labels, len(images), network.architecture.classes)

    def sums(batch: np.ndarray, mask: np.ndarray) -> Trajectory:
        return trajectory_sums(
            network.architecture,
            network.variables,
            images[batch],
            labels[batch],
            mask,
            own_output=own_output,
            loss=loss,
            train=mode == "training",
            execution=execution,
        )

    measured = mean_over_batches(sums, len(labels), batch_size, mode)
    check_finite(network.architecture, measured.losses)
    return measured


def logits_over_depth(
    network: Network,
    images: np.ndarray | Array,
    *,
    batch_size: int = 500,
    execution: Execution = Execution(),
) -> np.ndarray:
    """Every output for every sample, in inference mode: [outputs, samples, classes], float32.

    Raises:
      ValueError: if the images do not fit the network, there are none, or an adaptive solver of an
        ODE gave up.
    """
    check_images(network, images)
    parts = []
    for batch, mask in batches(len(images), batch_size):
        logits = _logits(network.architecture, network.variables, images[batch], execution)
        check_finite(network.architecture, logits)
        parts.append(np.asarray(logits)[:, : int(mask.sum())])
    return np.concatenate(parts, axis=1)


def parameter_norms(architecture: Architecture, params: PyTree) -> np.ndarray:
    """||w_F,k||, the Euclidean norm of each residual branch, in order: [blocks], float64.

    Raises:
      ValueError: for an architecture without residual blocks.
    """

    def norm(branch: PyTree) -> float:
        return np.sqrt(
            sum(np.sum(np.square(leaf, dtype=float)) for leaf in jax.tree.leaves(branch))
        )

    network = Network(residual(architecture, "the norm of branches"), params, {})
    return np.array([norm(block.params["residual"]) for block in blocks(network)], float)


def mean_over_batches(
    sums: Callable[[np.ndarray, np.ndarray], TreeT], samples: int, batch_size: int, mode: Mode
) -> TreeT:
    """The means over the samples, in float64, from sums over batches.

    Args:
      sums: (indices of the samples of a batch, mask of those that count) -> a tree of sums.
      samples: how many there are.
      batch_size: how many indices to ask for at a time.
      mode: in training mode, where samples of a batch depend on each other, only full batches are
        asked for; else all samples.

    Raises:
      ValueError: for no samples, an impossible batch size or an unknown mode.
    """
    totals, count = None, 0
    for batch, mask in batches(samples, batch_size, mode):
        part = jax.tree.map(partial(np.asarray, dtype=np.float64), sums(batch, mask))
        totals = part if totals is None else jax.tree.map(np.add, totals, part)
        count += int(mask.sum())
    return jax.tree.map(lambda total: total / count, totals)


def batches(
    samples: int, batch_size: int, mode: Mode = "inference"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays of one size, and masks of those that count: all of 0 ... samples - 1, or in
    training mode those of full batches."""
    if samples == 0:
        raise ValueError("there are no samples.")
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}, but must be one of {', '.join(get_args(Mode))}.")
    check_batch_size(batch_size)
    batch_size = min(batch_size, samples)
    end = samples if mode == "inference" else samples // batch_size * batch_size
    for start in range(0, end, batch_size):
        index = np.arange(start, start + batch_size)
        yield np.minimum(index, samples - 1), index < samples


@partial(jax.jit, static_argnames=("architecture", "execution"))
def _logits(
    architecture: Architecture, variables: Variables, images: Array, execution: Execution
) -> Array:
    return networks.apply(architecture, variables, images, execution=execution)[0]


@partial(jax.jit, static_argnames=("architecture", "own_output", "loss", "train", "execution"))
def trajectory_sums(
    architecture: Architecture,
    variables: Variables,
    images: Array,
    labels: Array,
    mask: Array,
    *,
    own_output: bool,
    loss: PerSampleLoss,
    train: bool,
    execution: Execution,
) -> Trajectory:
    """The sums of which a trajectory has the means, over the samples of a batch that `mask` marks.

    Args:
      architecture: of the network.
      variables: its parameters and batch statistics.
      images, labels: of the batch, [batch, height, width, channels] and [batch].
      mask: booleans, [batch].
      train: normalise with the statistics of the batch.
      own_output, loss, execution: as of `trajectory`.

    Returns:
      Sums in place of the means, float32.
    """
    logits = networks.apply(
        architecture, variables, images, own_output=own_output, train=train, execution=execution
    )[0]
    residuals = jnp.linalg.norm(jnp.diff(logits, axis=0), axis=-1)
    correct = chances = jnp.zeros((0, len(mask)))
    if architecture.classifies:
        correct = jnp.argmax(logits, axis=-1) == labels
        chances = jnp.exp(-cross_entropy.value(logits, labels))
    values = Trajectory(loss(logits, labels), correct, chances, residuals)
    return jax.tree.map(lambda value: jnp.sum(jnp.where(mask, value, 0), axis=-1), values)
