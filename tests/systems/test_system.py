"""Systems and their fold on small systems, against loops written out in numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.rollout import Probe, rollout
from ocresnet.systems.system import Execution, Segment, System, Variables
from tests.quick import quick_jit

EXECUTIONS = [
    Execution(remat=remat, unroll=unroll)
    for remat in ("none", "convolutions", "everything")
    for unroll in (False, True)
]

# x_{k+1} = A_k x_k,  y_k = C x_k with a shared C; the statistics count how often they were seen.


def transition(stage, x):
    return x @ stage.params["A"].T, {"seen": stage.batch_stats["seen"] + stage.train}


def output(stage, x):
    return x @ stage.shared["C"].T, {"read": stage.batch_stats["read"] + 10 * stage.train}


SYSTEM = System(
    (
        Segment("first", transition),
        Segment("run", transition, output, length=3),
        Segment("single", transition, output),
    ),
    shared=("C",),
)


@pytest.fixture
def variables() -> Variables:
    rng = np.random.default_rng(0)
    params = {
        "C": rng.normal(size=(2, 4)),
        "first": {"A": rng.normal(size=(4, 4))},
        "run": {"A": rng.normal(size=(3, 4, 4))},
        "single": {"A": rng.normal(size=(4, 4))},
    }
    zeros = {"seen": np.zeros(3), "read": np.zeros(3)}
    stats = {
        "first": {"seen": np.zeros(())},
        "run": zeros,
        "single": {"seen": np.zeros(()), "read": np.zeros(())},
    }
    return jax.tree.map(jnp.asarray, Variables(params, stats))


X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=str)
def test_rollout_is_the_recursion(variables, execution):
    system = replace(SYSTEM, execution=execution)
    result = rollout(system, variables, X, train=True, keep_states=True)

    params = jax.tree.map(np.asarray, variables.params)
    states, outputs = [X @ params["first"]["A"].T], []
    for matrix in [*params["run"]["A"], params["single"]["A"]]:
        outputs.append(states[-1] @ params["C"].T)
        states.append(states[-1] @ matrix.T)
    np.testing.assert_allclose(result.state, states[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.outputs, np.stack(outputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.batch_stats["run"]["seen"], np.ones(3))
    np.testing.assert_array_equal(result.batch_stats["run"]["read"], np.full(3, 10))
    np.testing.assert_array_equal(result.batch_stats["single"]["read"], 10)
    np.testing.assert_array_equal(result.states["first"], X)
    np.testing.assert_allclose(result.states["run"], np.stack(states[:3]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.states["single"], states[3], rtol=1e-4, atol=1e-5)


def test_outputs_alone_can_be_trained(variables):
    stats = rollout(SYSTEM, variables, X, train=False, train_outputs=True).batch_stats
    np.testing.assert_array_equal(stats["run"]["seen"], np.zeros(3))
    np.testing.assert_array_equal(stats["run"]["read"], np.full(3, 10))


def test_without_intermediate_outputs_only_the_last_is_left(variables):
    assert SYSTEM.outputs == 4
    alone = SYSTEM.with_own_output_only()
    assert alone.outputs == 0
    result = rollout(alone, variables, X, train=True)
    np.testing.assert_array_equal(result.state, rollout(SYSTEM, variables, X, train=True).state)
    assert result.outputs is None and result.states == {}
    np.testing.assert_array_equal(result.all_outputs(), result.state[None])
    np.testing.assert_array_equal(result.batch_stats["run"]["read"], np.zeros(3))


def test_all_outputs_are_at_least_float32(variables):
    square = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), variables)
    square.params["C"] = jnp.ones((4, 4), "bfloat16")
    result = rollout(SYSTEM, square, jnp.asarray(X, "bfloat16"), train=True)
    assert result.state.dtype == jnp.bfloat16
    outputs = result.all_outputs()
    assert outputs.shape == (5, 5, 4) and outputs.dtype == jnp.float32
    np.testing.assert_array_equal(outputs[-1], result.state.astype("float32"))
    np.testing.assert_array_equal(outputs[:-1], result.outputs.astype("float32"))


def test_derivatives_at_probes_are_costates_and_the_parts_of_a_shared_gradient(variables):
    weights = np.random.default_rng(2).normal(size=(4, 5, 2)).astype(np.float32)
    states = {"first": X, "run": np.stack([X] * 3), "single": X}
    matrix = variables.params["C"]
    parts = {"first": matrix, "run": jnp.stack([matrix] * 3), "single": matrix}
    probe = jax.tree.map(jnp.zeros_like, Probe(states, {n: {"C": c} for n, c in parts.items()}))

    def cost(probe):
        result = rollout(SYSTEM, variables, X, train=True, probe=probe)
        return jnp.sum(weights * result.outputs) + jnp.sum(result.state)

    slopes = quick_jit(jax.grad(cost))(probe)
    params = jax.tree.map(np.asarray, variables.params)
    matrices = [params["first"]["A"], *params["run"]["A"], params["single"]["A"]]
    states = [X]
    for A in matrices:
        states.append(states[-1] @ A.T)
    costates = [np.ones_like(X)]
    for A, weight in zip(matrices[::-1], [*weights[::-1], None], strict=True):
        read = 0 if weight is None else weight @ params["C"]
        costates.insert(0, costates[0] @ A + read)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(slopes.states["first"], costates[0], **close)
    np.testing.assert_allclose(slopes.states["run"], np.stack(costates[1:4]), **close)
    np.testing.assert_allclose(slopes.states["single"], costates[4], **close)
    np.testing.assert_array_equal(slopes.shared["first"]["C"], 0)
    for k, part in enumerate([*slopes.shared["run"]["C"], slopes.shared["single"]["C"]]):
        np.testing.assert_allclose(part, weights[k].T @ states[k + 1], **close)


# The state is a tree; "decay" has no arrays of its own; "tied" has one control for four times.


def moved(stage, state):
    x = jnp.tanh(state["x"] @ stage.params["A"] + stage.time * stage.params["b"])
    stats = {"mean": stage.batch_stats["mean"] + stage.time + jnp.mean(x)}
    return {"x": x, "total": state["total"] + jnp.sum(x**2, axis=-1)}, stats


def decay(stage, state):
    return {**state, "x": state["x"] / (2 + stage.time)}, {}


def total(stage, state):
    return jnp.stack([state["total"], stage.time + jnp.sum(state["x"], axis=-1)], axis=-1), {}


TIMES = (0.0, 0.25, 0.75, 1.0)
UNTIED = System(
    (
        Segment("open", moved, times=(0.5,)),
        Segment("decay", decay, total, length=2),
        Segment("tied", moved, total, length=4, times=TIMES),
        Segment("close", decay, total),
    )
)
TIED = replace(
    UNTIED,
    segments=tuple(replace(segment, tied=segment.name == "tied") for segment in UNTIED.segments),
)


@pytest.fixture
def start() -> dict[str, np.ndarray]:
    return {"x": X, "total": np.zeros(5, np.float32)}


@pytest.fixture
def tied_variables() -> Variables:
    rng = np.random.default_rng(3)

    def own():
        return {"A": rng.normal(size=(4, 4)), "b": rng.normal(size=4)}

    stats = {"open": {"mean": np.zeros(())}, "tied": {"mean": rng.normal(size=4)}}
    variables = Variables({"open": own(), "tied": own()}, stats)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), variables)


def untied(variables: Variables) -> Variables:
    """A copy of the tied parameters for every transition."""
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), variables.params["tied"])
    return variables._replace(params={**variables.params, "tied": copies})


def values_and_gradient(system, variables, start):
    def cost(params):
        result = rollout(system, variables._replace(params=params), start, train=True)
        return jnp.sum(jnp.sin(result.outputs)) + jnp.sum(result.state["x"]), result

    return quick_jit(jax.grad(cost, has_aux=True))(variables.params)


@pytest.mark.parametrize("execution", EXECUTIONS, ids=str)
def test_tied_transitions_are_equal_ones_with_one_gradient(tied_variables, start, execution):
    gradient, result = values_and_gradient(
        replace(TIED, execution=execution), tied_variables, start
    )
    copies = untied(tied_variables)
    wanted_gradient, wanted = values_and_gradient(UNTIED, copies, start)
    assert result.outputs.shape == (7, 5, 2)
    assert_close(result, wanted._replace(states={}))
    assert_close(gradient["open"], wanted_gradient["open"])
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), wanted_gradient["tied"])
    assert_close(gradient["tied"], summed)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("unroll", [False, True])
def test_trees_times_and_runs_without_arrays_are_the_recursion(tied_variables, start, tied, unroll):
    system = replace(TIED if tied else UNTIED, execution=Execution(unroll=unroll))
    variables = tied_variables if tied else untied(tied_variables)
    result = rollout(system, variables, start, train=True)
    params, stats = jax.tree.map(np.asarray, tuple(tied_variables))
    state, outputs, means = {name: np.asarray(leaf) for name, leaf in start.items()}, [], []

    def move(name, time):
        own = params[name]
        state["x"] = np.tanh(state["x"] @ own["A"] + time * own["b"])
        state["total"] = state["total"] + (state["x"] ** 2).sum(-1)
        return time + state["x"].mean()

    def read(time):
        outputs.append(np.stack([state["total"], time + state["x"].sum(-1)], axis=-1))

    opened = move("open", 0.5)
    for time in range(2):
        read(time)
        state["x"] = state["x"] / (2 + time)
    for time in TIMES:
        read(time)
        means.append(move("tied", time))
    read(0)
    state["x"] = state["x"] / 2
    assert_close(result.state, state)
    assert_close(result.outputs, np.stack(outputs))
    assert_close(result.batch_stats["open"]["mean"], opened)
    assert_close(result.batch_stats["tied"]["mean"], stats["tied"]["mean"] + means)


def test_a_tied_run_is_one_stage(tied_variables, start):
    counts = {
        segment.name: (segment.stages, segment.transitions, segment.outputs)
        for segment in TIED.segments
    }
    assert counts == {"open": (1, 1, 0), "decay": (2, 2, 2), "tied": (1, 4, 4), "close": (1, 1, 1)}
    result = rollout(TIED, tied_variables, start, train=True, keep_states=True)
    assert jax.tree.map(np.shape, result.states) == {
        "open": {"x": (5, 4), "total": (5,)},
        "decay": {"x": (2, 5, 4), "total": (2, 5)},
        "tied": {"x": (5, 4), "total": (5,)},
        "close": {"x": (5, 4), "total": (5,)},
    }


def kept(system, variables, start) -> int:
    """How many numbers the backward pass is given, beside its inputs."""

    def cost(params):
        result = rollout(system, variables._replace(params=params), start, train=True)
        return jnp.sum(result.outputs) + jnp.sum(result.state["x"])

    _, backward = jax.vjp(cost, variables.params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward) if hasattr(leaf, "size"))


@pytest.mark.parametrize("unroll", [False, True])
def test_recomputation_keeps_less(tied_variables, start, unroll):
    everything, nothing = (
        kept(replace(TIED, execution=Execution(remat=remat, unroll=unroll)), tied_variables, start)
        for remat in ("everything", "none")
    )
    assert everything < nothing


def test_runs_are_scanned_unless_unrolled(tied_variables, start):
    def scans(system):
        return str(
            jax.make_jaxpr(lambda: rollout(system, tied_variables, start, train=True).state)()
        ).count("scan[")

    assert scans(TIED) == 2
    assert scans(replace(TIED, execution=Execution(unroll=True))) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tied": True}, "segment 'run' is tied, but has no length."),
        ({"length": 0}, "segment 'run' has length 0: leave it out."),
        ({"length": 3, "times": (0.0, 1.0)}, "segment 'run' has 2 times, but 3 transitions: each"),
        ({"times": ()}, "segment 'run' has 0 times, but 1 transitions"),
    ],
)
def test_impossible_segments_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        Segment("run", transition, **fields)
    assert message in str(refusal.value)


@pytest.mark.parametrize("names", [(), ("run", "run")])
def test_segments_need_names_of_their_own(names):
    with pytest.raises(ValueError, match="a system needs segments of different names, but got"):
        System(tuple(Segment(name, transition) for name in names))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"remat": "all"}, "remat is 'all', but must be one of none, convolutions, everything."),
        ({"remat": True}, "remat is True, but must be one of none, convolutions, everything."),
        ({"precision": "float16"}, "precision is 'float16', but must be one of float32, bfloat16"),
    ],
)
def test_unknown_executions_are_refused(fields, message):
    with pytest.raises(ValueError) as refusal:
        Execution(**fields)
    assert message in str(refusal.value)


def assert_close(ours, theirs):
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
