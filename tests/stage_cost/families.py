"""Small networks of several families, and one whose state is no array."""

from dataclasses import dataclass, replace

import jax

from ocresnet.systems.cnn import CNNConfig
from ocresnet.systems.inception import InceptionConfig
from ocresnet.systems.mlp import MLPConfig
from ocresnet.systems.residual_mlp import ResidualMLPConfig
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Segment
from ocresnet.systems.transformer import TransformerConfig
from tests.conftest import SMALL

RESIDUAL_MLP = ResidualMLPConfig(blocks=4, width=6, hidden=5, image_shape=(3, 4, 1), classes=3)
TRANSFORMER = TransformerConfig(
    blocks=4, width=6, heads=2, hidden=5, patch=1, image_shape=(3, 4, 1), classes=3
)

BOTTLENECK = ResNetConfig(
    blocks=(2, 2), filters=(2, 3), block="bottleneck", image_shape=(6, 5, 2), classes=3
)
"""Both levels open with a projection."""

FAMILIES = {
    **SMALL,
    "bottleneck": BOTTLENECK,
    "residual_mlp": RESIDUAL_MLP,
    "transformer": TRANSFORMER,
}

MLP = MLPConfig(hidden=(5, 4), image_shape=(3, 4, 1), classes=3)
CNN = CNNConfig(filters=(3,), strides=(2,), hidden=(), image_shape=(4, 4, 1), classes=3)
INCEPTION = InceptionConfig((2,), (1,), (2,), 2, image_shape=(4, 4, 1), classes=3)
"""Of families without residual blocks."""


@dataclass(frozen=True)
class PairOfStates(ResidualMLPConfig):
    """A residual MLP whose state is a dictionary: what it computes, and what it carries along."""

    def system(self, **options):
        system = super().system(**options)
        segments = [_with_pair(segment) for segment in system.segments]
        return replace(
            system,
            segments=tuple(segments),
            initial_state=lambda images: {
                "x": system.initial_state(images),
                "carried": images[:, 0, 0],
            },
        )


def _with_pair(segment: Segment) -> Segment:
    def pair(function):
        def on_pair(stage, state):
            x, stats = function(stage, state["x"])
            return {**state, "x": x}, stats

        return on_pair

    def last(stage, state):
        return segment.transition(stage, state["x"])

    def output(stage, state):
        return segment.output(stage, state["x"])

    def skip(stage, state):
        return {**state, "x": segment.skip(stage, state["x"])}

    return replace(
        segment,
        transition=last if segment.name == "output_block" else pair(segment.transition),
        output=segment.output and output,
        skip=segment.skip and skip,
    )


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)
