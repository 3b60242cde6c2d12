"""Reading out a network that was trained without exits."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ocresnet.stage_cost.exits import calibrate_exits
from ocresnet.systems.network import Network
from tests.conftest import SMALL, apply, random_images, random_variables
from tests.systems import numpy_resnet


@pytest.fixture
def plain() -> Network:
    config = replace(SMALL["standard"], exits="none")
    return Network(config, *random_variables(config))


def test_exits_get_the_mean_moments_of_the_batches_and_nothing_else_changes(plain):
    images = random_images(plain.architecture, batch=9)
    network = calibrate_exits(plain, images, batch_size=4)
    assert network.architecture == replace(plain.architecture, exits="shared")
    assert network.params is plain.params
    # Exit 0 reads the stem's output through both projections; the ninth image is left out.
    params, stats = network.params, network.batch_stats
    moments = []
    for batch in (images[:4], images[4:8]):
        x = numpy_resnet.convolve(batch, np.asarray(params["stem"]["convolution"]["kernel"]))
        norm = {key: np.asarray(value) for key, value in params["stem"]["norm"].items()}
        running = {key: np.asarray(value) for key, value in stats["stem"]["norm"].items()}
        x = numpy_resnet.relu(numpy_resnet.batch_norm(norm, running, x, train=False))
        for stage in (1, 2):
            kernel = np.asarray(params["projections"][f"level_{stage}"]["kernel"])
            x = numpy_resnet.project(kernel, x, stage)
        moments.append((x.mean((0, 1, 2)), x.var((0, 1, 2))))
    mean, variance = np.mean(moments, axis=0)
    exit_stats = stats["level_0"]["exit"]["norm"]
    np.testing.assert_allclose(exit_stats["mean"][0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exit_stats["variance"][0], variance, rtol=1e-4, atol=1e-5)
    for name, entry in plain.batch_stats.items():
        for part, old in entry.items():
            jax.tree.map(np.testing.assert_array_equal, stats[name][part], old)


def test_the_networks_own_output_is_unchanged(plain):
    images = random_images(plain.architecture, batch=6)
    network = calibrate_exits(plain, images)
    before, _ = apply(plain.architecture, plain.variables, images)
    after, _ = apply(network.architecture, network.variables, images)
    assert before.shape[0] == 1 and after.shape[0] == plain.architecture.depth + 1
    np.testing.assert_allclose(after[-1], before[-1], rtol=1e-5, atol=1e-5)


def test_no_images_are_refused(plain):
    with pytest.raises(ValueError, match="at least one image"):
        calibrate_exits(plain, random_images(plain.architecture, batch=0))
