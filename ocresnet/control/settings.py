"""The choices that define an OCNOpt step, checked when they are made, and what a step is given."""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import jax

from ocresnet.control.adaptive import Adaptive
from ocresnet.control.alignment import Alignment, check_alignment
from ocresnet.control.curvature.protocol import Curvature, Entries
from ocresnet.control.games import nash
from ocresnet.control.linearize import Keep
from ocresnet.control.value import Decision, clipped, joint_minimum
from ocresnet.control.view import View
from ocresnet.costs import Factor
from ocresnet.problem import Problem
from ocresnet.systems.system import PyTree, Variables

Array = jax.Array

Feedback = Literal["none", "per_sample", "stacked", "joint"]
RolloutKind = Literal["linear", "nonlinear"]
ValueUpdate = Literal["exact", "clipped"]
Equilibrium = Literal["cooperative", "nash"]
Region = Literal["fixed", "square", "smaller", "measured"]

DECISIONS: dict[tuple[Equilibrium, ValueUpdate], Decision] = {
    ("cooperative", "exact"): joint_minimum,
    ("cooperative", "clipped"): clipped,
    ("nash", "exact"): nash,
}


@dataclass(frozen=True)
class Settings:
    """The choices of `ocnopt` that say what a step is; `ocnopt` describes them.

    Raises:
      ValueError: for an impossible value or combination, saying what is allowed.
    """

    feedback: Feedback = "stacked"
    rollout: RolloutKind = "linear"
    beta: float | Array = 1.0
    value_beta: float | Array | None = None
    value_update: ValueUpdate | Decision = "exact"
    equilibrium: Equilibrium = "cooperative"
    factor: Factor = "gradient"
    groups: int = 1
    axis_name: str | None = None
    region: Region | None = None
    lower_bound: float | None = None
    alignment: Alignment | Adaptive | Literal["adaptive"] = "blocks"

    def __post_init__(self) -> None:
        if self.region is None:
            object.__setattr__(self, "region", self._own_region())
        for name, kind in (
            ("feedback", Feedback),
            ("rollout", RolloutKind),
            ("value_update", ValueUpdate),
            ("equilibrium", Equilibrium),
            ("factor", Factor),
            ("region", Region),
        ):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed and not (name == "value_update" and callable(value)):
                raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(allowed)}.")
        for name in ("beta", "value_beta"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}, but must be a number, at least 0.")
        if self.region != "fixed" and self.factor != "gradient":
            raise ValueError(
                f"region is {self.region!r}, which measures the gradient by the cost; with factor "
                f"{self.factor!r}, which has the size of the cost's Hessian, it must be 'fixed'."
            )
        bound = self.lower_bound
        if isinstance(bound, (int, float)) and not math.isfinite(bound):
            raise ValueError(f"lower_bound is {bound!r}, but must be a number, or None.")
        if not isinstance(self.alignment, Adaptive):
            check_alignment(self.alignment, others=("adaptive",))
        if isinstance(self.groups, jax.Array):
            raise ValueError(
                "groups is an array, but must be a whole number: with optax.inject_hyperparams "
                "name it in static_args=('groups',)."
            )
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
        if self.equilibrium == "nash" and self.value_update != "exact":
            raise ValueError(
                "equilibrium 'nash' needs value_update 'exact': with 'clipped' no policy counts on "
                "its own player, so that both equilibria are the same, and a function decides for "
                "itself what is played."
            )
        if self.alignment != "blocks" and self.acts_as_one and not self.inactive:
            raise ValueError(
                f"alignment is {self.alignment!r}, but along linear predictions all alignments "
                "take the same step: set rollout to 'nonlinear', or alignment to 'blocks'."
            )

    def _own_region(self) -> Region:
        if self.factor != "gradient":
            return "fixed"
        bounded = self.value_update == "exact" and not _is_zero(self.weight_of_value)
        return "measured" if bounded else "smaller"

    @property
    def weight_of_value(self) -> float | Array:
        """Weight of the terminal curvature in the value function; `beta` unless set."""
        return self.beta if self.value_beta is None else self.value_beta

    @property
    def decision(self) -> Decision:
        """What a stage decides."""
        if callable(self.value_update):
            return self.value_update
        return DECISIONS[self.equilibrium, self.value_update]

    @property
    def adaptive(self) -> Adaptive | None:
        """What an alignment that changes is chosen from; None where it stays."""
        if self.inactive:
            return None
        if self.alignment == "adaptive":
            return Adaptive()
        return self.alignment if isinstance(self.alignment, Adaptive) else None

    @property
    def alignments(self) -> tuple[Alignment, ...]:
        """Those that a step may be made in."""
        if self.adaptive is not None:
            return self.adaptive.arms
        own = self.alignment
        if self.inactive or isinstance(own, Adaptive) or own == "adaptive":
            return ("blocks",)
        return (own,)

    @property
    def of_arms(self) -> "tuple[Settings, ...]":
        """The choices with each of the alignments."""
        return tuple(replace(self, alignment=alignment) for alignment in self.alignments)

    @property
    def inactive(self) -> bool:
        """Whether nothing is left but the base optimizer."""
        return self.feedback == "none" or (_is_zero(self.beta) and _is_zero(self.weight_of_value))

    @property
    def walks(self) -> bool:
        """Whether the policy is applied along new states, in a second forward pass."""
        return not self.inactive and self.rollout == "nonlinear" and not _is_zero(self.beta)

    @property
    def acts_as_one(self) -> bool:
        """Whether all stages together are one: the joint minimum, along the linear dynamics, where
        no sample reacts to what is decided for others."""
        same_weights = self.value_beta is None
        together = self.feedback != "per_sample" and self.decision is joint_minimum
        return same_weights and together and not self.walks

    @property
    def gradient_is_factor(self) -> bool:
        """Whether the gradient of the whole batch is the only factor."""
        return self.feedback == "stacked" and self.factor == "gradient"

    @property
    def keep(self) -> Keep:
        """What a step needs of the linearised trajectory: `linearize(..., keep=settings.keep)`."""
        if self.inactive:
            return Keep()
        trajectory = self.walks or self.feedback == "per_sample"
        if self.adaptive is not None and trajectory:
            return Keep()  # the trajectory of one alignment does not serve another one
        alignment = self.alignments[0] if trajectory else "blocks"
        if self.feedback == "per_sample":
            return Keep(trajectory=True, alignment=alignment)
        return Keep(self.factor, self.groups, trajectory, alignment)


