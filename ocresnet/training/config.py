"""How a network is trained: every choice that changes the numbers, in one frozen record."""

import math
from dataclasses import dataclass, field
from typing import get_args

from ocresnet.data.augmentation import Augmentation
from ocresnet.stage_cost.objective import Loss, StageCostSchedule, WeightDecayOn
from ocresnet.systems.resnet_config import Execution


@dataclass(frozen=True)
class TrainingConfig:
    """Objective, optimizer, schedule and data order of a run. The defaults are the paper's (A.1).

    Attributes:
      epochs: passes over the training set; an epoch leaves out the last batch if it is not full.
      batch_size: samples in a step, over all devices.
      learning_rate: of SGD, before the schedule.
      momentum: of SGD.
      milestones: epochs after which the learning rate is multiplied by `decay_factor`.
      decay_factor: see `milestones`.
      warmup_epochs: the learning rate rises linearly over so many epochs, in equal steps of which
        the first is the first step's.
      weight_decay: lambda; the gradient of lambda/2 ||w||^2 is added before momentum.
      weight_decay_on: "all" parameters, or "residual_branches" only as in Theorem 1.
      stage_cost: gamma, weight of the intermediate losses; 0 is standard training.
      stage_cost_schedule: how the stage cost is spread over depth (`objective.stage_costs`).
      loss: per-sample loss.
      label_smoothing: share of the target that is spread over all classes.
      distillation: w in [0, 1], weight of the divergence from a teacher in the loss of every
        output, beside (1 - w) of `loss`; `fit` takes the teacher.
      temperature: T > 0 that the logits of teacher and student are divided by there.
      gradient_clip: largest norm of the gradient; 0 does not clip.
      average_decay: of an exponential moving average of parameters and batch statistics, which is
        then what is evaluated; 0 keeps none. At step t it is at most (1 + t) / (10 + t), so that
        the random start is soon forgotten.
      augmentation: of the training images.
      validation: share of the training set that is held out.
      seed: of initialisation, data order, augmentation and validation split.
      execution: precision and recomputation of the training step.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    epochs: int = 165
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    milestones: tuple[int, ...] = (82, 123)
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0
    weight_decay: float = 1e-4
    weight_decay_on: WeightDecayOn = "all"
    stage_cost: float = 0.02
    stage_cost_schedule: StageCostSchedule = "constant"
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    gradient_clip: float = 0.0
    average_decay: float = 0.0
    augmentation: Augmentation = "none"
    validation: float = 0.0
    seed: int = 0
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if isinstance(self.execution, dict):
            object.__setattr__(self, "execution", Execution(**self.execution))
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            _require(
                self, name, isinstance(value, int) and value >= 1, "a whole number, at least 1"
            )
        for name in ("learning_rate", "decay_factor", "temperature"):
            _require(self, name, getattr(self, name) > 0, "positive")
        for name in ("weight_decay", "stage_cost", "gradient_clip", "warmup_epochs"):
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("momentum", "label_smoothing", "average_decay", "validation"):
            _require(self, name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        _require(self, "distillation", 0 <= self.distillation <= 1, "in [0, 1]")
        whole = isinstance(self.seed, int)
        _require(self, "seed", whole and 0 <= self.seed < 2**31, "a whole number, 0 to 2^31 - 1")
        increasing = list(self.milestones) == sorted(set(self.milestones))
        whole = all(isinstance(epoch, int) and epoch > 0 for epoch in self.milestones)
        _require(self, "milestones", increasing and whole, "increasing positive epochs")
        for name, kind in (
            ("weight_decay_on", WeightDecayOn),
            ("stage_cost_schedule", StageCostSchedule),
            ("loss", Loss),
            ("augmentation", Augmentation),
        ):
            allowed = get_args(kind)
            _require(self, name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")


def _require(config: TrainingConfig, name: str, holds: bool, what: str) -> None:
    value = getattr(config, name)
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (holds and finite):
        raise ValueError(f"{name} is {value!r}, but must be {what}.")
