"""Networks whose residual branches have gates, and the derivative with respect to every gate.

Notation
    f_k, S_k  transition of block k and its skip connection
    g_k       gate of block k:  x_{k+1} = S_k(x_k) + g_k (f_k(x_k) - S_k(x_k))
    lambda_k  costate dL/dx_k of a sample's loss L(yhat); x_k the state that enters block k

    dL/dg_k = <lambda_{k+1}, f_k(x_k) - S_k(x_k)>

Every sample has gates of its own, so that one backward pass gives the derivatives for all blocks
and samples.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ocresnet.costs import PerSampleLoss
from ocresnet.systems.architecture import ResidualArchitecture
from ocresnet.systems.fold import advance, fold, in_order, shared_parameters, stages
from ocresnet.systems.rollout import Rollout
from ocresnet.systems.system import Execution, PyTree, Segment, Stage, State, System, Variables

Array = jax.Array


@partial(jax.jit, static_argnames=("architecture", "own_output", "execution"))
def gated_outputs(
    architecture: ResidualArchitecture,
    variables: Variables,
    images: Array,
    gates: Array,
    *,
    own_output: bool = False,
    execution: Execution = Execution(),
) -> Array:
    """All outputs of the gated network, in inference mode.

    Args:
      architecture: of the network.
      variables: its parameters and batch statistics.
      images: [batch, height, width, channels].
      gates: [blocks], or [blocks, batch] for gates of every sample; real: one leaves a block as it
        is, zero removes its branch.
      own_output: compute the network's own output only, and none of its exits.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      Logits [outputs, batch, classes], at least float32.

    Raises:
      ValueError: if there is not one gate for each block, or blocks are tied.
    """
    if gates.shape[:1] != (architecture.depth,):
        raise ValueError(
            f"gates have shape {gates.shape}, but this network needs one for each of its "
            f"{architecture.depth} blocks."
        )
    system = architecture.system(execution=execution)
    for segment in system.blocks:
        if segment.tied:
            raise ValueError(
                f"the blocks of segment {segment.name!r} are steps of one equation, with their "
                "parameters in common: they cannot have gates of their own."
            )
    if own_output:
        system = system.with_own_output_only()
    shared = shared_parameters(system, variables.params)

    def body(
        segment: Segment, state: State, given: tuple[Stage, Array | None]
    ) -> tuple[State, Array | None]:
        stage = given[0]._replace(shared=shared, train=False)
        outputs, after, _ = advance(system, segment, stage, state)
        if given[1] is not None and segment.skip is not None:
            after = jax.tree.map(partial(_gated, given[1]), segment.skip(stage, state), after)
        return after, outputs

    own_gates = _by_segment(system, gates)
    per_stage = {
        name: (stage, own_gates.get(name)) for name, stage in stages(system, variables).items()
    }
    state, outputs = fold(system, body, system.initial_state(images), per_stage)
    return Rollout(state, in_order(system, outputs), {}, {}).all_outputs()


@partial(jax.jit, static_argnames=("architecture", "loss", "execution"))
def gate_derivatives(
    architecture: ResidualArchitecture,
    variables: Variables,
    images: Array,
    labels: Array,
    *,
    loss: PerSampleLoss,
    execution: Execution = Execution(),
) -> Array:
    """dL/dg_k at g = 1 in inference mode, of the loss of the network's own output.

    Args:
      architecture: of the network; its exits, if it has any, are not computed.
      variables: its parameters and batch statistics.
      images: [batch, height, width, channels].
      labels: [batch].
      loss: per-sample loss L.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      [blocks, batch], in the dtype of the logits, float32 at least.
    """

    def cost(gates: Array) -> Array:
        logits = gated_outputs(
            architecture, variables, images, gates, own_output=True, execution=execution
        )
        return jnp.sum(loss(logits[-1], labels))

    dtype = jnp.promote_types(execution.precision, jnp.float32)
    return jax.grad(cost)(jnp.ones((architecture.depth, len(images)), dtype))


def _by_segment(system: System, gates: Array) -> dict[str, PyTree]:
    """The gates as `fold` hands them to the stages of the segments of blocks."""
    ends = np.cumsum([segment.transitions for segment in system.blocks], dtype=int)
    parts = jnp.split(gates, ends[:-1])
    return {
        segment.name: part if segment.stacked else part[0]
        for segment, part in zip(system.blocks, parts, strict=False)
    }


def _gated(gate: Array, skipped: Array, after: Array) -> Array:
    """S + g (f - S); the product is taken, and differentiated, in the dtype of the gate."""
    gate = gate.reshape(gate.shape + (1,) * (after.ndim - gate.ndim))
    branch = (after - skipped).astype(gate.dtype)
    return skipped + (gate * branch).astype(after.dtype)
