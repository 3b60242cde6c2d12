"""What a curvature of the controls is: M_k in d theta_k = -eta M_k^-1 d_k.

A curvature keeps one entry for every layer or array, under its path in the parameters, so that the
entries of one stage can be taken out and used alone. Entries are at least float32, whatever the
activations are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ocresnet.systems.system import PyTree, System

Array = jax.Array

Entries = dict[str, PyTree]
"""{path of a layer or array in the parameters: its part of the curvature}."""

Statistics = Callable[[PyTree, int | None], PyTree]
"""(taps for the parameters, samples that are run at most) -> what a backward pass recorded in them
(`systems/taps.py`), as sums over the whole batch; see `first_samples`."""


class CurvatureState(NamedTuple):
    """Attributes:
    steps: gradients seen, int32.
    entries: by path.
    """

    steps: Array
    entries: Entries


class Metric(NamedTuple):
    """M^-1 of one affine layer in coordinates that make it diagonal.

    With D a gradient, [rows_in, channels_out], and D~ = U_A^T D U_G,
    <D, M^-1 D> = sum of weights * D~ * D~.

    Attributes:
      input_basis: U_A, or None for the identity.
      output_basis: U_G, or None for the identity.
      weights: [rows_in, channels_out], or None for ones.
    """

    input_basis: Array | None
    output_basis: Array | None
    weights: Array | None


class Curvature(Protocol):
    """M, as three pure functions."""

    @property
    def needs_statistics(self) -> bool:
        """Whether `update` calls its `statistics`."""
        ...

    def init(self, system: System, params: PyTree) -> CurvatureState:
        """The state before the first gradient."""
        ...

    def update(
        self, state: CurvatureState, gradient: PyTree, batch_size: int, statistics: Statistics
    ) -> CurvatureState:
        """Take in a gradient, the mean over `batch_size` samples."""
        ...

    def solve(self, entries: Entries, tree: PyTree) -> PyTree:
        """M^-1 tree, where `tree` is a tree like the parameters or a part of one."""
        ...

    def metric(self, entries: Entries, path: str, with_bias: bool) -> Metric | None:
        """M^-1 of the affine layer at `path`, or None where it has no such form."""
        ...


def first_samples(batch: PyTree, most: int | None) -> tuple[PyTree, float]:
    """The first samples of a batch, on every device those of its own part, and how many samples
    of the batch each of them stands for.

    Args:
      batch: arrays [samples, ...].
      most: so many at most; None: all.
    """
    samples = len(jax.tree.leaves(batch)[0])
    taken = samples if most is None else min(samples, most)
    return jax.tree.map(lambda leaf: leaf[:taken], batch), samples / taken


def flatten(tree: PyTree) -> dict[str, Array]:
    """{path: leaf} of nested dictionaries, with "/" between the keys."""
    return {_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def unflatten(flat: dict[str, Array], like: PyTree) -> PyTree:
    """Undo `flatten`, into the structure of the tree `like`."""
    return jax.tree.map_with_path(lambda path, _: flat[_path(path)], like)


def of_segment(entries: Entries, name: str) -> Entries:
    """The entries of one segment."""
    return {path: entry for path, entry in entries.items() if path.split("/")[0] == name}


def moments_like(leaf: Array) -> Array:
    """Zeros of the shape of `leaf`, in at least float32."""
    return jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32))


def average(old: Array, new: Array, decay: float | Array) -> Array:
    """decay * old + (1 - decay) * new, in the dtype of `old`."""
    return decay * old + (1 - decay) * new.astype(old.dtype)


def finite_or(old: PyTree, new: PyTree) -> PyTree:
    """`new`, but `old` where an array of `new` has something that is not finite: one batch that
    overflows must not spoil what all others have gathered. What is the very same array in both is
    known to be finite."""
    pairs = list(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
    checks = [jnp.all(jnp.isfinite(leaf)) for before, leaf in pairs if leaf is not before]
    finite = jnp.all(jnp.stack(checks))
    return jax.tree.map(
        lambda old, new: new if new is old else jnp.where(finite, new, old), old, new
    )


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(part.key) for part in path)
