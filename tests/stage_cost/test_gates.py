"""Gates on residual branches against scaling the last layer of every branch, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.costs import make_cost
from ocresnet.stage_cost.gates import gate_derivatives, gated_outputs
from ocresnet.systems.blocks import blocks, with_blocks
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution
from tests.conftest import apply, random_images, to_float64
from tests.stage_cost.families import FAMILIES, RESIDUAL_MLP, PairOfStates
from tests.stage_cost.gated_oracle import random_network

EXACT = Execution(precision="float64")


def scaled(network: Network, gates: np.ndarray) -> Network:
    """A branch ends in an affine layer: that of every block, times its gate."""

    def one(block, gate):
        branch = block.params["residual"]
        last = max(name for name in branch if name.startswith(("convolution", "dense")))
        times_gate = jax.tree.map(lambda leaf: leaf * gate, branch[last])
        return block._replace(params={**block.params, "residual": {**branch, last: times_gate}})

    listed = [one(block, gate) for block, gate in zip(blocks(network), gates, strict=True)]
    return with_blocks(network, network.architecture, listed)


@pytest.fixture(params=["homogeneous", "bottleneck", "residual_mlp"], scope="module")
def network(request) -> Network:
    return random_network(FAMILIES[request.param])


def outputs(network: Network, images: np.ndarray) -> np.ndarray:
    return apply(network.architecture, network.variables, images, execution=EXACT)[0]


def test_gates_scale_the_branches(network):
    with jax.enable_x64(True):
        network = to_float64(network)
        images = random_images(network.architecture, batch=3).astype(np.float64)
        gates = np.random.default_rng(0).normal(size=(network.architecture.depth, 3))
        run = (network.architecture, network.variables, images)
        got = gated_outputs(*run, jnp.asarray(gates), execution=EXACT)
        for sample in range(3):  # every sample has gates of its own
            wanted = outputs(scaled(network, gates[:, sample]), images)
            np.testing.assert_allclose(got[:, sample], wanted[:, sample], rtol=1e-10, atol=1e-10)
        got = gated_outputs(*run, jnp.asarray(gates[:, 0]), own_output=True, execution=EXACT)
        np.testing.assert_allclose(
            got, outputs(scaled(network, gates[:, 0]), images)[-1:], rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("loss", ["cross_entropy", "l2"])
def test_derivatives_are_central_differences(network, loss):
    value, step = make_cost(loss).value, 1e-6
    labels = np.arange(4) % 3
    with jax.enable_x64(True):
        network = to_float64(network)
        images = random_images(network.architecture, batch=4).astype(np.float64)
        got = gate_derivatives(
            network.architecture, network.variables, images, labels, loss=value, execution=EXACT
        )
        assert got.shape == (network.architecture.depth, 4) and got.dtype == np.float64
        assert np.abs(got).min(axis=0).max() > 1e-4
        for direction, derivative in zip(np.eye(len(got)), got, strict=True):
            low, high = (
                value(outputs(scaled(network, 1 + sign * step * direction), images)[-1], labels)
                for sign in (-1, 1)
            )
            wanted = (high - low) / (2 * step)
            np.testing.assert_allclose(derivative, wanted, rtol=1e-6, atol=1e-8)


def test_the_state_can_be_any_tree():
    plain = random_network(RESIDUAL_MLP)
    paired = plain.replace(architecture=PairOfStates(**vars(RESIDUAL_MLP)))
    images = random_images(RESIDUAL_MLP)
    gates = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    got, wanted = (
        gated_outputs(network.architecture, network.variables, images, gates)
        for network in (paired, plain)
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_a_wrong_number_of_gates_is_refused(network):
    images = random_images(network.architecture)
    with pytest.raises(ValueError, match=r"gates have shape \(2,\)"):
        gated_outputs(network.architecture, network.variables, images, np.ones(2, np.float32))
