"""Optimizers of networks in continuous time."""

from dataclasses import dataclass

import optax

from ocresnet.continuous.snopt import check_has, curvature_on_grid, snopt
from ocresnet.costs import Factor
from ocresnet.problem import Problem
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.system import Variables
from ocresnet.training.checks import require_share
from ocresnet.training.optimizer import Given, Optimizer
from ocresnet.training.schedules import ScheduleName


@dataclass(frozen=True, kw_only=True)
class SNOpt(Optimizer):
    """SNOpt (Liu et al. 2021): Kronecker-factored curvature of a Neural ODE in continuous time.

    Weight decay is added to the direction, before momentum, as in the paper's code.

    Attributes:
      momentum: decay of the accumulated directions, in [0, 1).
      grid: into how many equal parts the time is divided where the curvature is measured.
      damping: added to the second moments.
      decay: of the moving averages of the second moments, and of the factors between refreshes.
      refresh_every: training steps between two measurements of the curvature.
      factor: of the terminal curvature: the gradient, a sampled one, or all of it. The random
        numbers of "sampled" differ between numbers of devices.
    """

    learning_rate: float = 0.02
    schedule: ScheduleName = "cosine"
    momentum: float = 0.0
    grid: int = 10
    damping: float = 0.05
    decay: float = 0.75
    refresh_every: int = 100
    factor: Factor = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("momentum", self.momentum)
        curvature_on_grid(self.grid, self.damping, self.decay, self.refresh_every, self.factor)

    def transformation(self, given: Given) -> optax.GradientTransformation:
        return snopt(
            given.problem,
            given.schedule,
            grid=self.grid,
            damping=self.damping,
            decay=self.decay,
            refresh_every=self.refresh_every,
            factor=self.factor,
            momentum=self.momentum,
            weight_decay=given.weight_decay,
            weight_decay_mask=self.decay_mask,
            axis_name=given.axis_name,
            seed=given.seed,
        )

    def check(
        self,
        architecture: Architecture,
        problem: Problem,
        variables: Variables,
        devices: int,
        samples: int,
    ) -> None:
        super().check(architecture, problem, variables, devices, samples)
        check_has(problem, self.factor)
