"""Training one network with one optimizer, at many learning rates and seeds: rows of a study."""

from collections.abc import Sequence
from typing import Any

from ocresnet.training.config import TrainingConfig
from ocresnet.training.optimizers import Optimizer
from ocresnet.training.sweep import Sweep, sweep

from ..benchmarks.training_step import TrainingStep
from .flags import StudyFlags
from .methods import describe
from .tasks import Task


def training_of(task: Task, method: Optimizer, epochs: int, batch_size: int) -> TrainingConfig:
    """How a task is trained with a method."""
    return TrainingConfig(
        epochs=epochs, batch_size=batch_size, optimizer=method, stage_cost=task.stage_cost
    )


def run_grid(
    task: Task,
    method: Optimizer,
    learning_rates: Sequence[float],
    weight_decay: float,
    flags: StudyFlags,
) -> Sweep:
    """All learning rates and seeds: arrays [learning rates, seeds, ...]."""
    found = sweep(
        task.architecture,
        training_of(task, method, flags.epochs, flags.batch_size),
        task.data,
        learning_rates=learning_rates,
        weight_decays=[weight_decay],
        seeds=flags.seeds,
        together=task.together,
    )
    return Sweep(*(values[0] for values in found))


def measure_rates(
    task: Task,
    method: Optimizer,
    learning_rates: Sequence[float],
    weight_decay: float,
    flags: StudyFlags,
) -> dict[str, Any]:
    """Test accuracy in percent (0 for a run that diverged) and training loss, over learning rates
    and seeds."""
    found = run_grid(task, method, learning_rates, weight_decay, flags)
    return {
        "settings": describe(method),
        "learning_rates": learning_rates,
        "accuracy": 100 * found.accuracies,
        "train_loss": found.train_losses,
    }


def seconds_of_step(task: Task, training: TrainingConfig, steps: int) -> float:
    """Mean over so many steps on a fixed batch: of EKFAC, between two eigendecompositions."""
    batch = slice(0, training.batch_size)
    images, labels = task.data.train_images[batch], task.data.train_labels[batch]
    return TrainingStep(task.architecture, training, images, labels).seconds(steps)
