"""What every optimizer's configuration has: learning rate, schedule, clipping and weight decay.

A configuration is frozen, and builds an optax transformation. A new one is a subclass, and a line
in `optimizers.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import optax

from ocresnet.continuous.horizon import Order, free_horizon
from ocresnet.continuous.trained_horizon import free_segments, with_horizon_rule
from ocresnet.control.linearize import Keep
from ocresnet.problem import Problem
from ocresnet.stage_cost.masks import WeightDecayOn, weight_decay_mask
from ocresnet.systems.architecture import Architecture, ResidualArchitecture, require_one_of
from ocresnet.systems.neural_ode import LEAST_FREE_HORIZON
from ocresnet.systems.system import Variables
from ocresnet.training.checks import (
    is_number,
    is_whole,
    require,
    require_at_least_zero,
    require_positive,
)
from ocresnet.training.schedules import ScheduleName, make_schedule

Array = jax.Array

HORIZON_FIELDS = ("horizon_rate", "horizon_order", "horizon_price", "horizon_every")


class Given(NamedTuple):
    """What a transformation is built from; `Optimizer.build` describes it."""

    problem: Problem
    schedule: optax.Schedule
    weight_decay: float | Array
    devices: int
    axis_name: str | None
    seed: int | Array


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """A rule for the parameters' next values; a subclass says which.

    Attributes:
      learning_rate: alpha, before the schedule.
      schedule: the learning rate stays, drops at the milestones, or falls as a cosine to 0.
      milestones: where the learning rate is multiplied by `decay_factor`: shares of the run's
        epochs in (0, 1), or whole numbers of epochs; the paper's are 82 and 123 of 165.
      decay_factor: of the learning rate at a milestone.
      warmup_epochs: the learning rate rises linearly over so many epochs.
      gradient_clip: largest norm of the gradient; 0 does not clip.
      weight_decay: lambda, of lambda/2 ||w||^2.
      weight_decay_on: all parameters decay, or those of residual branches only, as in Theorem 1
        of the stage-cost paper.
      horizon_rate: of a free horizon (`NeuralODEConfig.free_horizon`), which a rule of its own
        moves, its learning rate; None, as all that follows where there is none: 0.1.
      horizon_order: of that rule: the feedback rule of second order, or the first-order one; None:
        second.
      horizon_price: c, of the cost c T^2 / 2 of a horizon T; None: 0.001.
      horizon_every: training steps between two moves of the horizon; None: 50.

    Raises:
      ValueError: for an impossible value, saying what is allowed.
    """

    learning_rate: float = 0.1
    schedule: ScheduleName = "milestones"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0
    gradient_clip: float = 0.0
    weight_decay: float = 0.0
    weight_decay_on: WeightDecayOn = "all"
    horizon_rate: float | None = None
    horizon_order: Order | None = None
    horizon_price: float | None = None
    horizon_every: int | None = None

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)
        require_one_of("schedule", self.schedule, get_args(ScheduleName))
        require_positive("decay_factor", self.decay_factor)
        for name in ("warmup_epochs", "gradient_clip", "weight_decay"):
            require_at_least_zero(name, getattr(self, name))
        require_one_of("weight_decay_on", self.weight_decay_on, get_args(WeightDecayOn))
        given = self.milestones
        require("milestones", given, isinstance(given, tuple | list), "a tuple")
        object.__setattr__(self, "milestones", tuple(given))
        require(
            "milestones",
            given,
            _are_milestones(self.milestones),
            "increasing, and either shares of the epochs in (0, 1) or whole numbers of epochs of "
            "at least 1",
        )
        self._check_horizon()

    def _check_horizon(self) -> None:
        if self.horizon_rate is not None:
            require_positive("horizon_rate", self.horizon_rate)
        if self.horizon_order is not None:
            require_one_of("horizon_order", self.horizon_order, get_args(Order))
        if self.horizon_price is not None:
            require_at_least_zero("horizon_price", self.horizon_price)
        if self.horizon_every is not None:
            whole = is_whole(self.horizon_every) and self.horizon_every >= 1
            require("horizon_every", self.horizon_every, whole, "a whole number, at least 1")

    def keep_on(self, devices: int) -> Keep:
        """What a training step has to keep of its linearised trajectory, on each of so many
        devices."""
        return Keep()

    def schedule_over(
        self, epochs: int, steps_per_epoch: int, learning_rate: float | Array | None = None
    ) -> optax.Schedule:
        """The learning rate over the steps of a run, counted from 0.

        Args:
          epochs: of the run.
          steps_per_epoch: training steps in an epoch.
          learning_rate: any, also a traced array; None means the configuration's own.
        """
        return make_schedule(
            self.schedule,
            self.learning_rate if learning_rate is None else learning_rate,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            milestones=self.milestones,
            decay_factor=self.decay_factor,
            warmup_epochs=self.warmup_epochs,
        )

    def build(
        self,
        problem: Problem,
        schedule: optax.Schedule,
        *,
        weight_decay: float | Array | None = None,
        devices: int = 1,
        axis_name: str | None = None,
        seed: int | Array = 0,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer as an optax transformation.

        Args:
          problem: what is minimised.
          schedule: learning rate over updates.
          weight_decay: any, also a traced array; None means the configuration's own.
          devices: how many share a batch.
          axis_name: the mapped axis over them; gradients come as means over it.
          seed: of an optimizer that draws random numbers.

        Returns:
          A transformation; its `update` is given `batch=`, `batch_stats=`, `nominal=` and `value=`
          too.
        """
        decay = self.weight_decay if weight_decay is None else weight_decay
        own = self.transformation(Given(problem, schedule, decay, devices, axis_name, seed))
        if self.gradient_clip > 0:
            own = optax.chain(optax.clip_by_global_norm(self.gradient_clip), own)
        free = free_segments(problem.system)
        if free:
            own = with_horizon_rule(own, self.horizon_rule(), free)
        return optax.with_extra_args_support(own)

    def horizon_rule(self) -> optax.GradientTransformationExtraArgs:
        """What moves a free horizon."""

        def chosen(value: Any, default: Any) -> Any:
            return default if value is None else value

        return free_horizon(
            chosen(self.horizon_rate, 0.1),
            order=chosen(self.horizon_order, "second"),
            price=chosen(self.horizon_price, 1e-3),
            every=chosen(self.horizon_every, 50),
            minimum=LEAST_FREE_HORIZON,
        )

    @abstractmethod
    def transformation(self, given: Given) -> optax.GradientTransformation:
        """What follows clipping."""

    def check_epochs(self, epochs: int) -> None:
        """Refuse a schedule that such a run does not reach.

        Raises:
          ValueError: naming what is beyond its last epoch.
        """
        if self.schedule != "milestones":
            return
        beyond = [milestone for milestone in self.milestones if milestone >= epochs]
        if beyond:
            raise ValueError(
                f"milestones {self.milestones} are not reached in {epochs} epochs: give whole "
                f"numbers below {epochs}, or shares of the epochs in (0, 1)."
            )

    def check(
        self,
        architecture: Architecture,
        problem: Problem,
        variables: Variables,
        devices: int,
        samples: int,
    ) -> None:
        """Refuse a problem that the optimizer cannot solve, before anything is compiled.

        Args:
          architecture: of the network.
          problem: what is to be minimised.
          variables: the network's arrays, or their shapes.
          devices: how many share a batch.
          samples: how many of a batch each device has.

        Raises:
          ValueError: saying what does not fit.
        """
        free = free_segments(problem.system)
        for name in HORIZON_FIELDS:
            if getattr(self, name) is not None and not free:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but this network has no free horizon: "
                    "leave it out, or set free_horizon of a Neural ODE."
                )
        branches = self.weight_decay_on == "residual_branches"
        if branches and not isinstance(architecture, ResidualArchitecture):
            raise ValueError(
                f"weight_decay_on is 'residual_branches', and a {type(architecture).__name__} has "
                "none: choose 'all'."
            )

    def add_decay(self, weight_decay: float | Array) -> optax.GradientTransformation:
        """Adds lambda w to the updates of the parameters that decay."""
        if isinstance(weight_decay, int | float) and weight_decay == 0:
            return optax.identity()
        return optax.add_decayed_weights(weight_decay, self.decay_mask)

    @property
    def decay_mask(self) -> Any:
        """Which parameters decay, as optax takes it."""
        return partial(weight_decay_mask, on=self.weight_decay_on)


def _are_milestones(values: tuple) -> bool:
    shares = all(is_number(value) and 0 < value < 1 for value in values)
    epochs = all(is_whole(value) and value >= 1 for value in values)
    return (shares or epochs) and list(values) == sorted(set(values))
