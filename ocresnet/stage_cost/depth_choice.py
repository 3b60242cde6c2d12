"""How sure the depth rule is: its answer over resampled validation sets.

A validation set is a sample: another one of the same size could have given another depth. Drawing
its samples again with replacement (the bootstrap) shows how much the recommended depth depends on
which samples there happened to be.
"""

from typing import NamedTuple

import jax
import numpy as np

from ocresnet.stage_cost.checks import checked_labels, checked_logits
from ocresnet.stage_cost.pruning import recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory


class DepthChoice(NamedTuple):
    """A recommended depth with its uncertainty.

    Attributes:
      blocks: M by the depth rule on all samples.
      low, high: the central 90 % of M over the resampled sets.
      shares: share of the resampled sets that recommend 0, 1, ... N blocks, [N + 1].
    """

    blocks: int
    low: int
    high: int
    shares: np.ndarray


def choose_depth(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    tolerance: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> DepthChoice:
    """The depth rule (`recommend_depth`) with its uncertainty.

    Args:
      logits: every output for validation samples, [blocks + 1, samples, classes], as
        `trajectory.logits_over_depth` gives them. Not of the test set.
      labels: [samples].
      tolerance: percentage points that may be lost, as in `recommend_depth`.
      resamples: how many sets to draw.
      seed: of the draw.

    Returns:
      The depth, its 90 % interval and its distribution.

    Raises:
      ValueError: for no resamples, logits or labels that do not fit, and what `recommend_depth`
        refuses.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, but must be at least 1.")
    logits = checked_logits(logits)
    _, samples, classes = logits.shape
    labels = checked_labels(labels, samples, classes)
    correct = np.argmax(logits, axis=-1) == labels
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))[:, np.arange(samples), labels]

    def recommended(weights: np.ndarray) -> int:
        nothing = np.zeros(0)
        measured = Trajectory(nothing, correct @ weights, probabilities @ weights, nothing)
        return recommend_depth(measured, tolerance)

    draw = np.random.default_rng(seed)
    counts = draw.multinomial(samples, np.full(samples, 1 / samples), size=resamples)
    depths = np.array([recommended(count / samples) for count in counts])
    low, high = np.quantile(depths, [0.05, 0.95], method="nearest")
    shares = np.bincount(depths, minlength=len(logits)) / resamples
    whole = recommended(np.full(samples, 1 / samples))
    return DepthChoice(whole, int(low), int(high), shares)
