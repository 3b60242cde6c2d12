"""A network that can be handed on: an architecture with its arrays, saved and loaded as one."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import flax.serialization
import flax.struct
import jax
import numpy as np

from ocresnet.files import replace_file
from ocresnet.systems import resnet
from ocresnet.systems.resnet_config import ResNetConfig
from ocresnet.systems.system import PyTree, Variables

CONFIG_FILE = "network.json"
VARIABLES_FILE = "variables.msgpack"


@flax.struct.dataclass
class Network:
    """A residual network: its architecture (static), its parameters and its batch statistics."""

    config: ResNetConfig = flax.struct.field(pytree_node=False)
    params: PyTree
    batch_stats: PyTree

    @property
    def variables(self) -> Variables:
        """Parameters and batch statistics, as `resnet.apply` takes them."""
        return Variables(self.params, self.batch_stats)


def create(config: ResNetConfig, seed: int = 0) -> Network:
    """A network with freshly drawn parameters.

    Example:
      >>> network = create(ResNetConfig.homogeneous(blocks=12, filters=16), seed=0)
    """
    return Network(config, *resnet.init(config, jax.random.key(seed)))


def save(network: Network, folder: str | os.PathLike) -> None:
    """Write the network to `folder`: `network.json` (architecture) and `variables.msgpack`.

    The folder is self-contained, and each file is replaced in one step.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"params": network.params, "batch_stats": network.batch_stats}
    replace_file(folder / VARIABLES_FILE, flax.serialization.to_bytes(jax.device_get(variables)))
    replace_file(folder / CONFIG_FILE, json.dumps(asdict(network.config), indent=2).encode())


def load(folder: str | os.PathLike) -> Network:
    """Read a network that `save` wrote.

    Raises:
      FileNotFoundError: if the folder holds no saved network.
      ValueError: if the files are damaged or do not belong together.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, VARIABLES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no saved network: {name} is missing.")
    try:
        config = ResNetConfig(**json.loads((folder / CONFIG_FILE).read_text()))
        target = jax.eval_shape(lambda: resnet.init(config, jax.random.key(0))._asdict())
        content = (folder / VARIABLES_FILE).read_bytes()
        variables = flax.serialization.from_bytes(target, content)
        _check_shapes(target, variables)
    except Exception as error:  # msgpack has many ways to say that bytes are damaged
        raise ValueError(f"the saved network in {folder} is damaged: {error}") from error
    return Network(config, variables["params"], variables["batch_stats"])


def fingerprint(network: Network) -> str:
    """A hash of architecture and arrays, equal for equal networks: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(asdict(network.config)).encode())
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
