"""A network that can be handed on: an architecture with its arrays, saved and loaded as one."""

import hashlib
import json
import os
from pathlib import Path

import flax.serialization
import flax.struct
import jax
import numpy as np

from ocresnet.files import digest, read_json, read_verified, replace_file, sealed, write_json
from ocresnet.systems.architecture import MOMENTUM, Architecture
from ocresnet.systems.families import describe, from_description
from ocresnet.systems.layers import Array, AxisName
from ocresnet.systems.rollout import rollout
from ocresnet.systems.summary import summary
from ocresnet.systems.system import Execution, PyTree, Variables

ARCHITECTURE_FILE = "network.json"
VARIABLES_FILE = "variables.msgpack"


@flax.struct.dataclass
class Network:
    """A network: its architecture (static), its parameters and its batch statistics."""

    architecture: Architecture = flax.struct.field(pytree_node=False)
    params: PyTree
    batch_stats: PyTree

    @property
    def variables(self) -> Variables:
        """Parameters and batch statistics."""
        return Variables(self.params, self.batch_stats)

    def __repr__(self) -> str:
        return summary(self.architecture)


def create(architecture: Architecture, seed: int = 0) -> Network:
    """A network with freshly drawn parameters.

    Example:
      >>> network = create(ResNetConfig.homogeneous(blocks=12, filters=16), seed=0)
    """
    return Network(architecture, *architecture.init(jax.random.key(seed)))


def apply(
    architecture: Architecture,
    variables: Variables,
    images: Array,
    *,
    own_output: bool = False,
    train: bool = False,
    train_exits: bool | None = None,
    momentum: float | Array = MOMENTUM,
    axis_name: AxisName = None,
    execution: Execution = Execution(),
) -> tuple[Array, PyTree]:
    """All outputs of a network in one forward pass, equations (1) and (2) of the stage-cost paper.

    Args:
      architecture: of the network.
      variables: its parameters and batch statistics.
      images: [batch, height, width, channels], in the units of `architecture.pixel_mean`.
      own_output: compute the network's own output only, and none of its exits.
      train: normalise with batch statistics and update the running ones.
      train_exits: the same for the exits' statistics alone; None means as `train`.
      momentum: share of the running batch statistics that a training pass keeps.
      axis_name: the mapped axis over which batch norm is synchronised, or None.
      execution: precision, recomputation, scan or unrolled.

    Returns:
      Logits [outputs, batch, classes], at least float32: index k is yhat_k, the last is yhat; and
      the new batch statistics.

    Raises:
      ValueError: if the images do not have the architecture's shape, or for float64 without x64.
    """
    architecture.check_images(images)
    system = architecture.system(momentum=momentum, axis_name=axis_name, execution=execution)
    if own_output:
        system = system.with_own_output_only()
    state = system.initial_state(images)
    result = rollout(system, variables, state, train=train, train_outputs=train_exits)
    return result.all_outputs(), result.batch_stats


def save(network: Network, folder: str | os.PathLike) -> None:
    """Write the network to `folder`: `network.json` (architecture) and `variables.msgpack`.

    The folder is self-contained, and each file is replaced in one step. The first has the digests
    of both, so that `load` notices every change.

    Raises:
      OSError: if the folder cannot be written.
      ValueError: for a family of networks that is not registered.
    """
    folder = Path(folder)
    described = describe(network.architecture)
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"params": network.params, "batch_stats": network.batch_stats}
    content = flax.serialization.to_bytes(jax.device_get(variables))
    replace_file(folder / VARIABLES_FILE, content)
    description = sealed({"architecture": described, "variables": digest(content)})
    write_json(folder / ARCHITECTURE_FILE, description)


def load(folder: str | os.PathLike) -> Network:
    """Read a network that `save` wrote.

    Raises:
      FileNotFoundError: if the folder holds no saved network.
      ValueError: if the files are damaged or do not belong together.
    """
    folder = Path(folder)
    for name in (ARCHITECTURE_FILE, VARIABLES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no saved network: {name} is missing.")
    try:
        description = read_json(folder / ARCHITECTURE_FILE)
        if not isinstance(description, dict) or set(description) != {"architecture", "variables"}:
            raise ValueError(f"{ARCHITECTURE_FILE} does not describe a network")
        architecture = from_description(description["architecture"])
        content = read_verified(folder / VARIABLES_FILE, description["variables"])
        target = jax.eval_shape(lambda: architecture.init(jax.random.key(0))._asdict())
        variables = flax.serialization.from_bytes(target, content)
        _check_shapes(target, variables)
    except Exception as error:  # msgpack has many ways to say that bytes are damaged
        raise ValueError(f"the saved network in {folder} is damaged: {error}") from error
    return Network(architecture, variables["params"], variables["batch_stats"])


def fingerprint(network: Network) -> str:
    """A hash of architecture and arrays, equal for equal networks: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(describe(network.architecture)).encode())
    for path, leaf in jax.tree.leaves_with_path(network.variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _check_shapes(target: PyTree, variables: PyTree) -> None:
    for (path, wanted), leaf in zip(
        jax.tree.leaves_with_path(target), jax.tree.leaves(variables), strict=True
    ):
        if wanted.shape != leaf.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} has shape {leaf.shape}, but should have {wanted.shape}.")
