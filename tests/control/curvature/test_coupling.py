"""Kronecker factors of parallel layers: of each, of those that read one input, of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.control.curvature import diagonal, ekfac, kfac
from ocresnet.control.optimizer import ocnopt, scale_by_curvature
from ocresnet.problem import Problem, objective
from ocresnet.systems import layers
from ocresnet.systems.layers import Convolution, Parallel
from ocresnet.systems.system import Segment, System
from ocresnet.training.control_optimizers import KFAC, OCNOpt
from tests.control.networks import BATCH, random_batch
from tests.quick import quick_jit

DAMPING, DECAY = 0.1, 0.8
CHOICES = {"damping": DAMPING, "decay": DECAY, "factor_every": 1, "eigen_every": 1}
CURVATURES: dict[str, Callable[..., Any]] = {
    "kfac": lambda coupling: kfac(**CHOICES, coupling=coupling),
    "ekfac": lambda coupling: ekfac(**CHOICES, coupling=coupling),
    "ekfac per_example": lambda coupling: ekfac(
        **CHOICES, coupling=coupling, moments="per_example"
    ),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def two_steps(problem: Problem, params: Any, curvature: Any, features: int = 4) -> Any:
    """The updates of a second batch, and the state after it."""
    optimizer = scale_by_curvature(curvature, problem)

    @quick_jit
    def step(params, state, batch):
        gradient = jax.grad(lambda params: objective(problem, params, {}, *batch))(params)
        return optimizer.update(gradient, state, params, batch=batch)

    _, state = step(params, optimizer.init(params), random_batch(BATCH, features, seed=1))
    return step(params, state, random_batch(BATCH, features, seed=2))


def assert_close(got: Any, wanted: Any) -> None:
    """To 1e-10, and not because both are nothing."""
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), got, wanted)


# Layers that read the same input


class Kind(NamedTuple):
    """A network of two branches that read the same input, [batch, features] -> 3 features."""

    layer: Any
    kernel: tuple[int, ...]
    features: int
    start: Callable
    end: Callable


KINDS = {
    "dense": Kind(layers.dense, (4,), 4, lambda x: x, lambda x: x),
    "projection": Kind(
        layers.dense, (2,), 18, lambda x: x.reshape(-1, 3, 3, 2), lambda x: x.mean((1, 2))
    ),
    "convolution": Kind(
        Convolution((3, 3), 2),
        (3, 3, 2),
        18,
        lambda x: x.reshape(-1, 3, 3, 2),
        lambda x: x.mean((1, 2)),
    ),
}


def split_network(kind: Kind, bias: bool, length: int | None) -> tuple[list[Problem], list[Any]]:
    """The same network as branches of 1 and 2 channels, and as one layer of 3."""
    both = Parallel((("left", kind.layer), ("right", kind.layer)), reads=("x", "x"))

    def branches(stage, x):
        y = both(stage.params, {"x": x})
        return jnp.tanh(jnp.concatenate([y["left"], y["right"]], axis=-1)), {}

    def whole(stage, x):
        return jnp.tanh(kind.layer(stage.params, x)), {}

    def last(stage, x):
        return layers.dense(stage.params, kind.end(x)), {}

    rng = np.random.default_rng(0)
    leading = () if length is None else (length,)
    features = kind.kernel if length is None else (*kind.kernel[:-1], 3)
    kernel = jnp.asarray(rng.normal(size=(*leading, *features, 3)))
    joint = {"kernel": kernel}
    if bias:
        joint["bias"] = jnp.asarray(rng.normal(size=(*leading, 3)))
    parts = {
        name: {key: leaf[..., channels] for key, leaf in joint.items()}
        for name, channels in (("left", slice(0, 1)), ("right", slice(1, 3)))
    }
    output = {"kernel": jnp.asarray(rng.normal(size=(3, 3)))}
    problems, params = [], []
    for transition, layer, own in ((branches, both, parts), (whole, kind.layer, joint)):
        segments = (
            Segment("mix", transition, length=length, layers={"": layer}),
            Segment("output", last, layers={"": layers.dense}),
        )
        problems.append(Problem(System(segments, initial_state=kind.start)))
        params.append({"mix": own, "output": output})
    return problems, params


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(
    ("kind", "bias", "length"),
    [("dense", True, None), ("projection", False, None), ("convolution", True, None)],
)
def test_concatenated_is_the_curvature_of_one_layer(curvature, kind, bias, length):
    """`coupling` is left out: it is the default."""
    (branches, whole), (parts, joint) = split_network(KINDS[kind], bias, length)
    curvature, features = CURVATURES[curvature](None), KINDS[kind].features
    changes, state = two_steps(branches, parts, curvature, features)
    wanted, wanted_state = two_steps(whole, joint, curvature, features)
    together = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves, axis=-1),
        changes["mix"]["left"],
        changes["mix"]["right"],
    )
    assert_close({"mix": together, "output": changes["output"]}, wanted)
    np.testing.assert_allclose(
        state.curvature.entries["mix/(left+right)"].outputs,
        wanted_state.curvature.entries["mix"].outputs,
        rtol=0,
        atol=1e-12,
    )


def test_concatenated_in_a_stacked_segment():
    kind = KINDS["dense"]._replace(kernel=(3,), features=3)
    (branches, whole), (parts, joint) = split_network(kind, True, 2)
    changes, _ = two_steps(branches, parts, kfac(**CHOICES), 3)
    wanted, _ = two_steps(whole, joint, kfac(**CHOICES), 3)
    together = jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves, axis=-1),
        changes["mix"]["left"],
        changes["mix"]["right"],
    )
    assert_close({"mix": together, "output": changes["output"]}, wanted)


# Layers of different inputs


def three_branches(declared: str = "parallel") -> tuple[Problem, Any]:
    """4 features -> tanh of u(x), v(sin x) and w(x): 2, 3 and 2 channels -> 3 classes."""
    names, channels = ("u", "v", "w"), (2, 3, 2)
    parallel = Parallel(tuple((name, layers.dense) for name in names), reads=("x", "sine", "x"))

    def mix(stage, x):
        y = parallel(stage.params, {"x": x, "sine": jnp.sin(x)})
        return jnp.tanh(jnp.concatenate([y[name] for name in names], axis=-1)), {}

    def last(stage, x):
        return layers.dense(stage.params, x), {}

    alone = dict.fromkeys(names, layers.dense)
    own = {"": parallel} if declared == "parallel" else alone
    segments = (Segment("mix", mix, layers=own), Segment("output", last, layers={"": layers.dense}))
    rng = np.random.default_rng(3)

    def dense(*kernel):
        return {
            "kernel": jnp.asarray(rng.normal(size=kernel)),
            "bias": jnp.asarray(rng.normal(size=kernel[1])),
        }

    params = {"mix": {name: dense(4, n) for name, n in zip(names, channels, strict=True)}}
    return Problem(System(segments)), {**params, "output": dense(7, 3)}


class Sums(NamedTuple):
    """Inputs of u, v, w with a one [batch, 15], slopes at their outputs [batch, 7] of each sample's
    cost, and where each layer's rows and channels are."""

    x: np.ndarray
    delta: np.ndarray
    rows: list[slice]
    channels: list[slice]

    def embedded(self) -> np.ndarray:
        """The gradient of every sample, with the layers' as diagonal blocks, [batch, 15, 7]."""
        outer = np.einsum("br,bc->brc", self.x, self.delta)
        mask = np.zeros(outer.shape[1:])
        for rows, channels in zip(self.rows, self.channels, strict=True):
            mask[rows, channels] = 1
        return outer * mask