class Step(NamedTuple):
    """What one update is made from.

    Attributes:
      problem: system and costs.
      settings: the choices.
      variables: the current parameters and batch statistics.
      batch: inputs and targets (of this device).
      gradient: of the batch (of all devices), as it came in.
      drift: s, what momentum and weight decay will change, a tree like the parameters; or None.
      curvature: M.
      entries: of its state.
      learning_rate: eta.
      key: for random factors.
      value: J of the batch, where it is known.
      caution: k of a region that is "measured" (`region.py`), [].
    """

    problem: Problem
    settings: Settings
    variables: Variables
    batch: tuple[PyTree, PyTree]
    gradient: PyTree
    drift: PyTree | None
    curvature: Curvature
    entries: Entries
    learning_rate: float | Array
    key: Array
    value: Array | None
    caution: Array

    def solve(self, tree: PyTree) -> PyTree:
        """M^-1 tree."""
        return self.curvature.solve(self.entries, tree)

    def seen(self, view: View) -> "Step":
        """The same step, in the stages of a view."""
        return self._replace(
            problem=view.problem,
            variables=Variables(*(view.split(tree) for tree in self.variables)),
            gradient=view.split(self.gradient),
            drift=None if self.drift is None else view.split(self.drift),
            entries=view.entries(self.entries),
        )


class Info(NamedTuple):
    """Diagnostics of an update; the next one does not depend on them.

    Attributes:
      trust: T = eta sum_k g_k^T M_k^-1 g_k, the decrease of the cost that a step of the base
        optimizer predicts, [].
      predicted_change: the change of the cost that the update, with momentum and weight decay,
        predicts to first order, by the gradient that came in, [].
      weights: share of the step of the base optimizer that each stage takes, [stages].
      deviations: mean over the factors of what the earlier stages changed in them, [stages]; with
        the gradient factor, the predicted change of the cost so far.
    """

    trust: Array
    predicted_change: Array
    weights: Array
    deviations: Array


class Applied(NamedTuple):
    """What a policy did.

    Attributes:
      directions: -u / eta, a tree like the parameters.
      share: of the change of the cost that a step of the base optimizer predicts, [].
      trust, weights, deviations: as in `Info`.
    """

    directions: PyTree
    share: Array
    trust: Array
    weights: Array
    deviations: Array


def _is_zero(beta: float | Array) -> bool:
    return isinstance(beta, int | float) and beta == 0
