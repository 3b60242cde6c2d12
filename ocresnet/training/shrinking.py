"""Cutting a network while it is trained: what is kept goes on as if the rest had never been there.

At a milestone the depth rule cuts; parameters, batch statistics, moving average and what the
optimizer remembers of the blocks that stay are carried over.
"""

from typing import Any

import jax
import optax

from ocresnet.stage_cost.pruning import prune, recommend_depth
from ocresnet.stage_cost.trajectory import Trajectory
from ocresnet.systems.architecture import Architecture, ResidualArchitecture
from ocresnet.systems.network import Network
from ocresnet.systems.system import PyTree, Variables
from ocresnet.training.config import TrainingConfig
from ocresnet.training.step import TrainState


def check_shrinking(architecture: Architecture, config: TrainingConfig) -> None:
    """Refuse a network that cannot be cut while it is trained.

    Raises:
      ValueError: saying what does not fit.
    """
    if not config.shrink:
        return
    if not isinstance(architecture, ResidualArchitecture) or architecture.exits != "shared":
        exits = getattr(architecture, "exits", "none")
        raise ValueError(
            f"shrink cuts at exits that share the network's output block, but this network has "
            f"exits {exits}: choose exits shared, or set shrink to ()."
        )
    if getattr(architecture, "free_horizon", False):
        raise ValueError(
            "shrink cuts at times that are known beforehand, but the horizon of this network is "
            "free: set free_horizon to False, or shrink to ()."
        )


def check_memory(
    before: optax.GradientTransformation, after: optax.GradientTransformation, params: PyTree
) -> None:
    """Refuse an optimizer that would forget at a cut.

    Args:
      before, after: made for the problem with stage cost, and for the one without.
      params: of a network.

    Raises:
      ValueError: if their states have entries of different names.
    """
    names = [
        {
            jax.tree_util.keystr(path)
            for path, _ in jax.tree.leaves_with_path(jax.eval_shape(optimizer.init, params))
        }
        for optimizer in (before, after)
    ]
    if names[0] != names[1]:
        raise ValueError(
            "after the last cut no stage cost is paid, and the state of this optimizer has other "
            f"entries then ({', '.join(sorted(names[0] ^ names[1]))}), so that it would forget: "
            "give it one structure, or set stage_cost_until to 'end'."
        )


def depth_to_keep(measured: Trajectory, tolerance: float) -> int:
    """The depth rule's answer, but at least one block: without any there is nothing to pay stage
    costs on."""
    return max(recommend_depth(measured, tolerance), 1)


def cut_variables(
    architecture: ResidualArchitecture, variables: Variables, blocks: int
) -> Variables:
    """The variables of the first blocks, with the statistics of the exit after them as the output
    block's."""
    return prune(Network(architecture, *variables), blocks).variables


def cut_state(
    state: TrainState, architecture: ResidualArchitecture, blocks: int, start: TrainState
) -> TrainState:
    """The state of a training that goes on with the first blocks.

    Args:
      state: of the deeper network, after a whole epoch.
      architecture: the deeper one.
      blocks: how many are kept.
      start: the state in which a training of the kept blocks would start.

    Returns:
      The state of the kept network: its totals are those of an epoch's start.
    """
    average = state.average
    if average is not None:
        average = cut_variables(architecture, average, blocks)
    segments = {segment.name for segment in architecture.system().blocks}
    return start._replace(
        step=state.step,
        average=average,
        opt_state=_carried_over(state.opt_state, start.opt_state, segments),
    )


def _carried_over(before: PyTree, start: PyTree, segments: set[str]) -> PyTree:
    """What an optimizer remembers of a deeper network, in the structure of a shallower one.

    Arrays keep their place by name. Those of a segment of blocks have an entry a block, of which
    the first ones stay. What depends on the depth and belongs to no block, as diagnostics of all
    stages, starts again.
    """
    remembered = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(before)
    }

    def carry_over(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        was = remembered[jax.tree_util.keystr(path)]
        if was.shape == leaf.shape:
            return was
        # A curvature names its factors "segment/layer".
        names = {str(getattr(key, "key", "")).partition("/")[0] for key in path}
        of_blocks = bool(names & segments) and was.shape[1:] == leaf.shape[1:]
        return was[: len(leaf)] if of_blocks else leaf

    return jax.tree.map_with_path(carry_over, start)
