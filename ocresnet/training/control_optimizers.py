"""Optimizers of second order: a curvature alone, or with the feedback of OCNOpt."""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax

from ocresnet.continuous.trained_horizon import free_segments
from ocresnet.control import curvature as curvatures
from ocresnet.control.adaptive import Adaptive
from ocresnet.control.checks import check_curvature
from ocresnet.control.curvature import Coupling, Curvature, Moments
from ocresnet.control.linearize import Keep
from ocresnet.control.optimizer import ocnopt
from ocresnet.control.settings import (
    Equilibrium,
    Feedback,
    Region,
    RolloutKind,
    Settings,
    ValueUpdate,
)
from ocresnet.control.view import aligned
from ocresnet.costs import Factor
from ocresnet.problem import Problem
from ocresnet.systems.architecture import Architecture, require_one_of
from ocresnet.systems.system import Variables
from ocresnet.training.checks import is_number, require, require_share
from ocresnet.training.optimizer import Given, Optimizer
from ocresnet.training.schedules import ScheduleName

CurvatureName = Literal["identity", "diagonal", "kfac", "ekfac"]

AlignmentChoice = Literal["blocks", "layers_first", "layers_last", "adaptive"]

CURVATURES: dict[str, Callable[..., Curvature]] = {
    "identity": curvatures.identity,
    "diagonal": curvatures.diagonal,
    "kfac": curvatures.kfac,
    "ekfac": curvatures.ekfac,
}

SETTINGS = (
    "damping",
    "decay",
    "epsilon",
    "factor_every",
    "factor_samples",
    "eigen_every",
    "moments",
    "coupling",
)
"""What some curvature can be told; each has its own defaults."""


