"""Inference that stops at the first exit that is sure, and saves the rest of the computation.

A sample leaves the batch at the first exit k whose confidence (the largest softmax probability of
yhat_k) reaches a threshold. The samples that stay are moved together into a smaller batch, so that
the blocks after it really compute less. Batch sizes are halved step by step, which bounds the
number of programs to compile.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.trajectory import check_batch_size
from ocresnet.systems import resnet
from ocresnet.systems.network import Network
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.systems.system import PyTree, Segment, Variables

Array = jax.Array

NEVER = 1.01
"""A confidence that no exit reaches."""

SMALLEST_SHARE = 16
"""A batch is not made smaller than this part of its size."""

LEFT = -1
"""In place of a sample's index: no sample that is still waiting."""


class Predictions(NamedTuple):
    """What was predicted, and with how much of the network.

    Attributes:
      labels: predicted class, [samples].
      confidences: largest softmax probability at the exit that was used, [samples].
      blocks: residual blocks that were computed for the sample, [samples].
    """

    labels: np.ndarray
    confidences: np.ndarray
    blocks: np.ndarray


def predict(
    network: Network,
    images: np.ndarray | Array,
    *,
    confidence: float | None = None,
    batch_size: int = 256,
    execution: Execution = Execution(),
) -> Predictions:
    """Classify images, each with as many blocks as it needs.

    Args:
      network: the network; early exit needs one with exits.
      images: [samples, height, width, channels], in the units of the network's `pixel_mean`.
      confidence: threshold in (0, 1] on the largest softmax probability; above 1 no sample exits
        early. None: compute the network's own output only.
      batch_size: samples computed at a time.
      execution: precision of the activations.

    Returns:
      Predicted classes, confidences and the depth used for each sample.

    Raises:
      ValueError: for a confidence that is not positive, a network without exits, or images of
        another shape.
    """
    if confidence is not None:
        if not confidence > 0:
            raise ValueError(f"confidence is {confidence}, but must be positive.")
        if network.config.exits == "none":
            raise ValueError(
                "this network has no exits to leave at: give it some with calibrate_exits first."
            )
    if len(images) == 0:
        raise ValueError("there are no images to classify.")
    check_batch_size(batch_size)
    resnet.check_images(network.config, images)
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
    if confidence is None:
        parts = [_predict_whole(network, batch, execution) for batch in batches]
    else:
        parts = [_predict_early(network, batch, confidence, execution) for batch in batches]
    return Predictions(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _predict_whole(
    network: Network, images: np.ndarray | Array, execution: Execution
) -> Predictions:
    config = replace(network.config, exits="none")
    labels, confidences = _own_output(config, network.variables, images, execution)
    blocks = np.full(len(images), config.depth)
    return Predictions(np.asarray(labels), np.asarray(confidences), blocks)


def _predict_early(
    network: Network, images: np.ndarray | Array, confidence: float, execution: Execution
) -> Predictions:
    config, variables = network.config, network.variables
    result = Predictions(
        np.zeros(len(images), np.int64),
        np.zeros(len(images), np.float32),
        np.zeros(len(images), np.int64),
    )
    # The sample that each row of the state belongs to; LEFT once it has left, and for padding.
    samples = np.arange(len(images))
    smallest = max(len(images) // SMALLEST_SHARE, 1)

    def record(chosen: np.ndarray, labels: Array, confidences: Array, block: int) -> None:
        result.labels[samples[chosen]] = np.asarray(labels)[chosen]
        result.confidences[samples[chosen]] = np.asarray(confidences)[chosen]
        result.blocks[samples[chosen]] = block

    block = 0
    state = _start(config, variables, images, execution)
    segments = resnet.resnet_system(config).segments
    for position, segment in enumerate(segments[1:-1], start=1):
        for index in range(segment.length or 1):
            if segment.output is None:  # a bare skip
                state = _advance(config, position, variables, index, state)
                continue
            labels, confidences = _read_exit(config, position, variables, index, state)
            sure = (np.asarray(confidences) >= confidence) & (samples != LEFT)
            record(sure, labels, confidences, block)
            samples[sure] = LEFT
            if (samples == LEFT).all():
                return result
            samples, state = _compact(samples, state, smallest)
            state = _advance(config, position, variables, index, state)
            block += 1
    labels, confidences = _sureness(_advance(config, len(segments) - 1, variables, 0, state))
    record(samples != LEFT, labels, confidences, block)
    return result


def _compact(samples: np.ndarray, state: Array, smallest: int) -> tuple[np.ndarray, Array]:
    """Move the rows that stay together, where that halves the state at least."""
    rows = np.flatnonzero(samples != LEFT)
    size = len(samples)
    while size // 2 >= max(len(rows), smallest):
        size //= 2
    if size == len(samples):
        return samples, state
    padding = size - len(rows)
    state = _take(state, np.pad(rows, (0, padding)))
    return np.pad(samples[rows], (0, padding), constant_values=LEFT), state


@partial(jax.jit, static_argnames=("config", "execution"))
def _own_output(
    config: ResNetConfig, variables: Variables, images: Array, execution: Execution
) -> tuple[Array, Array]:
    return _sureness(resnet.apply(config, variables, images, execution=execution)[0][-1])


@jax.jit
def _take(state: Array, rows: Array) -> Array:
    return state[rows]


@partial(jax.jit, static_argnames=("config", "execution"))
def _start(
    config: ResNetConfig, variables: Variables, images: Array, execution: Execution
) -> Array:
    """x_0: the stem's output."""
    stem = resnet.resnet_system(config).segments[0]
    images = resnet.normalise(config, images, execution)
    params, stats = variables.params[stem.name], variables.batch_stats[stem.name]
    return stem.transition({}, params, stats, images, False)[0]


@partial(jax.jit, static_argnames=("config", "position"))
def _advance(
    config: ResNetConfig, position: int, variables: Variables, index: Array, state: Array
) -> Array:
    """One transition of the segment at `position`; `index` counts inside the segment."""
    segment, shared, params, stats = _controls(config, position, variables, index)
    return segment.transition(shared, params, stats, state, False)[0]


@partial(jax.jit, static_argnames=("config", "position"))
def _read_exit(
    config: ResNetConfig, position: int, variables: Variables, index: Array, state: Array
) -> tuple[Array, Array]:
    """Predicted class and confidence of the exit before that transition."""
    segment, shared, params, stats = _controls(config, position, variables, index)
    assert segment.output is not None
    return _sureness(segment.output(shared, params, stats, state, False)[0])


@jax.jit
def _sureness(logits: Array) -> tuple[Array, Array]:
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.argmax(logits, axis=-1), jnp.max(probabilities, axis=-1)


def _controls(
    config: ResNetConfig, position: int, variables: Variables, index: Array
) -> tuple[Segment, PyTree, PyTree, PyTree]:
    system = resnet.resnet_system(config)
    segment = system.segments[position]
    shared = {name: variables.params[name] for name in system.shared}
    controls = tuple(tree.get(segment.name, {}) for tree in variables)
    if segment.length is not None:
        controls = jax.tree.map(lambda leaf: leaf[index], controls)
    return (segment, shared, *controls)
