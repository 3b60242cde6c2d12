"""Networks whose horizon is a parameter, moved in training by a rule of its own (`horizon.py`).

The parameters of a segment whose `Dynamics` are `free` have its T, as "horizon". dL/dT is a part of
the gradient as every other. Another optimizer moves all other parameters, and does not see it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from ocresnet.continuous.horizon import HorizonState
from ocresnet.systems.network import Network
from ocresnet.systems.neural_ode import ODE, NeuralODEConfig
from ocresnet.systems.system import PyTree, System

HORIZON = "horizon"


class WithHorizonState(NamedTuple):
    """Attributes:
    others: state of the optimizer of all other parameters.
    horizons: of the rule, by segment.
    """

    others: PyTree
    horizons: dict[str, HorizonState]


def free_segments(system: System) -> list[str]:
    """The names of the segments whose horizon is a parameter."""
    return [s.name for s in system.segments if s.dynamics is not None and s.dynamics.free]


def with_horizon_rule(
    optimizer: optax.GradientTransformation,
    rule: optax.GradientTransformationExtraArgs,
    segments: Sequence[str],
) -> optax.GradientTransformationExtraArgs:
    """An optimizer, but for the horizons of these segments, which a rule moves.

    The rule is told what change of the loss the optimizer's step predicts, <dL/dtheta, dtheta>.

    Args:
      optimizer: of all other parameters; to it the horizons' gradients are 0.
      rule: as `horizon.free_horizon` makes it.
      segments: as `free_segments` finds them.

    Example:
      >>> tx = with_horizon_rule(snopt(system, 0.02), free_horizon(0.1), free_segments(system))
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> WithHorizonState:
        horizons = {name: rule.init(params[name][HORIZON]) for name in segments}
        return WithHorizonState(optimizer.init(params), horizons)

    def update(
        gradients: PyTree, state: WithHorizonState, params: PyTree | None = None, **given: Any
    ) -> tuple[PyTree, WithHorizonState]:
        if params is None:
            raise ValueError("the rule needs the horizon: call update(gradients, state, params).")
        zero = {name: jnp.zeros_like(gradients[name][HORIZON]) for name in segments}
        others = _with_horizons(gradients, zero)
        updates, others_state = optimizer.update(others, state.others, params, **given)
        change = optax.tree.vdot(others, updates)
        moves, horizons = {}, {}
        for name in segments:
            moves[name], horizons[name] = rule.update(
                gradients[name][HORIZON], state.horizons[name], params[name][HORIZON], change=change
            )
        return _with_horizons(updates, moves), WithHorizonState(others_state, horizons)

    return optax.GradientTransformationExtraArgs(init, update)


def fix_horizon(network: Network) -> Network:
    """The same network with its horizon as a constant, so that it can be cut in time.

    Raises:
      ValueError: for a network without a free horizon.
    """
    architecture = network.architecture
    if not isinstance(architecture, NeuralODEConfig) or not architecture.free_horizon:
        raise ValueError("there is nothing to fix: this network has no free horizon.")
    ode = dict(network.params[ODE])
    horizon = float(ode.pop(HORIZON))
    fixed = replace(architecture, horizon=horizon, free_horizon=False)
    return Network(fixed, {**network.params, ODE: ode}, network.batch_stats)


def _with_horizons(tree: PyTree, horizons: dict[str, Any]) -> PyTree:
    own = {name: {**tree[name], HORIZON: value} for name, value in horizons.items()}
    return {**tree, **own}
