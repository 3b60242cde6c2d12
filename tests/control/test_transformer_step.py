"""OCNOpt on a transformer against dense matrices; what K-FAC records of its layers against sums."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax.flatten_util import ravel_pytree

from ocresnet.control import reference
from ocresnet.control.curvature import diagonal, ekfac, identity, kfac
from ocresnet.control.optimizer import ocnopt, scale_by_curvature
from ocresnet.problem import Problem, objective
from ocresnet.systems.system import Execution, Variables
from ocresnet.systems.transformer import TransformerConfig
from tests.conftest import random_images, random_variables, to_float64
from tests.control.dense import split
from tests.quick import quick_jit
from tests.systems.test_transformer import FlaxTransformer, flax_params

TINY = TransformerConfig(
    blocks=2, width=4, heads=2, hidden=3, patch=2, classes=3, image_shape=(4, 4, 1)
)
BATCH, ETA, BETA = 4, 0.4, 0.7
LABELS = np.array([0, 1, 2, 1])
STAGE_COSTS = {"shared": (0.5, 0.25), "separate": (0.5, 0.25), "none": 0.0}
CURVATURES = {
    "identity": identity(),
    "diagonal": diagonal(epsilon=0.1),
    "ekfac": ekfac(damping=0.1),
}
GROUPS = {"stacked": 1, "joint": 2}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def problem_of(exits: str) -> tuple[Problem, Any]:
    """The tiny network with a cost on every exit there is; its parameters."""
    config = replace(TINY, exits=exits)
    system = config.system(execution=Execution(precision="float64"))
    params = to_float64(random_variables(config).params)
    return Problem(system, stage_cost=STAGE_COSTS[exits]), params


def batch() -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(random_images(TINY, BATCH), "float64"), jnp.asarray(LABELS)


@cache
def dense_step(exits: str, groups: int) -> Callable:
    """(params, A of every stage) -> changes along the new states, and along linear predictions."""
    problem, _ = problem_of(exits)

    @quick_jit
    def step(params, curvature):
        images, labels = batch()
        chain = reference.make_chain(problem, Variables(params, {}), images)
        last = reference.terminal(problem, chain, labels, BETA, "gradient", groups)
        still = [jnp.zeros_like(theta) for theta in chain.controls]
        policies, _ = reference.bellman(chain, last, curvature, still)
        dx, linear = jnp.zeros_like(chain.states[0]), []
        for k, (f, policy) in enumerate(zip(chain.functions, policies, strict=True)):
            linear.append(policy.k + policy.K @ dx)
            own = chain.controls[k]  # that of the output block is empty, and of another dtype
            tangents = linear[-1].astype(own.dtype), dx
            dx = jax.jvp(f, (own, chain.states[k]), tangents)[1]
        return {"nonlinear": reference.roll_out(chain, policies, still), "linear": linear}

    return step


def matrices(problem: Problem, curvature: Any, entries: Any, params: Any) -> list[np.ndarray]:
    """M of every stage, whose inverse is what `solve` makes of unit vectors."""
    flat, form = ravel_pytree(params)
    solve = jax.vmap(lambda unit: ravel_pytree(curvature.solve(entries, form(unit)))[0])
    inverse = np.asarray(quick_jit(solve)(jnp.eye(flat.size)))
    places = split(problem.system, form(jnp.arange(float(flat.size))))
    own = [place.astype(int) for place in places]
    return [np.linalg.inv(inverse[np.ix_(place, place)]) for place in own]


QUICK = [("shared", "ekfac", "joint"), ("none", "diagonal", "stacked")]
SLOW = [
    *(("shared", curvature, "stacked") for curvature in CURVATURES),
    *(("shared", curvature, "joint") for curvature in ("identity", "diagonal")),
    ("separate", "ekfac", "joint"),
    ("none", "ekfac", "stacked"),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("exits", "curvature", "form"), CASES)
def test_a_step_is_that_of_the_reference(exits, curvature, form):
    """On both rollouts, with costs on the exits."""
    problem, params = problem_of(exits)
    groups, own = GROUPS[form], CURVATURES[curvature]

    @quick_jit
    def fast(params):
        gradient = jax.grad(lambda params: objective(problem, params, {}, *batch()))(params)
        steps = {}
        for rollout in ("nonlinear", "linear"):
            choices = {"feedback": form, "rollout": rollout, "beta": BETA, "curvature": own}
            choices |= {"region": "fixed"} | ({"groups": 2} if groups == 2 else {})
            optimizer = ocnopt(problem, ETA, **choices)
            start = optimizer.init(params)
            steps[rollout] = optimizer.update(gradient, start, params, batch=batch())
        return {rollout: (changes, state[0]) for rollout, (changes, state) in steps.items()}

    steps = fast(params)
    M = matrices(problem, own, steps["linear"][1].curvature.entries, params)
    wanted = dense_step(exits, groups)(params, [matrix / ETA for matrix in M])
    for rollout, (changes, _) in steps.items():
        got = split(problem.system, changes)
        for stage, (ours, expected) in enumerate(zip(got, wanted[rollout], strict=True)):
            where = f"{rollout}, stage {stage}"
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11, err_msg=where)
            assert stage == 4 or np.abs(expected).max() > 1e-4, where  # the last has no control
    pairs = zip(wanted["linear"], wanted["nonlinear"], strict=True)
    differ = [np.abs(linear - walked).max(initial=0) for linear, walked in pairs]
    assert max(differ) > 1e-5


# What the layers record

LAYERS = {
    "stem/embedding": ("embedding", 4),
    **{
        f"blocks/residual/{path}": (f"blocks_*/{path}", 4)
        for path in (*(f"attention/{n}" for n in ("query", "key", "value", "out")), "dense_1")
    },
    "blocks/residual/dense_2": ("blocks_*/dense_2", 4),
    "head/dense": ("head/dense", 1),
}
"""{path here: (path in the Flax module, locations of one reading)}; tokens are locations."""


def test_statistics_are_sums_over_samples_and_tokens():
    """A = E[sum over tokens of x x^T] and G = E[mean over tokens of delta delta^T], of inputs and
    slopes that the Flax module's layers have."""
    problem, params = problem_of("shared")
    optimizer = scale_by_curvature(kfac(), problem)
    gradient = jax.grad(lambda params: objective(problem, params, {}, *batch()))(params)
    _, state = quick_jit(optimizer.update)(gradient, optimizer.init(params), params, batch=batch())
    seen = readings(params)
    declared = {path for path, entry in state.curvature.entries.items() if hasattr(entry, "inputs")}
    assert declared == set(LAYERS)
    for path, (name, locations) in LAYERS.items():
        entry = state.curvature.entries[path]
        depths = range(2) if "*" in name else [None]
        for depth in depths:
            reads = seen[name.replace("*", str(depth))]
            x, delta = (np.concatenate(part, axis=1) for part in zip(*reads, strict=True))
            assert x.shape[:2] == (BATCH, locations * (3 if path == "head/dense" else 1))
            A = np.einsum("nlr,nls->rs", x, x) / BATCH
            G = np.einsum("nlr,nls->rs", delta, delta) / delta[..., 0].size
            for got, wanted in ((entry.inputs, A), (entry.outputs, G)):
                own = got if depth is None else got[depth]
                scale = np.abs(wanted).max()
                assert scale > 1e-8
                np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-10 * scale, err_msg=path)


