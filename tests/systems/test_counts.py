"""Multiply-adds against a count of every product, layer by layer."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ocresnet.systems.architecture import Architecture
from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.counts import multiply_adds, segment_sizes
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.summary import summary
from ocresnet.systems.system import Segment, System, Variables
from ocresnet.systems.transformer import TransformerConfig
from tests.systems.every_family import EVERY, RESIDUAL


def test_homogeneous_by_hand():
    config = ResNetConfig.homogeneous(
        blocks=2, filters=4, image_shape=(6, 5, 3), classes=7, stem_stride=2
    )
    cost = multiply_adds(config)
    assert cost.stem == 3 * 3 * (9 * 3 * 4)
    np.testing.assert_array_equal(cost.blocks, [2 * 9 * (9 * 4 * 4)] * 2)
    np.testing.assert_array_equal(cost.exits, [4 * 7] * 2)
    assert cost.output_block == 4 * 7
    assert cost.total == cost.stem + cost.blocks.sum() + 4 * 7


def test_standard_by_hand():
    """Levels of 8x6, 4x3 and 2x2 pixels; the last level has no blocks (a SubResNet)."""
    config = ResNetConfig(blocks=(1, 2, 0), filters=(4, 6, 8), image_shape=(8, 6, 1), classes=3)
    cost = multiply_adds(config)
    first = 48 * 9 * (4 * 4 + 4 * 4)
    transition = 12 * 9 * (4 * 6 + 6 * 6) + 12 * 4 * 6
    second = 12 * 9 * (6 * 6 + 6 * 6)
    np.testing.assert_array_equal(cost.blocks, [first, transition, second])
    # All projections of a head are computed on the last level's 4 pixels.
    from_first, from_second = 4 * (4 * 6 + 6 * 8) + 8 * 3, 4 * 6 * 8 + 8 * 3
    np.testing.assert_array_equal(cost.exits, [from_first, from_first, from_second])
    assert cost.output_block == from_second


def by_formula(config):
    """(stem, blocks, skips, exits, output block), from sizes of images, kernels and channels."""
    imagenet, bottleneck = config.stem == "imagenet", config.block == "bottleneck"

    def halve(size, stride):
        return -(-size // stride)

    height, width, channels = config.image_shape
    stride = 2 if imagenet else config.stem_stride
    height, width = halve(height, stride), halve(width, stride)
    stem = (49 if imagenet else 9) * height * width * channels * config.filters[0]
    if imagenet:
        height, width = halve(height, 2), halve(width, 2)
    before = [config.filters[0]]  # channels that enter each level
    pixels = [height * width]  # and its pixels
    for level, filters in enumerate(config.filters):
        stride = 2 if level else 1
        height, width = halve(height, stride), halve(width, stride)
        pixels.append(height * width)
        before.append(4 * filters if bottleneck else filters)

    def projection(level, at):
        return at * before[level] * before[level + 1]

    def head(level):
        """Of an exit whose state has the shape of `level`."""
        later = range(level + 1, len(config.filters))
        return sum(projection(i, pixels[-1]) for i in later) + before[-1] * config.classes

    blocks, skips, exits, waiting, state = [], [], [], 0, -1 if bottleneck else 0
    for level, count in enumerate(config.blocks):
        if level in config.bare_levels:
            waiting, state = waiting + projection(level, pixels[level + 1]), level
        for _ in range(count):
            opens = state < level
            filters, after = config.filters[level], before[level + 1]
            channels = before[level] if opens else after
            old, new = pixels[level if opens else level + 1], pixels[level + 1]
            if bottleneck:  # the 3x3 convolution takes the stride
                cost = old * channels * filters + new * (9 * filters**2 + filters * after)
            else:
                cost = 9 * new * (channels * filters + filters**2)
            exits.append(head(state))
            blocks.append(cost + (projection(level, new) if opens else 0))
            skips.append(waiting)
            waiting, state = 0, level
    return stem, blocks, skips, exits, head(state)


@pytest.mark.parametrize(
    "config",
    [
        *(RESIDUAL[name] for name in ("levels", "bottlenecks", "bare skips, separate")),
        ResNetConfig.standard(54),
        ResNetConfig.standard(54, image_shape=(31, 17, 1), stem_stride=2).subresnet(20),
        ResNetConfig.homogeneous(54, classes=100).subresnet(0),
        ResNetConfig.imagenet(34),
        ResNetConfig.imagenet(50).without(range(2, 8)),
        ResNetConfig.imagenet(152).subresnet(0),
    ],
)
def test_residual_networks_by_formula(config):
    cost = multiply_adds(config)
    stem, blocks, skips, exits, output_block = by_formula(config)
    assert (cost.stem, cost.output_block) == (stem, output_block)
    np.testing.assert_array_equal(cost.blocks, blocks)
    np.testing.assert_array_equal(cost.skips, skips)
    np.testing.assert_array_equal(cost.exits, exits if config.exits != "none" else 0)
    assert cost.total == stem + sum(blocks) + sum(skips) + output_block


def test_residual_mlp_by_hand():
    config = ResidualMLPConfig(blocks=3, width=5, hidden=4, classes=7, image_shape=(2, 3, 4))
    cost = multiply_adds(config)
    assert (cost.stem, cost.output_block) == (24 * 5, 5 * 7)
    np.testing.assert_array_equal(cost.blocks, [2 * 5 * 4] * 3)
    np.testing.assert_array_equal(cost.skips, [0] * 3)
    np.testing.assert_array_equal(cost.exits, [5 * 7] * 3)
    alone = multiply_adds(replace(config, exits="none"))
    np.testing.assert_array_equal(alone.exits, [0] * 3)
    assert alone.total == cost.total == 24 * 5 + 3 * 40 + 35


def test_transformer_by_hand():
    """Six tokens of 2x2 pixels; the products of queries with keys, and of their weights with
    values, are counted too."""
    config = TransformerConfig(
        blocks=3, width=6, heads=2, hidden=5, patch=2, classes=7, image_shape=(4, 6, 3)
    )
    cost = multiply_adds(config)
    assert (cost.stem, cost.output_block) == (6 * 12 * 6, 6 * 7)
    np.testing.assert_array_equal(cost.blocks, [6 * (4 * 36 + 2 * 6 * 6 + 2 * 30)] * 3)
    np.testing.assert_array_equal(cost.exits, [6 * 7] * 3)


def test_networks_without_blocks_by_hand():
    mlp = multiply_adds(MLPConfig((4, 4, 4), classes=3, image_shape=(2, 1, 2)))
    assert (mlp.stem, mlp.output_block, mlp.total) == (
        3 * 16,
        12,
        60,
    )  # the first segment, and the rest
    assert len(mlp.blocks) == len(mlp.skips) == len(mlp.exits) == 0
    cnn = multiply_adds(CNNConfig((3, 3, 4), (2, 1, 2), (5,), classes=3, image_shape=(7, 6, 2)))
    assert cnn.stem == 12 * 9 * 2 * 3
    assert cnn.output_block == 12 * 9 * 3 * 3 + 4 * 9 * 3 * 4 + 4 * 4 * 5 + 5 * 3


@dataclass(frozen=True)
class Recurrent(Architecture):
    """x_0 = (image, 0), then four times x = (a, b + tanh(a) W) with one W, then b."""

    def system(self, **choices):
        def again(stage, state):
            a, b = state
            return (a, b + jnp.tanh(a) @ stage.params), {}

        def read(stage, state):
            return jnp.concatenate(state, axis=-1) @ stage.shared["W"], {}

        def pair(images):
            flat = images.reshape(len(images), -1)
            return flat, jnp.zeros_like(flat)

        segments = (
            Segment("again", again, read, length=4, tied=True, times=(0.0, 0.5, 1.0, 1.5)),
            Segment("end", lambda stage, state: (read(stage, state)[0], {})),
        )
        return System(segments, shared=("W",), initial_state=pair)

    def init(self, key):
        return Variables({"again": jnp.ones((6, 6)), "W": jnp.ones((12, self.classes))}, {})


def test_tied_segments_and_trees_of_states_are_counted():
    config = Recurrent(classes=3, image_shape=(2, 3, 1))
    again, end = segment_sizes(config)
    assert (again.parameters, again.transition, again.output) == (36, 36, 36)
    assert (end.parameters, end.transition, end.output) == (0, 36, 0)
    assert [leaf.shape for leaf in again.state] == [(1, 6), (1, 6)]
    cost = multiply_adds(config)
    assert (cost.stem, cost.output_block) == (4 * 36, 36)
    lines = summary(config).splitlines()
    assert lines[0].startswith("Recurrent(classes=3, image_shape=(2, 3, 1)")
    assert [line.split() for line in lines[1:]] == [
        ["segment", "transitions", "state", "parameters", "multiply-adds"],
        ["again", "4", "6,", "6", "36", "144"],
        ["end", "1", "6,", "6", "0", "36"],
        ["shared", "36"],
        ["all", "72", "180"],
    ]


@pytest.mark.parametrize("name", EVERY)
def test_tables_add_up(name):
    architecture = EVERY[name]
    lines = summary(architecture).splitlines()
    assert lines == [line.rstrip() for line in lines]
    rows = [line.replace(",", "").split() for line in lines[2:]]
    numbers = {name: [int(cell) for cell in cells[-2:]] for name, *cells in rows}
    total = numbers.pop("all")
    shared = numbers.pop("shared", [0])
    assert total == [sum(column) for column in zip(*numbers.values(), [*shared, 0], strict=True)]
    params = jax.eval_shape(architecture.init, jax.random.key(0)).params
    wanted = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total == [wanted, multiply_adds(architecture).total]
    names = [segment.name for segment in architecture.system().segments]
    assert list(numbers) == names
