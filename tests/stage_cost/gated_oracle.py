"""An independent network in numpy whose residual branches have gates; an oracle for surgery."""

import jax
import numpy as np

from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from tests.conftest import SMALL
from tests.systems import numpy_resnet

WHERE = {
    SMALL["homogeneous"].blocks: [("level_0", k) for k in range(4)],
    SMALL["standard"].blocks: [
        ("level_0", 0),
        ("level_0", 1),
        ("opening_1", ...),
        ("level_1", 0),
        ("opening_2", ...),
        ("level_2", 0),
    ],
}
"""The segment of each block, and its place there."""


def random_network(config: ResNetConfig, seed: int = 0) -> Network:
    """Arrays drawn in numpy, which compiles nothing; nothing is at a special value."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[-4:-1] if "convolution" in str(path) else leaf.shape[-2])
            value = noise * np.sqrt(2 / fan_in)
        else:
            value = np.exp(0.3 * noise) if path[-1].key in ("variance", "scale") else 0.3 * noise
        return jax.numpy.asarray(value, leaf.dtype)

    shapes = jax.eval_shape(lambda: config.init(jax.random.key(0)))
    return Network(config, *jax.tree.map_with_path(draw, shapes))


def oracle_losses(network, data, gates, of="cross_entropy"):
    """Of every output for every sample, [outputs, samples], and the outputs, in float64."""
    params, stats = jax.tree.map(
        lambda leaf: np.array(leaf, np.float64), (network.params, network.batch_stats)
    )
    for (segment, place), factor in zip(WHERE[network.architecture.blocks], gates, strict=True):
        params[segment]["residual"]["convolution_2"]["kernel"][place] *= factor
    logits = numpy_resnet.forward(
        network.architecture, params, stats, data.images.astype(np.float64), train=False
    )
    right = logits[:, np.arange(len(data.labels)), data.labels]
    losses = np.log(np.exp(logits).sum(-1)) - right
    if of == "l2":
        losses = 0.5 * ((logits - np.eye(3)[data.labels]) ** 2).sum(-1)
    return losses, logits


def ones_without(depth, *removed):
    gates = np.ones(depth)
    gates[list(removed)] = 0
    return gates