def sums(params: Any, seed: int) -> Sums:
    """Of the batch of this seed."""
    x, labels = random_batch(BATCH, seed=seed)
    inputs = [jnp.concatenate([part, jnp.ones((BATCH, 1))], axis=1) for part in (x, jnp.sin(x), x)]
    mix = [params["mix"][name] for name in "uvw"]

    def cost(probe):
        y = [layer["kernel"] for layer in mix]
        y = [x[:, :-1] @ kernel for x, kernel in zip(inputs, y, strict=True)]
        y = jnp.concatenate(y, axis=1) + jnp.concatenate([layer["bias"] for layer in mix]) + probe
        logits = jnp.tanh(y) @ params["output"]["kernel"] + params["output"]["bias"]
        return -jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels].sum()

    delta = np.asarray(jax.grad(cost)(jnp.zeros((BATCH, 7))))
    rows = [slice(0, 5), slice(5, 10), slice(10, 15)]
    channels = [slice(0, 2), slice(2, 5), slice(5, 7)]
    return Sums(np.asarray(jnp.concatenate(inputs, axis=1)), delta, rows, channels)


def blocks(tree: Any) -> list[np.ndarray]:
    """Kernel and bias of u, v and w as matrices."""
    return [
        np.concatenate([tree["mix"][name]["kernel"], tree["mix"][name]["bias"][None]])
        for name in "uvw"
    ]


