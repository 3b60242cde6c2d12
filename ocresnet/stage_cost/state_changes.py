"""How much each block changes the state, and in which direction.

Notation: x_k the state that enters block k, S_k its skip connection, F_k its residual branch,
x_{k+1} = S_k(x_k) + F_k(x_k). The change that a block makes is F_k(x_k); it is compared with
S_k(x_k), which is x_k itself wherever the skip connection is the identity.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.stage_cost.checks import residual_architecture
from ocresnet.stage_cost.trajectory import Mode, mean_over_batches
from ocresnet.systems.architecture import ResidualArchitecture
from ocresnet.systems.network import Network
from ocresnet.systems.rollout import rollout
from ocresnet.systems.system import Execution, Output, PyTree, Segment, Stage, State, Variables

Array = jax.Array


class StateChanges(NamedTuple):
    """Means over the samples, for every block: [blocks].

    Attributes:
      norms: ||F_k(x_k)||, over all numbers in the state of a sample.
      relative_norms: ||F_k(x_k)|| / ||S_k(x_k)||; a sample whose S_k(x_k) is zero counts as 0.
      cosines: <S_k(x_k), F_k(x_k)> / (||S_k(x_k)|| ||F_k(x_k)||), in [-1, 1]; where either is
        zero, 0.
    """

    norms: np.ndarray | Array
    relative_norms: np.ndarray | Array
    cosines: np.ndarray | Array


def state_changes(
    network: Network,
    images: np.ndarray | Array,
    *,
    batch_size: int = 500,
    mode: Mode = "inference",
    execution: Execution = Execution(),
) -> StateChanges:
    """Norm of every block's change of the state, absolute and relative, and its cosine with it.

    Args:
      network: the network; its exits, if it has any, are not computed.
      images: [samples, height, width, channels], in the units of the network's `pixel_mean`.
      batch_size: samples computed at a time.
      mode: "inference" (running statistics) or "training" (those of each batch, see `trajectory`).
      execution: precision, recomputation, scan or unrolled.

    Returns:
      The means over the samples, in float64.

    Raises:
      ValueError: if the images do not fit the network, there are none, the mode is unknown, or the
        network has no residual blocks.

    Example:
      >>> state_changes(network, images).relative_norms  # near zero: the block does nothing
    """
    architecture = residual_architecture(network, "measuring changes of the state")
    architecture.check_images(images)
    if architecture.depth == 0:
        return StateChanges(np.zeros(0), np.zeros(0), np.zeros(0))
    train = mode == "training"

    def sums(batch: np.ndarray, mask: np.ndarray) -> StateChanges:
        return _sums(architecture, network.variables, images[batch], mask, train, execution)

    return mean_over_batches(sums, len(images), batch_size, mode)


@partial(jax.jit, static_argnames=("architecture", "train", "execution"))
def _sums(
    architecture: ResidualArchitecture,
    variables: Variables,
    images: Array,
    mask: Array,
    train: bool,
    execution: Execution,
) -> StateChanges:
    """Sums over the samples that `mask` marks."""
    # Read as an output of each block, so that no state has to be kept; the compiler merges the
    # block that is computed for it with the block itself.
    system = architecture.system(execution=execution).with_own_output_only()
    measuring = replace(
        system,
        segments=tuple(
            segment if segment.skip is None else replace(segment, output=_change(segment))
            for segment in system.segments
        ),
    )
    state = measuring.initial_state(images)
    measured = rollout(measuring, variables, state, train=train).outputs
    assert measured is not None  # every block has an output
    sums = jnp.sum(jnp.where(mask, measured, 0), axis=-1)
    return StateChanges(*jnp.moveaxis(sums, 1, 0))


def _change(segment: Segment) -> Output:
    """What `StateChanges` names, of every sample, as an output of the segment: [3, batch]."""

    def output(stage: Stage, state: State) -> tuple[Array, PyTree]:
        assert segment.skip is not None  # it is one of residual blocks
        before = _flat(segment.skip(stage, state))
        change = _flat(segment.transition(stage, state)[0]) - before
        norm, before_norm = (jnp.linalg.norm(part, axis=-1) for part in (change, before))
        product = jnp.sum(before * change, axis=-1)
        values = norm, _ratio(norm, before_norm), _ratio(product, before_norm * norm)
        return jnp.stack(values), {}

    return output


def _flat(state: State) -> Array:
    """All numbers in the state of every sample, [batch, numbers], in at least float32."""
    leaves = [
        leaf.reshape(len(leaf), -1).astype(jnp.promote_types(leaf.dtype, jnp.float32))
        for leaf in jax.tree.leaves(state)
    ]
    return jnp.concatenate(leaves, axis=-1)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)
