"""The choices that define an OCNOpt step, checked when they are made."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax

from ocresnet.control.bellman import ValueUpdate
from ocresnet.control.costs import Factor

Array = jax.Array

Feedback = Literal["none", "per_sample", "stacked", "joint"]
RolloutKind = Literal["nonlinear", "linear"]


@dataclass(frozen=True)
class Settings:
    """The choices of `ocnopt` that say what a step is; `ocnopt` describes them.

    Raises:
      ValueError: for an impossible value or combination, saying what is allowed.
    """

    feedback: Feedback = "stacked"
    rollout: RolloutKind = "nonlinear"
    beta: float | Array = 1.0
    value_beta: float | Array | None = None
    value_update: ValueUpdate = "exact"
    forward_feedback: bool = True
    factor: Factor = "gradient"
    groups: int = 1
    axis_name: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("feedback", Feedback),
            ("rollout", RolloutKind),
            ("value_update", ValueUpdate),
            ("factor", Factor),
        ):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}.")
        for name in ("beta", "value_beta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}, but must be a number, at least 0.")
        if not isinstance(self.groups, int) or self.groups < 1:
            raise ValueError(f"groups is {self.groups!r}, but must be a whole number, at least 1.")
        if self.groups > 1 and self.feedback != "joint":
            raise ValueError(
                f"groups is {self.groups}, but only feedback 'joint' divides the batch into groups."
            )
        if self.value_update == "clipped" and (self.feedback == "joint" or self.factor == "exact"):
            raise ValueError(
                "value_update 'clipped' is defined for a single factor: use it with feedback "
                "'stacked' or 'per_sample' and factor 'gradient' or 'sampled'."
            )

    @property
    def weight_of_value(self) -> float | Array:
        """Weight of the terminal curvature in the value function; `beta` unless set."""
        return self.beta if self.value_beta is None else self.value_beta

    @property
    def inactive(self) -> bool:
        """Whether nothing is left but the base optimizer."""
        betas = (self.beta, self.weight_of_value)
        return self.feedback == "none" or all(
            isinstance(beta, int | float) and beta == 0 for beta in betas
        )

    @property
    def needs_trajectory(self) -> bool:
        """Whether a step needs states and costates, and not the gradients of the factors alone."""
        if self.inactive:
            return False
        walks = self.rollout == "nonlinear" and self.forward_feedback
        return walks or self.feedback == "per_sample"

    @property
    def gradient_is_factor(self) -> bool:
        """Whether the gradient of the whole batch is the only factor."""
        return self.feedback == "stacked" and self.factor == "gradient"


class Info(NamedTuple):
    """Diagnostics of an update; the next one does not depend on them.

    Attributes:
      trust: T = eta sum_k g_k^T M_k^-1 g_k, the decrease of the cost that a step of the base
        optimizer predicts, [].
      predicted_change: the change of the cost that the update predicts to first order, [].
      weights: share of the step of the base optimizer that each stage takes, [stages].
      deviations: mean over the factors of what the earlier stages changed in them, [stages]; with
        the gradient factor, the predicted change of the cost so far.
    """

    trust: Array
    predicted_change: Array
    weights: Array
    deviations: Array
