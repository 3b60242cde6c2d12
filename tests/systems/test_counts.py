"""Multiply-adds against a count of every product, layer by layer."""

import numpy as np

from ocresnet.systems.counts import multiply_adds
from ocresnet.systems.resnet import ResNetConfig


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
    """Stages of 8x6, 4x3 and 2x2 pixels; the last stage has no blocks (a SubResNet)."""
    config = ResNetConfig(blocks=(1, 2, 0), filters=(4, 6, 8), image_shape=(8, 6, 1), classes=3)
    cost = multiply_adds(config)
    first = 48 * 9 * (4 * 4 + 4 * 4)
    transition = 12 * 9 * (4 * 6 + 6 * 6) + 12 * 4 * 6
    second = 12 * 9 * (6 * 6 + 6 * 6)
    np.testing.assert_array_equal(cost.blocks, [first, transition, second])
    # All projections of a head are computed on the last stage's 4 pixels.
    from_first, from_second = 4 * (4 * 6 + 6 * 8) + 8 * 3, 4 * 6 * 8 + 8 * 3
    np.testing.assert_array_equal(cost.exits, [from_first, from_first, from_second])
    assert cost.output_block == from_second
