"""How fast this machine trains, by a short training: for estimates of what a run takes."""

import numpy as np

from ocresnet.data.dataset import Dataset
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit
from ocresnet.training.optimizers import SGD

from .presets.preset import training_cost

NETWORK = ResNetConfig.homogeneous(6, 32, image_shape=(16, 16, 3), exits="none")
TRAINING = TrainingConfig(
    epochs=3, batch_size=32, optimizer=SGD(schedule="constant"), stage_cost=0.0
)
SAMPLES = 256

MEASUREMENT = (
    f"training {NETWORK.depth} residual blocks of {NETWORK.filters[0]} filters on "
    f"{NETWORK.image_shape[0]}x{NETWORK.image_shape[1]} images in batches of {TRAINING.batch_size}"
)
"""What the speed is measured with."""


def multiply_adds_per_second() -> float:
    """Multiply-adds a second of the fastest epoch of a short training, without compilation."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, *NETWORK.image_shape)).astype(np.uint8)
    labels = (np.arange(SAMPLES) % NETWORK.classes).astype(np.int32)
    data = Dataset("noise", images, labels, images[:32], labels[:32])
    run = fit(NETWORK, TRAINING, data, progress=False)
    an_image = training_cost(NETWORK, TRAINING, samples=1) / TRAINING.epochs
    # The first epoch compiles.
    return an_image * max(row["images_per_second"] for row in run.metrics[1:])
