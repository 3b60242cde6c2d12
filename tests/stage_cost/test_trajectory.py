"""Trajectories against sums over single samples."""

import jax
import numpy as np
import pytest

from ocresnet.costs import make_cost
from ocresnet.stage_cost.trajectory import logits_over_depth, parameter_norms, trajectory
from ocresnet.systems.network import Network
from tests.conftest import SMALL, apply, random_images, random_network
from tests.stage_cost.families import FAMILIES, MLP
from tests.systems import numpy_resnet


@pytest.fixture(params=SMALL)
def network(request) -> Network:
    return random_network(SMALL[request.param])


def test_means_do_not_depend_on_the_batch_size(network):
    images = random_images(network.architecture, batch=7)
    labels = np.arange(7) % 3
    logits = np.asarray(apply(network.architecture, network.variables, images)[0], np.float64)
    loss = make_cost("l2").value
    for batch_size in (3, 7, 100):
        measured = trajectory(network, images, labels, loss=loss, batch_size=batch_size)
        target = np.eye(3)[labels]
        np.testing.assert_allclose(
            measured.losses, 0.5 * ((logits - target) ** 2).sum(-1).mean(-1), rtol=1e-5
        )
        np.testing.assert_allclose(measured.accuracies, (logits.argmax(-1) == labels).mean(-1))
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(
            measured.probabilities, (probabilities * target).sum(-1).mean(-1), rtol=1e-5
        )
        residuals = np.linalg.norm(np.diff(logits, axis=0), axis=-1).mean(-1)
        np.testing.assert_allclose(measured.output_residuals, residuals, rtol=1e-5)
        got = logits_over_depth(network, images, batch_size=batch_size)
        np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)


def test_the_own_output_alone_is_the_last_of_all():
    for architecture in (
        *(FAMILIES[name] for name in ("homogeneous", "residual_mlp", "transformer")),
        MLP,
    ):
        network = random_network(architecture)
        images, labels = random_images(architecture, batch=4), np.arange(4) % 3
        alone = trajectory(network, images, labels, own_output=True)
        everything = trajectory(network, images, labels)
        assert [len(values) for values in alone] == [1, 1, 1, 0]
        for values, wanted in zip(alone[:3], everything[:3], strict=True):
            np.testing.assert_allclose(values[0], wanted[-1], rtol=1e-5)


def test_training_mode_normalises_with_the_statistics_of_each_batch(network):
    images = random_images(network.architecture, batch=7)
    labels = np.arange(7) % 3
    params, stats = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), tuple(network.variables)
    )
    for batch_size, batches in ((3, [slice(0, 3), slice(3, 6)]), (100, [slice(0, 7)])):
        losses, residuals = [], []
        for batch in batches:
            logits = numpy_resnet.forward(
                network.architecture, params, stats, images[batch].astype(np.float64), train=True
            )
            chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            right = np.take_along_axis(chances, labels[batch][None, :, None], -1)
            losses.append(-np.log(right[..., 0]))
            residuals.append(np.linalg.norm(np.diff(logits, axis=0), axis=-1))
        measured = trajectory(network, images, labels, batch_size=batch_size, mode="training")
        np.testing.assert_allclose(
            measured.losses, np.concatenate(losses, 1).mean(1), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            measured.output_residuals, np.concatenate(residuals, 1).mean(1), rtol=1e-3
        )
    inference = trajectory(network, images, labels)
    assert np.abs(inference.losses - measured.losses).max() > 1e-2


def test_parameter_norms_are_those_of_each_residual_branch(network):
    norms = parameter_norms(network.architecture, network.params)
    assert norms.shape == (network.architecture.depth,)
    total = sum(
        float(np.sum(np.square(leaf)))
        for name, entry in network.params.items()
        if "residual" in entry
        for leaf in jax.tree.leaves(entry["residual"])
    )
    np.testing.assert_allclose(np.sum(np.square(norms)), total, rtol=1e-5)
    first = network.params["level_0"]["residual"]
    square = sum(float(np.sum(np.square(leaf[0]))) for leaf in jax.tree.leaves(first))
    np.testing.assert_allclose(norms[0], np.sqrt(square), rtol=1e-5)


def test_what_does_not_fit_is_refused(network):
    images = random_images(network.architecture, batch=4)
    with pytest.raises(ValueError, match="no samples"):
        trajectory(network, images[:0], np.zeros(0, int))
    with pytest.raises(ValueError, match="4 images, but 3 labels"):
        trajectory(network, images, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 2"):
        trajectory(network, images, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"labels have shape \(4, 3\) .* one-hot labels"):
        trajectory(network, images, np.eye(3)[[0, 1, 2, 0]])
    with pytest.raises(ValueError, match="labels have shape .4,. and type float64"):
        trajectory(network, images, np.zeros(4))
    with pytest.raises(ValueError, match="network is a ndarray, but must be a Network"):
        trajectory(images, network, np.zeros(4, int))
    with pytest.raises(ValueError, match=r"images have shape \(4,\), but this network needs"):
        trajectory(network, np.zeros(4, int), images)
    with pytest.raises(ValueError, match="images are a dict"):
        trajectory(network, {"images": images}, np.zeros(1, int))
    with pytest.raises(ValueError, match="batch_size is -1"):
        trajectory(network, images, np.zeros(4, int), batch_size=-1)
    with pytest.raises(ValueError, match="mode is 'train', but must be one of inference, training"):
        trajectory(network, images, np.zeros(4, int), mode="train")
    with pytest.raises(ValueError, match="no samples"):
        logits_over_depth(network, images[:0])
    with pytest.raises(ValueError, match="needs residual blocks, and a MLPConfig has none"):
        parameter_norms(MLP, random_network(MLP).params)
