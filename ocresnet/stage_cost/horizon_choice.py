"""The depth rule in continuous time: for how long an ODE has to be integrated.

A fixed-step solver's steps are residual blocks at equal distances in time, so that the depth that a
task needs is a horizon. `prune` cuts there: fewer steps of the same size.
"""

from ocresnet.stage_cost.pruning import recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.systems.neural_ode import NeuralODEConfig


def recommend_horizon(
    architecture: NeuralODEConfig, measured: Trajectory, tolerance: float = 0.5
) -> float:
    """The earliest time on the solver's grid whose exit does nearly as well as the whole network.

    Args:
      architecture: of the network that was measured.
      measured: its trajectory, as for `recommend_depth`.
      tolerance: percentage points that may be lost, >= 0.

    Returns:
      t_M of the depth rule's M. Where x(0) would do, which no ODE is needed for, it is 0.

    Raises:
      ValueError: for a trajectory that is not this network's, or what `recommend_depth` refuses.

    Example:
      >>> recommend_horizon(run.network.architecture, run.trajectories["validation"])
    """
    if not isinstance(architecture, NeuralODEConfig):
        raise ValueError(
            f"a {type(architecture).__name__} has no horizon: recommend_depth chooses its depth."
        )
    blocks = recommend_depth(measured, tolerance)
    if len(measured.accuracies) != architecture.outputs:
        raise ValueError(
            f"the trajectory has {len(measured.accuracies)} outputs, but this network has "
            f"{architecture.outputs}."
        )
    return architecture.times[blocks]
