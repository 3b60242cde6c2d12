"""A network whose inner stages have several players: three dense layers that act at once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ocresnet.control.stages import player_of
from ocresnet.problem import Problem
from ocresnet.systems import layers
from ocresnet.systems.layers import Parallel
from ocresnet.systems.system import Segment, System
from tests.control.networks import BATCH, Setting, random_batch, setting_of

BRANCHES = Parallel(
    tuple((name, layers.dense) for name in ("bent", "left", "right")), reads=("sine", "x", "x")
)
"""Two layers share their input; the third has another one."""


def branches(params: Any, x: jax.Array) -> jax.Array:
    """3 features -> 3: (left x, right x) + bent sin(x)."""
    y = BRANCHES(params, {"x": x, "sine": jnp.sin(x)})
    return jnp.concatenate([y["left"], y["right"]], axis=-1) + y["bent"]


def parallel_problem() -> Problem:
    """4-3-3-3-3-3; the branches are a stacked segment of two stages, and one alone."""

    def first(stage, x):
        return jnp.tanh(layers.dense(stage.params, x)), {}

    def mix(stage, x):
        return jnp.tanh(branches(stage.params, x)), {}

    def last(stage, x):
        return layers.dense(stage.params, x), {}

    players = ("left", "bent")  # `right` is nobody's: the first player's
    segments = (
        Segment("first", first, layers={"": layers.dense}),
        Segment("run", mix, length=2, layers={"": BRANCHES}, players=players),
        Segment("single", mix, layers={"": BRANCHES}, players=players),
        Segment("output", last, layers={"": layers.dense}),
    )
    return Problem(System(segments))


def parallel_params(seed: int = 0) -> Any:
    """Parameters with nothing at a special value."""
    rng = np.random.default_rng(seed)

    def dense(*shape: int) -> dict[str, jax.Array]:
        bias = (*shape[:-2], shape[-1])
        return {
            "kernel": jnp.asarray(0.7 * rng.normal(size=shape)),
            "bias": jnp.asarray(0.7 * rng.normal(size=bias)),
        }

    def mix(*length: int) -> Any:
        channels = {"bent": 3, "left": 1, "right": 2}
        return {name: dense(*length, 3, out) for name, out in channels.items()}

    return {"first": dense(4, 3), "run": mix(2), "single": mix(), "output": dense(3, 3)}


@cache
def parallel_setting() -> Setting:
    """The network around random parameters; M is random and couples the players."""
    return setting_of(parallel_problem(), parallel_params(), random_batch(BATCH))


def owners(case: Setting) -> list[np.ndarray]:
    """Whose each number of every stage's control is."""
    result = []
    for segment in case.problem.system.segments:
        own = case.params[segment.name]
        if segment.stacked:
            own = jax.tree.map(lambda leaf: leaf[0], own)
        named = {name: _filled(part, player_of(segment, name)) for name, part in own.items()}
        result += [np.asarray(ravel_pytree(named)[0])] * segment.stages
    return result


def _filled(tree: Any, value: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), tree)


def divided(case: Setting) -> Setting:
    """The same, M without the blocks between players."""
    pairs = zip(owners(case), case.M, strict=True)
    return with_matrices(case, [np.where(own[:, None] == own, M, 0) for own, M in pairs])


def with_matrices(case: Setting, matrices: Sequence[np.ndarray]) -> Setting:
    """The same with this M for every stage."""
    inverses, start = {}, 0
    for segment in case.problem.system.segments:
        own = np.linalg.inv(np.stack(matrices[start : start + segment.stages]))
        inverses[segment.name] = jnp.asarray(own if segment.stacked else own[0])
        start += segment.stages
    return case._replace(M=list(matrices), curvature=replace(case.curvature, inverses=inverses))
