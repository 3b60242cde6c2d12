"""Small networks, a curvature without structure, and single steps that the tests of control share.

The problems are tiny, so that the whole batch is one state vector and every curvature a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ocresnet.control.curvature.protocol import CurvatureState
from ocresnet.control.optimizer import ocnopt
from ocresnet.costs import cross_entropy, squared_error
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.layers import Convolution
from ocresnet.systems.system import Segment, System
from tests.control.dense import Chain, chain, split
from tests.quick import quick_jit

COSTS = {"cross_entropy": cross_entropy, "squared_error": squared_error}
CLASSES, BATCH = 3, 4
ETA, BETA = 0.4, 0.7


def mlp_problem(cost: str = "cross_entropy", **choices: Any) -> Problem:
    """4-3-3-3-3, tanh: single layers around a stacked segment."""

    def hidden(stage, x):
        return jnp.tanh(layers.dense(stage.params, x)), {}

    def last(stage, x):
        return layers.dense(stage.params, x), {}

    own = {"": layers.dense}
    segments = (
        Segment("hidden_0", hidden, layers=own),
        Segment("hidden_1", hidden, length=2, layers=own),
        Segment("output", last, layers=own),
    )
    return Problem(System(segments), COSTS[cost], **choices)


def exits_problem(heads: str, cost: str = "cross_entropy", **choices: Any) -> Problem:
    """The same with an exit before the inner layers; one "shared" head, or heads of their "own"."""

    def hidden(stage, x):
        return jnp.tanh(layers.dense(stage.params["layer"], x)), {}

    def read(stage, x):
        return layers.dense((stage.shared or stage.params)["head"], x), {}

    layer, head = {"layer": layers.dense}, {"head": layers.dense}
    own_head = {} if heads == "shared" else head
    segments = (
        Segment("first", hidden, layers=layer),
        Segment("run", hidden, read, length=2, layers={**layer, **own_head}),
        Segment("single", hidden, read, layers={**layer, **own_head}),
        Segment("output", read, layers=own_head),
    )
    shared = {"shared": ("head",), "shared_layers": head} if heads == "shared" else {}
    return Problem(System(segments, **shared), COSTS[cost], **{"stage_cost": 0.6, **choices})


def convolutions_problem(cost: str = "cross_entropy", **choices: Any) -> Problem:
    """Convolutions of 3x3 pixels with biases, two of them stacked and the last one strided; then a
    dense layer at every pixel, whose results are averaged."""

    def convolution(name, stride, **choices):
        layer = Convolution(stride=stride)

        def transition(stage, x):
            return jnp.tanh(layer(stage.params["layer"], x)), {}

        return Segment(name, transition, layers={"layer": layer}, **choices)

    def read(stage, x):
        return layers.dense(stage.params["head"], x).mean((1, 2)), {}

    segments = (
        convolution("first", 1),
        convolution("run", 1, length=2),
        convolution("strided", 2),
        Segment("output", read, layers={"head": layers.dense}),
    )
    system = System(segments, initial_state=lambda inputs: inputs.reshape(-1, 3, 3, 1))
    return Problem(system, COSTS[cost], **choices)


def random_params(problem: Problem, seed: int = 0) -> Any:
    """Parameters with nothing at a special value, as precise as jax allows."""

    def dense(*kernel: int) -> dict[str, tuple[int, ...]]:
        length = kernel[: len(kernel) % 2]
        return {"kernel": kernel, "bias": (*length, kernel[-1])}

    names = {segment.name for segment in problem.system.segments}
    if "hidden_0" in names:
        shapes = {"hidden_0": dense(4, 3), "hidden_1": dense(2, 3, 3), "output": dense(3, 3)}
    elif "strided" in names:
        layer = {
            "first": dense(3, 3, 1, 2),
            "run": dense(2, 3, 3, 2, 2),
            "strided": dense(3, 3, 2, 3),
        }
        shapes = {name: {"layer": shape} for name, shape in layer.items()}
        shapes["output"] = {"head": dense(3, 3)}
    else:
        layer = {"first": dense(4, 3), "run": dense(2, 3, 3), "single": dense(3, 3)}
        shapes = {name: {"layer": shape} for name, shape in layer.items()}
        if problem.system.shared:
            shapes["head"] = dense(3, 3)
        else:
            shapes["run"]["head"], shapes["single"]["head"] = dense(2, 3, 3), dense(3, 3)
            shapes["output"] = {"head": dense(3, 3)}
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(0.7 * rng.normal(size=shape)),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def random_batch(
    batch: int = BATCH, features: int = 4, seed: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Inputs [batch, features] and labels [batch]."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, features))), jnp.asarray(
        rng.integers(0, CLASSES, batch)
    )


@dataclass(frozen=True)
class FullCurvature:
    """M: a random symmetric positive definite matrix for every stage, never updated."""

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
        for name, part in tree.items():
            leaves, treedef = jax.tree.flatten(part)
            leading = entries[name].shape[:-2]
            flat = jnp.concatenate([leaf.reshape(*leading, -1) for leaf in leaves], axis=-1)
            flat = jnp.einsum("...ij,...j->...i", entries[name], flat)
            ends = np.cumsum([leaf.size // max(1, int(np.prod(leading))) for leaf in leaves])
            pieces = jnp.split(flat, ends[:-1], axis=-1)
            solved[name] = treedef.unflatten(
                [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
            )
        return solved


def full_curvature(problem: Problem, params: Any) -> tuple[FullCurvature, list[np.ndarray]]:
    """The curvature, and its M for every stage."""
    rng = np.random.default_rng(7)
    lengths: dict[str, int | None] = dict.fromkeys(problem.system.shared)
    lengths |= {
        segment.name: segment.length if segment.stacked else None
        for segment in problem.system.segments
    }
    matrices, stages = {}, []
    for name, length in lengths.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(params.get(name, {}))) // (length or 1)
        matrices[name] = random_spd(rng, length, size)
        stages += [matrices[name]] if length is None else list(matrices[name])
    inverses = {name: jnp.asarray(np.linalg.inv(matrix)) for name, matrix in matrices.items()}
    return FullCurvature(inverses), stages


def random_spd(rng: np.random.Generator, length: int | None, size: int) -> np.ndarray:
    """[(length), size, size], eigenvalues around one."""
    root = rng.normal(size=(*((length,) if length else ()), size, size)) / max(size, 1) ** 0.5
    return root @ np.swapaxes(root, -1, -2) + 0.3 * np.eye(size)


class Setting(NamedTuple):
    """A problem around its parameters.

    Attributes:
      problem, params, batch: random, `exits_problem` or `mlp_problem`.
      gradient: of J.
      dense: the same, as stages on flat vectors.
      curvature: random; M are its matrices, one a stage.
    """

    problem: Problem
    params: Any
    batch: tuple[jax.Array, jax.Array]
    gradient: Any
    dense: Chain
    curvature: FullCurvature
    M: list[np.ndarray]


@cache
def setting(network: str, cost: str = "cross_entropy", batch: int = BATCH) -> Setting:
    """`network`: "mlp", "shared heads", "own heads" or "convolutions"."""
    problem = {
        "mlp": mlp_problem,
        "convolutions": convolutions_problem,
        "shared heads": partial(exits_problem, "shared"),
        "own heads": partial(exits_problem, "own"),
    }[network](cost)
    data = random_batch(batch, 9 if network == "convolutions" else 4)
    return setting_of(problem, random_params(problem), data)


def setting_of(problem: Problem, params: Any, data: tuple[jax.Array, jax.Array]) -> Setting:
    """A problem around these parameters, with a random curvature."""
    gradient = quick_jit(jax.grad(lambda params: objective(problem, params, {}, *data)))(params)
    dense = chain(problem, params, data)
    return Setting(problem, params, data, gradient, dense, *full_curvature(problem, params))


def updates(case: Setting, eta: float | jax.Array = ETA, **choices: Any) -> Any:
    """The updates of the first step, and the diagnostics."""
    return stepper(case, **choices)(eta)


def stepper(case: Setting, nominal: Any = None, share: float = 0.0, **choices: Any) -> Callable:
    """The first step, as if that share of another had been taken before, as a function of the
    learning rate."""
    fixed = {"beta": BETA, "curvature": case.curvature, "region": "fixed"}
    choices = {**fixed, "rollout": "nonlinear", **choices}

    @quick_jit
    def step(eta):
        optimizer = ocnopt(case.problem, eta, **choices)
        first, *others = optimizer.init(case.params)
        changes, state = optimizer.update(
            case.gradient,
            (first._replace(share=jnp.asarray(share)), *others),
            case.params,
            batch=case.batch,
            nominal=nominal,
        )
        return changes, state[0].info

    return step


def dense_curvature(case: Setting, entries: Any) -> list[np.ndarray]:
    """M of every stage, from what M^-1 makes of every unit vector."""
    vector, unravel = ravel_pytree(case.params)
    inverse = quick_jit(
        jax.vmap(lambda unit: ravel_pytree(case.curvature.solve(entries, unravel(unit)))[0])
    )(jnp.eye(vector.size))
    stages = split(case.problem.system, unravel(jnp.arange(float(vector.size))))
    blocks = [np.asarray(inverse)[np.ix_(*[stage.astype(int)] * 2)] for stage in stages]
    np.testing.assert_allclose(
        sum((block**2).sum() for block in blocks), (np.asarray(inverse) ** 2).sum(), rtol=1e-12
    )
    return [np.linalg.inv(block) for block in blocks]


def of_sample(case: Setting, sample: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The Jacobians of a sample's own states."""
    rows = [np.flatnonzero(owners == sample) for owners in case.dense.owners]
    return [
        (f_theta[after], f_x[np.ix_(after, before)])
        for (f_theta, f_x), before, after in zip(
            case.dense.jacobians, rows[:-1], rows[1:], strict=True
        )
    ]


def flat(case: Setting, tree: Any) -> np.ndarray:
    """A tree like the parameters as one vector."""
    return np.concatenate(split(case.problem.system, tree))


def assert_changes(case: Setting, changes: Any, expected: list[np.ndarray]) -> None:
    """The updates are those of every stage, to 1e-12."""
    got = split(case.problem.system, changes)
    for stage, (own, wanted) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-12, err_msg=f"stage {stage}")
