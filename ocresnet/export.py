"""Handing a network on without its code: one file of StableHLO, with the weights inside.

`jax.export.deserialize` reads it where neither this package nor its arrays are at hand, on every
platform it was exported for; other tools take the StableHLO module in it.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from ocresnet.files import digest, replace_file
from ocresnet.systems import network as networks
from ocresnet.systems.architecture import residual
from ocresnet.systems.network import Network
from ocresnet.systems.system import Execution

Array = jax.Array

Platform = Literal["cpu", "cuda", "rocm", "tpu"]
Pixel = Literal["float32", "uint8"]

PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
"""What a network is exported for unless something else is said."""

TRAILER = b"\nocresnet export, SHA-256 of the bytes before: "
"""Stands with the checksum behind the bytes of JAX, whose reader takes no notice of it."""


def export_network(
    network: Network,
    path: str | os.PathLike,
    *,
    exits: bool = False,
    batch_size: int | None = None,
    pixel: Pixel = "float32",
    platforms: Sequence[Platform] = PLATFORMS,
    execution: Execution = Execution(),
) -> None:
    """Write the function images -> logits to a file, in inference mode.

    Args:
      network: the network to export, of any family.
      path: the file; it is replaced in one step.
      exits: give every output, [outputs, batch, classes], instead of the own one's
        [batch, classes]; float32.
      batch_size: how many images the function takes; None: any number.
      pixel: dtype of the images [batch, height, width, channels], which are in the units of the
        network's `pixel_mean`.
      platforms: what the file runs on.
      execution: precision of the activations.

    Raises:
      ValueError: for a batch size that is not positive, an unknown platform or pixel, or exits of a
        network that has none.
      OSError: if the file cannot be written.
      ImportError: if flatbuffers is not installed, which writes the file.

    Example:
      >>> export_network(pruned, "model.stablehlo")
      >>> logits = load_exported("model.stablehlo")(images)
    """
    _check_flatbuffers()
    unknown = [platform for platform in platforms if platform not in get_args(Platform)]
    if unknown or not platforms:
        raise ValueError(
            f"platforms is {tuple(platforms)}, but must be some of {', '.join(get_args(Platform))}."
        )
    if pixel not in get_args(Pixel):
        raise ValueError(f"pixel is {pixel!r}, but must be one of {', '.join(get_args(Pixel))}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
    architecture = network.architecture
    if exits and residual(architecture, "exporting exits").exits == "none":
        raise ValueError(
            "this network has no exits to export: give it some with calibrate_exits first."
        )
    (batch,) = export.symbolic_shape("batch") if batch_size is None else (batch_size,)

    def forward(images: Array) -> Array:
        logits, _ = networks.apply(
            architecture, network.variables, images, own_output=not exits, execution=execution
        )
        return logits if exits else logits[0]

    exported = export.export(jax.jit(forward), platforms=platforms)(
        jax.ShapeDtypeStruct((batch, *architecture.image_shape), jnp.dtype(pixel))
    )
    content = bytes(exported.serialize())
    replace_file(Path(path), content + TRAILER + digest(content).encode())


def load_exported(path: str | os.PathLike) -> Callable[[np.ndarray | Array], Array]:
    """The function images -> logits that `export_network` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged or was not written by `export_network`; and, when it is called,
        for images of another shape.
      ImportError: if flatbuffers is not installed.
    """
    _check_flatbuffers()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported network {path}.")
    # The reader of JAX trusts every offset in the file: damaged ones end the process.
    content, _, checksum = path.read_bytes().rpartition(TRAILER)
    if not content or digest(content).encode() != checksum:
        raise ValueError(
            f"{path} is damaged, or not a file of export_network: it does not end in the checksum "
            "of its content."
        )
    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:  # of a version of JAX that cannot read it, said in many ways
        raise ValueError(f"the exported network {path} cannot be read: {error}") from error
    (wanted,) = exported.in_avals
    call = jax.jit(exported.call)

    def logits(images: np.ndarray | Array) -> Array:
        fixed = isinstance(wanted.shape[0], int)
        if images.ndim != 4 or images.shape[1 - fixed :] != wanted.shape[1 - fixed :]:
            raise ValueError(
                f"images have shape {images.shape}, but this network needs "
                f"[{', '.join(map(str, wanted.shape))}]."
            )
        return call(jnp.asarray(images, wanted.dtype))

    return logits


def _check_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(
            "flatbuffers is needed for exported networks: pip install 'ocresnet[export]'."
        )