def readings(params: Any) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """{layer of the Flax module: x [batch, tokens, rows_in] with a one for the bias, and delta
    [batch, tokens, channels_out], of every reading}: slopes of the sum of the samples' costs."""
    config = replace(TINY, exits="shared")
    images, labels = batch()

    def total(probes):
        seen = []

        def watch(next_function, args, kwargs, context):
            y = next_function(*args, **kwargs)
            layer = isinstance(context.module, linen.Dense | linen.DenseGeneral | linen.Conv)
            if not layer or context.method_name != "__call__":
                return y
            if probes is not None:
                y += probes[len(seen)]
            seen.append(("/".join(context.module.path), args[0], y))
            return y

        with linen.intercept_methods(watch):
            outputs = FlaxTransformer(config).apply({"params": flax_params(config, params)}, images)
        weights = [*STAGE_COSTS["shared"], 1.0]
        cost = sum(
            -w * jax.nn.log_softmax(y)[jnp.arange(BATCH), labels].sum()
            for w, y in zip(weights, outputs, strict=True)
        )
        return cost, seen

    names: list[str] = []

    @quick_jit
    def read():
        _, seen = total(None)
        names.extend(name for name, _, _ in seen)
        slopes = jax.grad(lambda probes: total(probes)[0])([jnp.zeros_like(y) for _, _, y in seen])
        return [x for _, x, _ in seen], slopes

    result: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    inputs, slopes = jax.tree.map(np.asarray, read())
    for name, x, delta in zip(names, inputs, slopes, strict=True):
        if name == "embedding":  # the squares that the convolution sees
            squares = [x[:, i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
            x = np.stack([square.reshape(BATCH, -1) for square in squares], axis=1)
            delta = delta.reshape(BATCH, 4, -1)
        elif name.startswith("head"):
            x, delta = x[:, None], delta[:, None]
        x, delta = (leaf.reshape(*leaf.shape[:2], -1) for leaf in (x, delta))
        x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
        result.setdefault(name, []).append((x, delta))
    return result
