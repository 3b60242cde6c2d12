"""How a network is trained: every choice that changes the numbers, in one frozen record."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args

from ocresnet.costs import Loss
from ocresnet.data.augmentation import Augmentation
from ocresnet.problem import StageCostSchedule
from ocresnet.systems.architecture import require_one_of, require_whole, whole_numbers
from ocresnet.systems.system import Execution
from ocresnet.training import optimizers
from ocresnet.training.checks import (
    is_number,
    is_whole,
    require,
    require_at_least_zero,
    require_positive,
    require_share,
)
from ocresnet.training.gradient_optimizers import SGD
from ocresnet.training.optimizer import Optimizer

StageCostUntil = Literal["last_cut", "end"]


@dataclass(frozen=True)
class TrainingConfig:
    """Objective, optimizer and data order of a run. The defaults are the stage-cost paper's (A.1).

    Attributes:
      epochs: passes over the training set; an epoch leaves out the last batch if it is not full.
      batch_size: samples in a step, over all devices.
      optimizer: with learning rate, schedule, clipping and weight decay (`optimizers.py`).
      stage_cost: gamma, weight of the intermediate losses; 0 is standard training.
      stage_cost_schedule: how the stage cost is spread over depth (`problem.stage_costs`).
      shrink: epochs after which the depth rule cuts the network, and the smaller one trains on;
        the rule looks at the validation split, or without one at the training set.
      shrink_tolerance: percentage points that the rule may lose at each of them.
      stage_cost_until: the last of these cuts, after which the network that is left is trained
        alone, or the end, so that it can be cut again.
      loss: per-sample loss.
      label_smoothing: share of the target that is spread over all classes.
      distillation: w in [0, 1], weight of the divergence from a teacher in the loss of every
        output, beside (1 - w) of `loss`; `fit` takes the teacher.
      temperature: T > 0 that the logits of teacher and student are divided by there.
      average_decay: of an exponential moving average of parameters and batch statistics, which is
        then what is evaluated; 0 keeps none. At step t it is at most (1 + t) / (10 + t), so that
        the random start is soon forgotten.
      augmentation: of the training images.
      validation: share of the training set that is held out.
      seed: of initialisation, data order, augmentation, validation split and the optimizer.
      execution: precision and recomputation of the training step.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    epochs: int = 165
    batch_size: int = 128
    optimizer: Optimizer = field(default_factory=SGD)
    stage_cost: float = 0.02
    stage_cost_schedule: StageCostSchedule = "constant"
    shrink: tuple[int, ...] = ()
    shrink_tolerance: float = 0.5
    stage_cost_until: StageCostUntil = "last_cut"
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    average_decay: float = 0.0
    augmentation: Augmentation = "none"
    validation: float = 0.0
    seed: int = 0
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require_whole(name, getattr(self, name), 1)
        require_positive("temperature", self.temperature)
        for name in ("stage_cost", "shrink_tolerance"):
            require_at_least_zero(name, getattr(self, name))
        for name in ("label_smoothing", "average_decay", "validation"):
            require_share(name, getattr(self, name))
        weight = self.distillation
        within = is_number(weight) and 0 <= weight <= 1
        require("distillation", weight, within, "a number in [0, 1]")
        whole = is_whole(self.seed) and 0 <= self.seed < 2**31
        require("seed", self.seed, whole, "a whole number, 0 to 2^31 - 1")
        for name, kind in (
            ("stage_cost_schedule", StageCostSchedule),
            ("stage_cost_until", StageCostUntil),
            ("loss", Loss),
            ("augmentation", Augmentation),
        ):
            require_one_of(name, getattr(self, name), get_args(kind))
        for name, record, example in (
            ("optimizer", Optimizer, "SGD(learning_rate=0.1)"),
            ("execution", Execution, "Execution()"),
        ):
            value = getattr(self, name)
            require(name, value, isinstance(value, record), f"a configuration like {example}")
        self.optimizer.check_epochs(self.epochs)
        self._check_shrink()

    def after(self, epochs: int) -> Self:
        """What is trained for when so many epochs are done: without stage cost after the last cut,
        unless it is paid until the end."""
        if self.shrink and self.stage_cost_until == "last_cut" and epochs >= self.shrink[-1]:
            return replace(self, stage_cost=0.0, shrink=())
        return self

    def _check_shrink(self) -> None:
        """Refuse milestones that the run does not have, or exits that nothing would train."""
        milestones = whole_numbers("shrink", self.shrink, 1)
        object.__setattr__(self, "shrink", milestones)
        increasing = list(milestones) == sorted(set(milestones))
        if not increasing or (milestones and milestones[-1] >= self.epochs):
            raise ValueError(
                f"shrink is {self.shrink}, but must be increasing epochs before the last of "
                f"{self.epochs}: after a cut there is training to do."
            )
        if milestones and self.stage_cost == 0:
            raise ValueError(
                f"shrink is {self.shrink}, but without stage cost no exit is trained to cut at: "
                "set stage_cost above 0, or shrink to ()."
            )


def describe(config: TrainingConfig) -> dict[str, Any]:
    """A training configuration as JSON values, the optimizer with its name."""
    return {**asdict(config), "optimizer": optimizers.describe(config.optimizer)}


def from_description(described: Any) -> TrainingConfig:
    """Undo `describe`.

    Raises:
      ValueError: for what `describe` has not made, or impossible values.
    """
    known = {known.name for known in fields(TrainingConfig)}
    if not isinstance(described, dict) or described.keys() != known:
        raise ValueError("the description of a training is wrong: it lacks fields or has others.")
    execution = described["execution"]
    try:
        return TrainingConfig(
            **{
                **described,
                "optimizer": optimizers.from_description(described["optimizer"]),
                "execution": Execution(**execution),
            }
        )
    except TypeError as error:
        raise ValueError(f"the description of a training is wrong: {error}") from error
