"""Statistics of layers as explicit sums: what K-FAC and EKFAC are tested against.

The networks are run layer by layer in the tests' own words. What a layer sees at a location is cut
out of the padded image; the slope there is the derivative with respect to zeros that are added to
the layer's results.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.control.networks import convolutions_problem, exits_problem


class Read(NamedTuple):
    """A layer at work: x [batch, locations, rows_in], with a one for the bias; delta alike."""

    path: str
    depth: int | None
    x: np.ndarray
    delta: np.ndarray

    @property
    def gradients(self) -> np.ndarray:
        """Of every sample, [batch, rows_in, channels_out]."""
        return np.einsum("blr,blc->brc", self.x, self.delta)


def run_convolutions(params, inputs, affine):
    x = jnp.tanh(affine("first/layer", None, inputs.reshape(-1, 3, 3, 1), 1))
    for depth in range(2):
        x = jnp.tanh(affine("run/layer", depth, x, 1))
    x = jnp.tanh(affine("strided/layer", None, x, 2))
    return [affine("output/head", None, x).mean((1, 2))]


def run_shared_heads(params, inputs, affine):
    x, outputs = jnp.tanh(affine("first/layer", None, inputs)), []
    for path, depth in (("run/layer", 0), ("run/layer", 1), ("single/layer", None)):
        outputs.append(affine("head", None, x))
        x = jnp.tanh(affine(path, depth, x))
    return [*outputs, affine("head", None, x)]


NETWORKS = {
    "convolutions": (convolutions_problem(), run_convolutions, 9),
    "shared heads": (exits_problem("shared"), run_shared_heads, 4),
}


def reads(network: str, params: Any, batch: Any) -> list[Read]:
    """Every use of every layer, with the slopes of the sum of the samples' costs."""
    problem, run, _ = NETWORKS[network]

    def total(probes):
        seen = []

        def affine(path, depth, x, stride=0):
            layer = params
            for key in path.split("/"):
                layer = layer[key]
            kernel, bias = (
                layer[name] if depth is None else layer[name][depth] for name in ("kernel", "bias")
            )
            if stride:
                names = ("NHWC", "HWIO", "NHWC")
                padding = ((1, 1), (1, 1))
                y = lax.conv_general_dilated(
                    x, kernel, (stride, stride), padding, dimension_numbers=names
                )
            else:
                y = x @ kernel
            y += bias + (probes[len(seen)] if probes else 0)
            seen.append(((path, depth, stride), x, y))
            return y

        outputs = run(params, batch[0], affine)
        weights = [*problem.stage_costs.tolist(), 1.0]
        cost = sum(
            -w * jax.nn.log_softmax(y)[jnp.arange(len(y)), batch[1]].sum()
            for w, y in zip(weights, outputs, strict=True)
        )
        return cost, [leaf[1:] for leaf in seen], [leaf[0] for leaf in seen]

    _, seen, names = total(None)
    slopes = jax.grad(lambda probes: total(probes)[0])([jnp.zeros_like(y) for _, y in seen])
    result = []
    for (path, depth, stride), (x, _), delta in zip(names, seen, slopes, strict=True):
        x = windows(np.asarray(x), stride) if stride else np.asarray(x)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
        result.append(Read(path, depth, x, np.asarray(delta).reshape(*x.shape[:2], -1)))
    return result


def windows(images: np.ndarray, stride: int) -> np.ndarray:
    """What a kernel of 3x3 pixels sees, [batch, locations, pixels and channels]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    return np.stack(
        [
            padded[:, i : i + 3, j : j + 3].reshape(len(images), -1)
            for i in range(0, height, stride)
            for j in range(0, width, stride)
        ],
        axis=1,
    )


def factors(used: list[Read]) -> tuple[np.ndarray, np.ndarray]:
    """A: mean over samples of sums over locations; G: mean over both."""
    x, delta = (
        np.concatenate(part, axis=1) for part in ([r.x for r in used], [r.delta for r in used])
    )
    A = np.einsum("blr,bls->rs", x, x) / len(x)
    return A, np.einsum("blr,bls->rs", delta, delta) / delta[..., 0].size
