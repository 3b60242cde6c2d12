"""Eight virtual devices for every test, and small networks and data that tests share.

What has been compiled once is kept in a folder for all workers, all subprocesses and the next run;
and it is compiled quickly: no test takes time to compute, most take it to compile.
"""

import gc
import os
from pathlib import Path

from jaxlib.version import __version_info__ as jaxlib_version

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1"
    # Later versions do not know it, and end at what they do not know.
    + " --xla_cpu_use_fusion_emitters=false" * (jaxlib_version < (0, 11))
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1] / ".pytest_cache" / "compiled"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import numpy as np
import pytest

from ocresnet.data.dataset import Dataset
from ocresnet.systems import network
from ocresnet.systems.architecture import Architecture
from ocresnet.systems.network import Network
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.systems.system import Variables

SMALL = {
    "homogeneous": ResNetConfig.homogeneous(blocks=4, filters=6, image_shape=(8, 8, 2), classes=3),
    "standard": ResNetConfig.standard(
        blocks=6, filters=(4, 6, 8), image_shape=(9, 8, 2), classes=3
    ),
}

MEMORY_MAPS = 4_000
gc.set_threshold(50_000, 20, 50)  # tracing makes many objects, and little garbage

apply = jax.jit(
    network.apply,
    static_argnames=("architecture", "own_output", "train", "train_exits", "execution"),
)
"""`network.apply`, compiled: tests would spend their time dispatching single operations."""


def random_network(architecture: Architecture, seed: int = 0) -> Network:
    """A network with nothing at a special value, so that no term can hide. Its float32 arrays are
    drawn by numpy: nothing has to be compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(leaf.dtype)
        return np.exp(0.3 * noise) if path[-1].key in ("variance", "scale") else 0.3 * noise

    shapes = jax.eval_shape(lambda: architecture.init(jax.random.key(0))._asdict())
    return Network(architecture, **jax.tree.map_with_path(draw, shapes))


def random_variables(architecture: Architecture, seed: int = 0) -> Variables:
    """The variables of `random_network`, as arrays of JAX."""
    return jax.tree.map(jax.numpy.asarray, random_network(architecture, seed).variables)


def random_images(architecture: Architecture, batch: int = 5, seed: int = 1) -> np.ndarray:
    """Float images of the network's shape."""
    shape = (batch, *architecture.image_shape)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_float64(tree):
    """The same tree in float64; only inside `jax.enable_x64(True)`."""
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf), "float64"), tree)


def drop_compiled_programs() -> None:
    """A process has room for so many programs only: each takes three of its memory maps, of which
    there may be 65 thousand, and a megabyte. Some are worth keeping: modules share them."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs():
    yield
    drop_compiled_programs()


@pytest.fixture(autouse=True)
def few_compiled_programs_of_slow_tests(request):
    """Slow tests compile so many that those of one module are too many."""
    yield
    if request.node.get_closest_marker("slow"):
        drop_compiled_programs()


@pytest.fixture
def toy_data() -> Dataset:
    """96 + 32 images of 6x6 pixels in three classes that differ in their mean."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 128).astype(np.int32)
    images = 40 * labels[:, None, None, None] + rng.integers(0, 120, (128, 6, 6, 1))
    images = images.astype(np.uint8)
    return Dataset("toy", images[:96], labels[:96], images[96:], labels[96:])
