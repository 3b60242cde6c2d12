"""Small networks of residual blocks, and a curvature that fits any alignment of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.control.alignment import Alignment
from ocresnet.control.curvature.protocol import CurvatureState, flatten, unflatten
from ocresnet.control.view import View, aligned
from ocresnet.problem import Problem
from ocresnet.systems import layers
from ocresnet.systems.pieces import STATE, Piece, add, composed
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Execution, Segment, System, Variables
from tests.control.networks import random_spd

ORDER = (("layer_1",), ("layer_2", "shortcut"))
"""The stages of a dense block in a tuple: those of "layers_last"."""


def _layer(name: str, read: str, entry: str) -> Piece:
    def function(stage, x):
        return jnp.tanh(layers.dense(stage.params["residual"][entry], x)), {}

    return Piece(name, function, (read,), (f"residual/{entry}",))


def _shortcut(stage, x):
    return layers.dense(stage.params["shortcut"], jnp.sin(x)), {}


def blocks_of_layers(count: int, *, projection: bool) -> tuple[Piece, ...]:
    """`layer_1` ... of each other, and the sum with the state or its projection."""
    names = [f"layer_{number}" for number in range(1, count + 1)]
    reads = [STATE, *names[:-1]]
    pieces = [_layer(name, read, name) for name, read in zip(names, reads, strict=True)]
    if projection:
        pieces.append(Piece("shortcut", _shortcut, entries=("shortcut",)))
    shortcut = "shortcut" if projection else STATE
    return *pieces, Piece("sum", add, (shortcut, names[-1]))


def dense_problem(exits: bool = False) -> tuple[Problem, Variables]:
    """4-3, a block of three layers and two of two, the first of them with a projection; without
    shared parameters; with a head before each of the last two blocks, where it has exits."""

    def first(stage, x):
        return jnp.tanh(layers.dense(stage.params, x)), {}

    def read(stage, x):
        return layers.dense(stage.params["exit"], x), {}

    def block(name: str, pieces: tuple[Piece, ...], **choices: Any) -> Segment:
        owned = [entry for piece in pieces for entry in piece.entries]
        own = dict.fromkeys(owned, layers.dense)
        if choices.get("output") is not None:
            own["exit"] = layers.dense
        return Segment(
            name,
            composed(pieces),
            skip=lambda stage, x: x,
            layers=own,
            pieces=pieces,
            **choices,
        )

    output = read if exits else None
    segments = (
        Segment("first", first, layers={"": layers.dense}),
        block("opening", blocks_of_layers(2, projection=True)),
        block("run", blocks_of_layers(2, projection=False), length=2, output=output),
        block("long", blocks_of_layers(3, projection=False)),
        Segment("output", lambda stage, x: (layers.dense(stage.params, x), {})),
    )
    rng = np.random.default_rng(0)

    def dense(*kernel: int) -> dict[str, np.ndarray]:
        bias = (*kernel[: len(kernel) % 2], kernel[-1])
        return {
            name: 0.7 * rng.normal(size=size) for name, size in (("kernel", kernel), ("bias", bias))
        }

    def branch(count: int, *leading: int) -> dict[str, Any]:
        return {
            "residual": {f"layer_{number}": dense(*leading, 3, 3) for number in range(1, count + 1)}
        }

    params = {
        "first": dense(4, 3),
        "opening": {**branch(2), "shortcut": dense(3, 3)},
        "run": branch(2, 2) | ({"exit": dense(2, 3, 3)} if exits else {}),
        "long": branch(3),
        "output": dense(3, 3),
    }
    problem = Problem(System(segments), stage_cost=0.6 if exits else 0.0)
    return problem, Variables(jax.tree.map(jnp.asarray, params), {})


def resnet_problem(exits: str = "none", block: str = "basic") -> tuple[Problem, Variables]:
    """A convolutional network of two levels with batch norm, a block with a projection and three
    without."""
    config = ResNetConfig(
        blocks=(2, 2),
        filters=(1, 2) if block == "bottleneck" else (2, 3),
        block=block,
        image_shape=(4, 4, 1),
        classes=3,
        exits=exits,
    )
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        return jnp.asarray(np.exp(0.3 * noise) if path[-1].key in ("variance", "scale") else noise)

    variables = jax.eval_shape(config.init, jax.random.key(0))
    variables = Variables(*(jax.tree.map_with_path(draw, tree) for tree in variables))
    system = config.system(execution=Execution(precision="float64"))
    return Problem(system, stage_cost=0.0 if exits == "none" else 0.5), variables


@dataclass(frozen=True)
class LeafCurvature:
    """M: a random symmetric positive definite matrix for every array (of every block)."""

    inverses: dict[str, jax.Array]
    needs_statistics: bool = False

    def init(self, system: System, params: Any) -> CurvatureState:
        return CurvatureState(jnp.zeros((), jnp.int32), dict(self.inverses))

    def update(self, state, gradient, batch_size, statistics) -> CurvatureState:
        return state

    def metric(self, entries, path, with_bias) -> None:
        return None

    def solve(self, entries: dict[str, jax.Array], tree: Any) -> Any:
        solved = {}
        for path, leaf in flatten(tree).items():
            inverse = entries[path]
            flat = leaf.reshape(*inverse.shape[:-2], -1)
            solved[path] = jnp.einsum("...ij,...j->...i", inverse, flat).reshape(leaf.shape)
        return unflatten(solved, tree)


class Aligned(NamedTuple):
    """A problem, its view, and M of every stage of the view in one matrix."""

    problem: Problem
    variables: Variables
    view: View
    curvature: LeafCurvature
    M: list[np.ndarray]


def aligned_case(problem: Problem, variables: Variables, alignment: Alignment | None) -> Aligned:
    """The case, with a random curvature that does not depend on the alignment."""
    rng, view = np.random.default_rng(7), aligned(problem, alignment)
    stacked = {segment.name for segment in problem.system.segments if segment.stacked}
    inverses = {}
    for path, leaf in flatten(variables.params).items():
        length = leaf.shape[0] if path.split("/")[0] in stacked else None
        matrix = random_spd(rng, length, leaf.size // (length or 1))
        inverses[path] = jnp.asarray(np.linalg.inv(matrix))
    curvature = LeafCurvature(inverses)
    return Aligned(problem, variables, view, curvature, _matrices(view, variables, inverses))


def _matrices(view: View, variables: Variables, inverses: dict[str, jax.Array]) -> list[np.ndarray]:
    entries, system = view.entries(inverses), view.problem.system
    params = view.split(variables.params)
    matrices = []
    if system.shared:
        shared = flatten({name: params[name] for name in system.shared})
        matrices.append(_block_diagonal([entries[path] for path in shared]))
    for run in system.runs:
        for index in range(run[0].stages):
            for segment in run:
                own = [
                    entries[f"{segment.name}/{path}"]
                    for path in flatten(params.get(segment.name, {}))
                ]
                own = [leaf[index] if segment.stacked else leaf for leaf in own]
                matrices.append(_block_diagonal(own))
    return matrices


def _block_diagonal(inverses: list[Any]) -> np.ndarray:
    size = sum(len(inverse) for inverse in inverses)
    matrix, start = np.zeros((size, size)), 0
    for inverse in inverses:
        end = start + len(inverse)
        matrix[start:end, start:end] = np.linalg.inv(inverse)
        start = end
    return matrix