def test_schur_is_the_papers_formula():
    """For u against the two others (`rest`), with G for the papers' B: k_u is
    (A_uu / A_rest)^-1 (D_u + A_ur A_rr^-1 D_r G_rr^-1 G_ru) (G_uu / G_rest)^-1."""
    problem, params = three_branches()
    changes, _ = two_steps(problem, params, CURVATURES["kfac"]("schur"))
    first, second = sums(params, 1), sums(params, 2)
    A, G = (
        (first_part.T @ first_part + second_part.T @ second_part) / 2 / BATCH
        for first_part, second_part in ((first.x, second.x), (first.delta, second.delta))
    )
    pi = np.sqrt((np.trace(A) / 15) / (np.trace(G) / 7))
    A, G = A + pi * DAMPING**0.5 * np.eye(15), G + DAMPING**0.5 / pi * np.eye(7)
    D = second.embedded().mean(0)
    for index, got in enumerate(blocks(changes)):
        of_A, of_G = np.zeros(15, bool), np.zeros(7, bool)
        of_A[second.rows[index]] = of_G[second.channels[index]] = True
        schur = [
            F[np.ix_(own, own)]
            - F[np.ix_(own, ~own)] @ np.linalg.solve(F[np.ix_(~own, ~own)], F[np.ix_(~own, own)])
            for F, own in ((A, of_A), (G, of_G))
        ]
        others = np.linalg.solve(A[np.ix_(~of_A, ~of_A)], D[np.ix_(~of_A, ~of_G)])
        others = others @ np.linalg.solve(G[np.ix_(~of_G, ~of_G)], G[np.ix_(~of_G, of_G)])
        inner = D[np.ix_(of_A, of_G)] + A[np.ix_(of_A, ~of_A)] @ others
        wanted = np.linalg.solve(schur[0], inner) @ np.linalg.inv(schur[1])
        assert np.abs(A[np.ix_(of_A, ~of_A)] @ others).max() > 1e-3
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-10)


def test_ekfac_has_the_moments_of_the_embedded_gradient():
    problem, params = three_branches()
    changes, state = two_steps(problem, params, CURVATURES["ekfac"]("schur"))
    entry = jax.tree.map(np.asarray, state.curvature.entries["mix/(u,v,w)"])
    U_A, U_G, second = entry.input_basis, entry.output_basis, sums(params, 2)
    a, c = np.diag(U_A.T @ entry.inputs @ U_A), np.diag(U_G.T @ entry.outputs @ U_G)
    m = np.outer(np.maximum(a, 0), np.maximum(c, 0))  # the bases are those of this step
    D = second.embedded()
    m = DECAY * m + (1 - DECAY) * BATCH * np.square(U_A.T @ D.mean(0) @ U_G)
    np.testing.assert_allclose(entry.moments, m, rtol=0, atol=1e-10)
    solved = U_A @ (U_A.T @ D.mean(0) @ U_G / (m + DAMPING)) @ U_G.T
    for got, rows, channels in zip(blocks(changes), second.rows, second.channels, strict=True):
        np.testing.assert_allclose(got, solved[rows, channels], rtol=0, atol=1e-10)