@dataclass(frozen=True, kw_only=True)
class CurvatureOptimizer(Optimizer):
    """M^-1 g with momentum and decoupled weight decay.

    Settings of the curvature are None where its own default is meant (`control/curvature`).

    Attributes:
      momentum: decay of the accumulated directions, in [0, 1).
      damping: added to K-FAC's and EKFAC's eigenvalues.
      decay: of the moving averages of a diagonal, K-FAC or EKFAC.
      epsilon: added to the root of a diagonal.
      factor_every: updates between two estimates of K-FAC's and EKFAC's factors.
      factor_samples: samples of a device's batch that the factors are estimated from, at most.
      eigen_every: updates between two estimates of their eigenvectors.
      moments: EKFAC's second moments are those of the batch's gradient, or of every example's.
      coupling: whether parallel layers, as the players of a stage have them, share K-FAC's and
        EKFAC's factors: not at all, those that read the same input, or all (the papers' form).
    """

    schedule: ScheduleName = "cosine"
    momentum: float = 0.0
    damping: float | None = None
    decay: float | None = None
    epsilon: float | None = None
    factor_every: int | None = None
    factor_samples: int | None = None
    eigen_every: int | None = None
    moments: Moments | None = None
    coupling: Coupling | None = None

    @property
    @abstractmethod
    def curvature_name(self) -> CurvatureName:
        """Which curvature M is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("momentum", self.momentum)
        require_one_of("curvature", self.curvature_name, get_args(CurvatureName))
        known = inspect.signature(CURVATURES[self.curvature_name]).parameters
        for name, value in self._curvature_settings().items():
            if name not in known:
                of = f"it has {', '.join(known)}" if known else "it has no settings"
                raise ValueError(
                    f"{name} is {value!r}, but curvature {self.curvature_name!r} has no such "
                    f"setting: {of}."
                )
            if name not in ("moments", "coupling"):
                require(name, value, is_number(value), "a number")
        self.curvature_of_controls()

    def _curvature_settings(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in given.items() if value is not None}

    def curvature_of_controls(self) -> Curvature:
        """M."""
        return CURVATURES[self.curvature_name](**self._curvature_settings())

    def choices(self, devices: int) -> dict[str, Any]:
        """The choices of `ocnopt` on each of so many devices."""
        return {"feedback": "none"}

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return ocnopt(
            given.problem,
            given.schedule,
            momentum=self.momentum,
            weight_decay=given.weight_decay,
            weight_decay_mask=self.decay_mask,
            curvature=self.curvature_of_controls(),
            axis_name=given.axis_name,
            seed=given.seed,
            **self.choices(given.devices),
        )


@dataclass(frozen=True, kw_only=True)
class KFAC(CurvatureOptimizer):
    """K-FAC (Martens and Grosse 2015), for dense and convolutional layers."""

    learning_rate: float = 0.01
    momentum: float = 0.9

    @property
    def curvature_name(self) -> CurvatureName:
        return "kfac"


@dataclass(frozen=True, kw_only=True)
class EKFAC(CurvatureOptimizer):
    """EKFAC (George et al. 2018): K-FAC's eigenvectors, with the gradient's second moments."""

    learning_rate: float = 0.01
    momentum: float = 0.9

    @property
    def curvature_name(self) -> CurvatureName:
        return "ekfac"


@dataclass(frozen=True, kw_only=True)
class OCNOpt(CurvatureOptimizer):
    """OCNOpt: the Bellman recursion, kept to second order, as an optimizer (`control.ocnopt`).

    Attributes:
      curvature: M, of the controls.
      feedback: the policy reacts to the state of no sample (the curvature alone), of the batch as
        one, of groups of the batch jointly, or of each sample for itself.
      rollout: the policy sees linear predictions of the new states, or those of a second forward
        pass.
      beta: weight of the terminal curvature in the feedback.
      value_beta: weight of the terminal curvature in the value function; None: that of `beta`.
      value_update: exact, or as in the papers, clipped where it would become negative.
      equilibrium: what the players of a stage play: its joint minimum, or each for itself (Nash).
      factor: of the terminal curvature: the gradient, a sampled one, or all of it. The random
        numbers of "sampled" differ between numbers of devices.
      groups: of feedback "joint": how many parts of the whole batch, over all devices.
      learning_rate: alpha, before the schedule; 1 is the whole step of Newton's method, as far as
        the region lets it, and need not be tuned.
      weight_decay: of all parameters, by the step that is taken.
      region: size of the terminal curvature: that of the papers, that of the cost read as half a
        square, whichever gives the smaller trust region, or as much smaller as steps turn out to
        deserve (`control/region.py`); None: the last, where it bounds every step and there is no
        batch norm.
      lower_bound: of the cost; None: that of the loss.
      alignment: which layers of a block act in the same stage: all of them, or one after the other
        with a shortcut's projection at the first or the last; or a bandit chooses while training.
      alignment_hold: of "adaptive": training steps that an alignment is held for, an even number.
    """

    learning_rate: float = 1.0
    weight_decay: float = 0.1
    curvature: CurvatureName = "ekfac"
    feedback: Feedback = "stacked"
    rollout: RolloutKind = "linear"
    beta: float = 1.0
    value_beta: float | None = None
    value_update: ValueUpdate = "exact"
    equilibrium: Equilibrium = "cooperative"
    factor: Factor = "gradient"
    groups: int = 1
    region: Region | None = None
    lower_bound: float | None = None
    alignment: AlignmentChoice = "blocks"
    alignment_hold: int = 50

    def __post_init__(self) -> None:
        require_one_of("alignment", self.alignment, get_args(AlignmentChoice))
        for name in ("beta", "value_beta"):
            value = getattr(self, name)
            number = is_number(value) or (name == "value_beta" and value is None)
            require(name, value, number, "a number, at least 0")
        bound = self.lower_bound
        require("lower_bound", bound, bound is None or is_number(bound), "a number, or None")
        super().__post_init__()
        require_one_of("value_update", self.value_update, get_args(ValueUpdate))
        settings = Settings(**self.choices(1))
        alone = settings.gradient_is_factor and not settings.walks and not settings.inactive
        if self.gradient_clip > 0 and alone and settings.region != "fixed":
            raise ValueError(
                f"gradient_clip is {self.gradient_clip}, but region {settings.region!r} compares "
                "the gradient with the cost, and takes a clipped one for a longer way to go: set "
                "gradient_clip to 0, or region to 'fixed', or rollout to 'nonlinear'."
            )
        check_curvature(self.curvature_of_controls(), self.equilibrium)
        Adaptive(hold=self.alignment_hold)

    @property
    def curvature_name(self) -> CurvatureName:
        return self.curvature

    def choices(self, devices: int) -> dict[str, Any]:
        adaptive = self.alignment == "adaptive"
        return {
            "feedback": self.feedback,
            "rollout": self.rollout,
            "beta": self.beta,
            "value_beta": self.value_beta,
            "value_update": self.value_update,
            "equilibrium": self.equilibrium,
            "factor": self.factor,
            "groups": -(-self.groups // devices),
            "region": self.region,
            "lower_bound": self.lower_bound,
            "alignment": Adaptive(hold=self.alignment_hold) if adaptive else self.alignment,
        }

    def keep_on(self, devices: int) -> Keep:
        return Settings(**self.choices(devices)).keep

    def check(
        self,
        architecture: Architecture,
        problem: Problem,
        variables: Variables,
        devices: int,
        samples: int,
    ) -> None:
        super().check(architecture, problem, variables, devices, samples)
        if free_segments(problem.system):
            raise ValueError(
                "ocnopt's policy moves all parameters of a stage, and a free horizon moves by a "
                "rule of its own: choose adamw, ekfac or snopt, or a horizon that is not free."
            )
        statistics = bool(jax.tree.leaves(variables.batch_stats))
        name = type(architecture).__name__
        if self.feedback == "per_sample" and (statistics or problem.system.shared):
            what = "batch statistics" if statistics else "parameters that several blocks share"
            raise ValueError(
                f"feedback 'per_sample' takes every sample for a problem of its own, but a {name} "
                f"has {what}: choose feedback 'stacked' or 'joint'."
            )
        if self.factor != "gradient" and getattr(problem.cost, self.factor) is None:
            raise ValueError(
                f"factor is {self.factor!r}, which the loss does not have: choose 'gradient'."
            )
        if self.region == "square" and self.lower_bound is None and not problem.cost.bounded:
            raise ValueError(
                f"region 'square' needs a lower bound of the loss, and that of a {name} has none: "
                "give lower_bound, or choose region 'measured'."
            )
        for alignment in Settings(**self.choices(devices)).alignments:
            aligned(problem, alignment)
        if self.feedback != "joint":
            return
        if statistics and devices > 1:
            raise ValueError(
                "feedback 'joint' with batch statistics, which couple all groups, runs on one "
                f"device only, and there are {devices}: give one device, or choose feedback "
                "'stacked'."
            )
        if self.groups % devices or (samples * devices) % self.groups:
            raise ValueError(
                f"groups is {self.groups}, but must be divisible over {devices} devices and divide "
                f"the batch of {samples * devices} samples."
            )
