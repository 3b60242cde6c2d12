"""Choosing the confidence at which samples may leave early, for a wanted accuracy or cost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.checks import check_share, checked_labels, checked_logits
from ocresnet.systems import counts
from ocresnet.systems.architecture import ResidualArchitecture, residual


class Calibration(NamedTuple):
    """A threshold, and what it gave on the data it was chosen with.

    Attributes:
      confidence: the threshold for `predict`; None: none leaves early, and no exit is computed.
      accuracy: share of samples classified correctly, in [0, 1].
      cost: mean multiply-adds a sample, as a share of those of the whole network without exits.
    """

    confidence: float | None
    accuracy: float
    cost: float


def calibrate_confidence(
    architecture: ResidualArchitecture,
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    accuracy: float | None = None,
    budget: float | None = None,
    candidates: int = 1000,
) -> Calibration:
    """Choose the threshold for a wanted accuracy or a wanted cost.

    Args:
      architecture: of the network, for its multiply-adds.
      logits: every output for validation samples, [blocks + 1, samples, classes], as
        `trajectory.logits_over_depth` gives them. Not of the test set.
      labels: [samples].
      accuracy: reach at least this share of correct samples, in (0, 1], at the least cost.
      budget: spend at most this share of the network's multiply-adds, in (0, 1], as accurately as
        possible; of equally accurate thresholds the highest is taken.
      candidates: how many thresholds to try, at equally spaced quantiles of the confidences.

    Returns:
      The threshold with the accuracy and cost it has on these samples.

    Raises:
      ValueError: unless exactly one wish is given, as a share; if no threshold grants it; and for
        logits or labels that do not fit the architecture.
    """
    residual(architecture, "leaving early")
    if (accuracy is None) == (budget is None):
        raise ValueError("give either the accuracy or the budget that is wanted, and not both.")
    for name, value in (("accuracy", accuracy), ("budget", budget)):
        if value is not None:
            check_share(name, value)
    logits = checked_logits(logits)
    labels = checked_labels(labels, logits.shape[1], architecture.classes)
    outputs = architecture.depth + 1
    if len(logits) != outputs:
        raise ValueError(
            f"logits of {len(logits)} outputs were given, but a network of {architecture.depth} "
            f"blocks with exits has {outputs}."
        )
    confidences = np.asarray(jnp.max(jax.nn.softmax(logits), axis=-1))
    correct = np.argmax(logits, axis=-1) == labels
    costs = exit_costs(architecture)

    def evaluate(threshold: float) -> Calibration:
        sure = confidences >= threshold
        sure[-1] = True
        exits = np.argmax(sure, axis=0)
        hits = correct[exits, np.arange(len(labels))]
        return Calibration(float(threshold), float(hits.mean()), float(costs[exits].mean()))

    early = confidences[:-1].ravel()
    levels = np.linspace(0, 1, candidates)
    thresholds = np.unique(np.quantile(early, levels)) if early.size else early
    whole = Calibration(None, float(correct[-1].mean()), 1.0)
    tried = [*map(evaluate, thresholds), whole]
    if accuracy is not None:
        granted = [choice for choice in tried if choice.accuracy >= accuracy]
        best = max(choice.accuracy for choice in tried)
        if not granted:
            raise ValueError(f"no threshold reaches accuracy {accuracy}: the best is {best:.4f}.")
        return min(granted, key=lambda choice: choice.cost)
    assert budget is not None
    granted = [choice for choice in tried if choice.cost <= budget]
    if not granted:
        least = min(choice.cost for choice in tried)
        raise ValueError(f"no threshold meets a budget of {budget}: the least cost is {least:.4f}.")
    # They are in ascending order, without early exit last; of equal ones the first found is taken.
    return max(reversed(granted), key=lambda choice: choice.accuracy)


def exit_costs(architecture: ResidualArchitecture) -> np.ndarray:
    """Multiply-adds of leaving at each output, as shares of the plain network's: [blocks + 1].

    Leaving at exit k takes the stem, k blocks, the bare skips before the next block and k + 1 exit
    heads; the last entry, the output block, comes after all blocks and all exit heads.
    """
    cost = counts.multiply_adds(architecture)
    blocks = np.concatenate([[0], np.cumsum(cost.blocks)])
    skips = np.cumsum(np.append(cost.skips, 0))
    heads = np.cumsum(np.append(cost.exits, cost.output_block))
    return (cost.stem + blocks + skips + heads) / cost.total