def test_per_example_moments_of_the_embedded_gradients():
    """With a basis that stays, the moments of the second batch are averaged into it."""
    problem, params = three_branches()
    choices = {**CHOICES, "eigen_every": 5}
    _, state = two_steps(problem, params, ekfac(**choices, moments="per_example", coupling="schur"))
    entry = jax.tree.map(np.asarray, state.curvature.entries["mix/(u,v,w)"])
    U_A, U_G = entry.input_basis, entry.output_basis
    first, second = sums(params, 1), sums(params, 2)
    start = np.outer(
        np.diag(U_A.T @ (first.x.T @ first.x) @ U_A) / BATCH,
        np.diag(U_G.T @ (first.delta.T @ first.delta) @ U_G) / BATCH,
    )
    squares = np.square(U_A.T @ second.embedded() @ U_G).mean(0)
    np.testing.assert_allclose(entry.moments, (start + squares) / 2, rtol=0, atol=1e-10)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_separate_is_what_layers_of_their_own_have(curvature):
    """To the bit: the same network, with its layers declared one by one."""
    parallel, params = three_branches()
    alone, _ = three_branches("alone")
    got = two_steps(parallel, params, CURVATURES[curvature]("separate"))
    wanted = two_steps(alone, params, CURVATURES[curvature](None))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_couplings_are_different():
    problem, params = three_branches()
    changes = [
        np.concatenate([block.ravel() for block in blocks(two_steps(problem, params, own)[0])])
        for own in map(CURVATURES["kfac"], ("separate", "concatenated", "schur"))
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(changes[one] - changes[other]).max() > 1e-2


# What is refused


def test_an_unknown_coupling_is_refused():
    with pytest.raises(ValueError, match="coupling is 'all', but must be one of separate, conc"):
        kfac(coupling="all")
    with pytest.raises(ValueError, match="coupling is 'all', but must be one of separate, conc"):
        KFAC(coupling="all")


@pytest.mark.parametrize("coupling", ["concatenated", "schur"])
def test_a_nash_equilibrium_needs_players_that_are_not_coupled(coupling):
    problem, _ = three_branches()
    message = f"coupling is '{coupling}', but equilibrium 'nash' needs a curvature that is block"
    with pytest.raises(ValueError, match=message):
        ocnopt(problem, 0.1, curvature=ekfac(coupling=coupling), equilibrium="nash")
    with pytest.raises(ValueError, match=message):
        OCNOpt(coupling=coupling, equilibrium="nash")
    OCNOpt(coupling=coupling)


def test_a_curvature_without_layers_has_no_coupling():
    with pytest.raises(ValueError, match="curvature 'diagonal' has no such setting"):
        OCNOpt(curvature="diagonal", coupling="schur")
    assert not hasattr(diagonal(), "coupling")


def test_schur_needs_as_many_locations():
    both = Parallel((("a", Convolution()), ("b", Convolution(stride=2))), reads=("x", "x"))

    def mix(stage, x):
        return sum(y.mean((1, 2)) for y in both(stage.params, {"x": x}).values()), {}

    problem = Problem(
        System(
            (Segment("mix", mix, layers={"": both}),),
            initial_state=lambda x: x.reshape(-1, 3, 3, 1),
        )
    )
    kernel = {"kernel": jnp.ones((3, 3, 1, 3))}
    params = {"mix": {"a": kernel, "b": kernel}}
    with pytest.raises(ValueError, match="coupling 'schur' needs parallel layers of as many loc"):
        two_steps(problem, params, kfac(coupling="schur"), 9)
    two_steps(problem, params, kfac(), 9)
