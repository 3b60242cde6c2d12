"""What every architecture that solves a differential equation says of its solver."""

from dataclasses import dataclass
from typing import Literal, get_args

from ocresnet.systems.adaptive_solves import AdaptiveMethod, AdaptiveSolver, Adjoint
from ocresnet.systems.architecture import finite_numbers, require_one_of, require_whole
from ocresnet.systems.explicit_steps import FixedStepMethod

Solver = Literal["euler", "midpoint", "rk4", "dopri5", "tsit5"]

FIXED_STEP_FIELDS = ("steps",)
ADAPTIVE_FIELDS = ("rtol", "atol", "max_steps", "adjoint")


@dataclass(frozen=True, kw_only=True)
class SolverChoice:
    """The solver, as fields of an architecture.

    What a solver does not have is None. What it has and is None is that of `AdaptiveSolver`
    (`adaptive_solves.py`): tolerances of 1e-3, at most 100 steps, the direct adjoint.

    Attributes:
      solver: euler, midpoint and rk4 take `steps` equal steps; dopri5 and tsit5 choose theirs.
      steps: N, of euler, midpoint and rk4.
      rtol, atol: tolerances of dopri5 and tsit5.
      max_steps: limit on the steps of dopri5 and tsit5; beyond it there is no result.
      adjoint: gradient of dopri5 and tsit5: direct, through the steps of the solve, or backsolve,
        by a solve of the adjoint equation backward in time.
    """

    solver: Solver = "dopri5"
    steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    adjoint: Adjoint | None = None

    def check_solver(self) -> None:
        """Refuse impossible values, and settings that the solver does not have.

        Raises:
          ValueError: saying what is allowed.
        """
        require_one_of("solver", self.solver, get_args(Solver))
        for name in foreign_fields(self.solver):
            if getattr(self, name) is not None:
                belongs = "euler, midpoint and rk4" if name == "steps" else "dopri5 and tsit5"
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but belongs to the solvers {belongs}: "
                    f"leave it out with {self.solver}."
                )
        if self.adaptive is not None:  # it has checked itself
            return
        if self.steps is None:
            raise ValueError(
                f"solver is {self.solver!r}, which needs steps: how many equal steps it takes."
            )
        require_whole("steps", self.steps, 1)

    @property
    def adaptive(self) -> AdaptiveSolver | None:
        """How an adaptive solve is made; None under a solver of equal steps."""
        if self.solver == "dopri5" or self.solver == "tsit5":
            given = {name: getattr(self, name) for name in ADAPTIVE_FIELDS}
            given = {name: value for name, value in given.items() if value is not None}
            return AdaptiveSolver(self.solver, **given)
        return None

    @property
    def fixed(self) -> FixedStepMethod:
        """The method of equal steps.

        Raises:
          ValueError: if the solver is adaptive.
        """
        if self.solver == "dopri5" or self.solver == "tsit5":
            raise ValueError(f"{self.solver} is no solver of equal steps.")
        return self.solver

    @property
    def not_finite(self) -> str:
        """See `Architecture.not_finite`."""
        if self.adaptive is None:
            return ""
        return (
            f"a solve of its ODE reached the limit of {self.adaptive.max_steps} steps (max_steps), "
            "or what it was given was not finite: raise max_steps, loosen rtol and atol, or choose "
            "a shorter horizon"
        )


@dataclass(frozen=True, kw_only=True)
class SolverSettings(SolverChoice):
    """The horizon and the solver, as fields of an architecture.

    Attributes:
      horizon: T.
      solver, steps, rtol, atol, max_steps, adjoint: as of `SolverChoice`.
    """

    horizon: float = 1.0

    def check_solver(self) -> None:
        """Refuse impossible values, and settings that the solver does not have.

        Raises:
          ValueError: saying what is allowed.
        """
        [horizon] = finite_numbers("horizon", (self.horizon,))
        object.__setattr__(self, "horizon", horizon)
        if horizon <= 0:
            raise ValueError(f"horizon is {horizon}, but must be positive.")
        super().check_solver()

    @property
    def transitions(self) -> int:
        """How many there are: a step each, or the whole of an adaptive solve."""
        return self.steps or 1

    @property
    def times(self) -> tuple[float, ...]:
        """t_k before every transition and after the last, from 0 to the horizon."""
        return tuple(self.horizon * k / self.transitions for k in range(self.transitions + 1))


def foreign_fields(solver: Solver) -> tuple[str, ...]:
    """The fields of `SolverChoice` that other solvers have and this one has not."""
    return FIXED_STEP_FIELDS if solver in get_args(AdaptiveMethod) else ADAPTIVE_FIELDS
