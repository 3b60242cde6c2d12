"""Which parameters a rule of training is for, told by the names that residual families keep.

See `systems.architecture`: "residual" holds the parameters w_F,k of a branch, "exit" those of a
separate exit head.
"""

from typing import Literal

import jax

from ocresnet.systems.system import PyTree

WeightDecayOn = Literal["all", "residual_branches"]


def weight_decay_mask(params: PyTree, on: WeightDecayOn) -> PyTree:
    """Which parameters decay: all, or only the residual branches w_F,k as in Theorem 1.

    Returns:
      A tree of booleans with the structure of `params`.
    """
    if on == "all":
        return jax.tree.map(lambda _: True, params)
    return _below("residual", params)


def separate_exit_mask(params: PyTree) -> PyTree:
    """Which parameters belong to separate exit heads; a tree of booleans like `params`."""
    return _below("exit", params)


def _below(name: str, params: PyTree) -> PyTree:
    """Whether each leaf is below a key of this name."""
    return jax.tree.map_with_path(
        lambda path, _: any(getattr(part, "key", None) == name for part in path), params
    )
