"""`rollout` on a small linear system, against a loop written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.system import Segment, System, Variables, rollout, stack, unstack

# x_{k+1} = A_k x_k,  y_k = C x_k with a shared C; the statistics count how often they were seen.


def transition(shared, params, stats, x, train):
    return x @ params["A"].T, {"seen": stats["seen"] + train}


def output(shared, params, stats, x, train):
    return x @ shared["C"].T, {"read": stats["read"] + 10 * train}


SYSTEM = System(
    (
        Segment("first", transition, None, None),
        Segment("run", transition, output, 3),
        Segment("single", transition, output, None),
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


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", ["none", "convolutions", "everything"])
def test_rollout_is_the_recursion(variables, unroll, remat):
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    result = rollout(SYSTEM, variables, x, train=True, unroll=unroll, remat=remat)

    params = jax.tree.map(np.asarray, variables.params)
    state, outputs = x @ params["first"]["A"].T, []
    for matrix in [*params["run"]["A"], params["single"]["A"]]:
        outputs.append(state @ params["C"].T)
        state = state @ matrix.T
    np.testing.assert_allclose(result.state, state, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.outputs, np.stack(outputs), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.batch_stats["run"]["seen"], np.ones(3))
    np.testing.assert_array_equal(result.batch_stats["run"]["read"], np.full(3, 10))
    np.testing.assert_array_equal(result.batch_stats["single"]["read"], 10)


def test_outputs_alone_can_be_trained(variables):
    x = jnp.ones((5, 4))
    stats = rollout(SYSTEM, variables, x, train=False, train_outputs=True).batch_stats
    np.testing.assert_array_equal(stats["run"]["seen"], np.zeros(3))
    np.testing.assert_array_equal(stats["run"]["read"], np.full(3, 10))


def test_stack_undoes_unstack(variables):
    listed = unstack(SYSTEM, variables.params)
    assert isinstance(listed["run"], list) and len(listed["run"]) == 3
    np.testing.assert_array_equal(listed["run"][2]["A"], variables.params["run"]["A"][2])
    np.testing.assert_array_equal(listed["single"]["A"], variables.params["single"]["A"])
    jax.tree.map(np.testing.assert_array_equal, stack(SYSTEM, listed), dict(variables.params))


def test_unknown_remat_is_refused(variables):
    with pytest.raises(ValueError, match="remat is 'all', but must be one of none, convolutions"):
        rollout(SYSTEM, variables, jnp.ones((5, 4)), train=True, remat="all")
