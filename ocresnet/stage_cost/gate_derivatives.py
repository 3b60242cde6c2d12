"""The derivative of the loss with respect to every block's gate, for each sample, in one pass.

Notation
    g_k       gate of block k:  x_{k+1} = S_k(x_k) + g_k F_k(x_k)
    lambda_k  costate dL/dx_k of a sample's loss L(yhat); x_k the state that enters block k

    dL/dg_k = <lambda_{k+1}, F_k(x_k)> = <lambda_{k+1}, x_{k+1} - S_k(x_k)>       at g = 1

The right side needs the states of one forward pass and the costates of one backward pass, for all
blocks and samples at once.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ocresnet.stage_cost.objective import PerSampleLoss
from ocresnet.systems import resnet
from ocresnet.systems.resnet_config import Execution, ResNetConfig
from ocresnet.systems.system import Probe, PyTree, Variables, rollout

Array = jax.Array


@partial(jax.jit, static_argnames=("config", "loss", "execution"))
def gate_derivatives(
    config: ResNetConfig,
    variables: Variables,
    images: Array,
    labels: Array,
    *,
    loss: PerSampleLoss,
    execution: Execution = Execution(),
) -> Array:
    """dL/dg_k at g = 1 in inference mode, of the loss of the network's own output.

    Args:
      config: the architecture, without exits.
      variables: its parameters and batch statistics.
      images: [batch, height, width, channels].
      labels: [batch].
      loss: per-sample loss L.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      [blocks, batch], in the dtype of the logits, float32 at least.
    """
    system = resnet.resnet_system(config, execution=execution)
    run = partial(
        rollout,
        system,
        variables,
        system.initial_state(images),
        train=False,
        unroll=execution.unroll,
        remat=execution.remat,
        keep_states=True,
    )
    shared = {name: variables.params[name] for name in system.shared}
    # Only the states are probed: of the shared parameters, scalars stand for the zeros.
    unprobed = {
        segment.name: jax.tree.map(lambda _, n=segment.length: jnp.zeros(n or ()), shared)
        for segment in system.segments
    }

    def cost(zeros: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        result = run(probe=Probe(zeros, unprobed))
        logits = result.state.astype(jnp.promote_types(result.state.dtype, jnp.float32))
        return jnp.sum(loss(logits, labels)), result.states

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(run).states)
    costates, states = jax.grad(cost, has_aux=True)(zeros)

    def following(tree: dict[str, Array], name: str) -> Array:
        """The values that follow those of a segment: x_{k+1} for x_k, block axis first."""
        position = [segment.name for segment in system.segments].index(name)
        after = system.segments[position + 1]
        first = tree[after.name] if after.length is None else tree[after.name][0]
        if system.segments[position].length is None:
            return first[None]
        return jnp.concatenate([tree[name][1:], first[None]])

    derivatives = []
    dtype = jnp.promote_types(execution.precision, jnp.float32)
    transitions = {segment.name: segment.transition for segment in system.segments}
    for segment in resnet.block_segments(config):
        name, skipped = segment.name, states[segment.name]
        if segment.transition:
            controls = scale_branch(variables.params[name], 0.0), variables.batch_stats[name]
            skipped = transitions[name](shared, *controls, skipped, False)[0][None]
        branch = following(states, name) - skipped
        products = following(costates, name).astype(dtype) * branch.astype(dtype)
        derivatives.append(jnp.sum(products, axis=(2, 3, 4)))
    return jnp.concatenate(derivatives)


def scale_branch(block: PyTree, gates: Array | float) -> PyTree:
    """Parameters of one block, or of stacked ones, with their residual branches times `gates`.

    A branch ends in a convolution without bias, so that scaling its kernel scales the branch.

    Args:
      block: the parameters of a segment of blocks.
      gates: a scalar, or [blocks] for stacked blocks.
    """
    kernel = block["residual"]["convolution_2"]["kernel"]
    gates = jnp.asarray(gates, kernel.dtype)
    scaled = kernel * gates.reshape(gates.shape + (1,) * (kernel.ndim - gates.ndim))
    return {**block, "residual": {**block["residual"], "convolution_2": {"kernel": scaled}}}
