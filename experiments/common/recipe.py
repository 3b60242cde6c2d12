"""How a network comes to its depth: by cuts while it is trained, or as in the stage-cost paper.

`experiments.depth_study` compares these and other ways at one price. Its cuts are shares of a
budget in multiply-adds; here they are about the same shares of the epochs.
"""

from dataclasses import replace
from typing import Literal

from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.training.config import TrainingConfig

Recipe = Literal["shrink", "paper"]

CUTS = (0.1, 0.25)
"""Shares of the epochs after which the recipe "shrink" cuts."""

LEAST_EPOCHS = 6
"""With fewer, nothing is trained before the first of them."""

EARLY_TOLERANCE = 1.0
"""Percentage points that each of these cuts may lose: before a network has converged, deeper exits
are surer of the same classes."""


def with_recipe(training: TrainingConfig, recipe: Recipe) -> TrainingConfig:
    """A training by a recipe.

    Args:
      training: without cuts.
      recipe: "paper": stage costs to the end; what is not needed can be cut afterwards. "shrink":
        the depth rule cuts after each of `CUTS`, and what is left is trained alone, as in the
        method of that name in `depth_study`.

    Raises:
      ValueError: for "shrink", in a training that is too short, or without stage cost.
    """
    if recipe == "paper":
        return training
    if training.epochs < LEAST_EPOCHS:
        raise ValueError(
            f"epochs is {training.epochs}, but recipe shrink, which cuts after a tenth and a "
            f"quarter of them, needs {LEAST_EPOCHS}: train longer, or choose recipe paper."
        )
    cuts = tuple(round(share * training.epochs) for share in CUTS)
    return replace(training, shrink=cuts, shrink_tolerance=EARLY_TOLERANCE)


def can_shrink(network: Architecture, training: TrainingConfig) -> bool:
    """Whether the recipe "shrink" fits: exits to cut at, and epochs enough for each cut."""
    shared = isinstance(network, ResidualArchitecture) and network.exits == "shared"
    return shared and training.stage_cost > 0 and training.epochs >= LEAST_EPOCHS
