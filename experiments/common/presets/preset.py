"""What a preset is, and what is known of the data sets before they are read."""

from dataclasses import dataclass

from ocresnet.systems import counts
from ocresnet.systems.architecture import Architecture
from ocresnet.training.config import TrainingConfig

from ..recipe import Recipe

TRAINING_SAMPLES = {
    "wine": 142,
    "digits": 1437,
    "mnist": 60000,
    "cifar10": 50000,
    "cifar100": 50000,
    "imagenet2012": 1281167,
}
IMAGE_SHAPES = {
    "wine": (1, 13, 1),
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}
CLASSES = {"wine": 3, "digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Preset:
    """A run by name.

    Attributes:
      dataset: which data.
      network: the architecture.
      training: everything else.
      expected: test accuracy to expect, and whose figure that is.
      recipe: how the network comes to its depth (`recipe.py`).
    """

    dataset: str
    network: Architecture
    training: TrainingConfig
    expected: str
    recipe: Recipe = "paper"

    @property
    def cost(self) -> float:
        """Multiply-adds of the whole training."""
        return training_cost(self.network, self.training, TRAINING_SAMPLES[self.dataset])


def training_cost(network: Architecture, training: TrainingConfig, samples: int) -> float:
    """Multiply-adds of a training on `samples` images: forward, twice that backward, and exits."""
    macs = counts.multiply_adds(network)
    exits = macs.exits.sum() if training.stage_cost > 0 else 0
    return 3.0 * samples * training.epochs * float(macs.total + exits)
