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

from ocresnet.stage_cost.checks import (
    check_batch_size,
    check_exits,
    check_finite,
    check_images,
    check_network,
    check_share,
    residual_architecture,
)
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.fold import advance, shared_parameters, stages
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution, Segment, Stage, State, System, Variables

Array = jax.Array

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
      network: of any family; early exit needs one with exits.
      images: [samples, height, width, channels], in the units of the network's `pixel_mean`.
      confidence: threshold in (0, 1] on the largest softmax probability. None: no sample exits
        early, and the network's own output alone is computed.
      batch_size: samples computed at a time.
      execution: precision of the activations.

    Returns:
      Predicted classes, confidences and the depth used for each sample.

    Raises:
      ValueError: for a confidence that is no such share, a network without exits to leave at,
        images of another shape, or an adaptive solver of an ODE that gave up.

    Example:
      >>> predict(network, images, confidence=0.95).labels
    """
    check_network(network)
    if confidence is not None:
        check_share("confidence", confidence)
        check_exits(residual_architecture(network, "leaving early"), "leave at")
    check_images(network, images)
    if len(images) == 0:
        raise ValueError("there are no images to classify.")
    check_batch_size(batch_size)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    if confidence is None:
        parts = [_predict_whole(network, batch, execution) for batch in batches]
    else:
        parts = [_predict_early(network, batch, confidence, execution) for batch in batches]
    predictions = Predictions(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    check_finite(network.architecture, predictions.confidences)
    return predictions


def _predict_whole(
    network: Network, images: np.ndarray | Array, execution: Execution
) -> Predictions:
    labels, confidences = _own_output(network.architecture, network.variables, images, execution)
    depth = sum(segment.transitions for segment in network.architecture.system().blocks)
    blocks = np.full(len(images), depth)
    return Predictions(np.asarray(labels), np.asarray(confidences), blocks)


def _predict_early(
    network: Network, images: np.ndarray | Array, confidence: float, execution: Execution
) -> Predictions:
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
    run = network.architecture, network.variables, execution
    state = _initial_state(network.architecture, images, execution)
    for position, segment in enumerate(network.architecture.system().segments):
        for index in range(segment.transitions):
            if segment.output is not None:
                labels, confidences = _read_exit(*run, position, index, state)
                sure = (np.asarray(confidences) >= confidence) & (samples != LEFT)
                record(sure, labels, confidences, block)
                samples[sure] = LEFT
                if (samples == LEFT).all():
                    return result
                samples, state = _compact(samples, state, smallest)
            state = _advance(*run, position, index, state)
            block += segment.skip is not None
    labels, confidences = _sureness(state)
    record(samples != LEFT, labels, confidences, block)
    return result


def _compact(samples: np.ndarray, state: State, smallest: int) -> tuple[np.ndarray, State]:
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


@partial(jax.jit, static_argnames=("architecture", "execution"))
def _own_output(
    architecture: Architecture, variables: Variables, images: Array, execution: Execution
) -> tuple[Array, Array]:
    outputs, _ = networks.apply(
        architecture, variables, images, own_output=True, execution=execution
    )
    return _sureness(outputs[-1])


@jax.jit
def _take(state: State, rows: Array) -> State:
    return jax.tree.map(lambda leaf: leaf[rows], state)


@partial(jax.jit, static_argnames=("architecture", "execution"))
def _initial_state(architecture: Architecture, images: Array, execution: Execution) -> State:
    """x_0."""
    return architecture.system(execution=execution).initial_state(images)


@partial(jax.jit, static_argnames=("architecture", "execution", "position"))
def _advance(
    architecture: Architecture,
    variables: Variables,
    execution: Execution,
    position: int,
    index: Array,
    state: State,
) -> State:
    """One transition of the segment at `position`; `index` counts inside the segment."""
    system = architecture.system(execution=execution).with_own_output_only()
    segment, stage = _one_transition(system, variables, position, index)
    return advance(system, segment, stage, state)[1]


@partial(jax.jit, static_argnames=("architecture", "execution", "position"))
def _read_exit(
    architecture: Architecture,
    variables: Variables,
    execution: Execution,
    position: int,
    index: Array,
    state: State,
) -> tuple[Array, Array]:
    """Predicted class and confidence of the exit before that transition."""
    system = architecture.system(execution=execution)
    segment, stage = _one_transition(system, variables, position, index)
    assert segment.output is not None
    return _sureness(segment.output(stage, state)[0])


@jax.jit
def _sureness(logits: Array) -> tuple[Array, Array]:
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.argmax(logits, axis=-1), jnp.max(probabilities, axis=-1)


def _one_transition(
    system: System, variables: Variables, position: int, index: Array
) -> tuple[Segment, Stage]:
    """One transition of a segment, as a segment without length, and what it reads."""
    segment = system.segments[position]
    stage = stages(system, variables)[segment.name]
    if segment.length is not None:
        own = jax.tree.map(lambda leaf: leaf[index], stage)
        stage = own._replace(params=stage.params) if segment.tied else own
    stage = stage._replace(shared=shared_parameters(system, variables.params), train=False)
    return replace(segment, length=None, tied=False, times=None), stage
