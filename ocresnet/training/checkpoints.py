"""Checkpoints of a run; the only module that knows orbax.

A checkpoint is one folder, `checkpoints/<step>`, that appears in a single rename once it is whole.
It holds the training state and, as JSON, the position in the run.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ocresnet.systems.system import PyTree

SCORE = "score"


class Restored(NamedTuple):
    """A checkpoint that was read back.

    Attributes:
      state: the training state.
      position: the JSON dictionary saved with it.
    """

    state: PyTree
    position: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run: the last ones, and the best."""

    def __init__(self, folder: str | os.PathLike, keep: int = 2, scored: bool = False) -> None:
        """Open (and create) the folder.

        Args:
          folder: where the checkpoints lie.
          keep: how many of the last ones to keep.
          scored: whether checkpoints have a score; then the best one is kept too.

        Raises:
          ValueError: if what is there is damaged.
        """
        policies: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(keep)]
        if scored:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._scored = scored
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=_score if scored else None,
            enable_async_checkpointing=False,
        )
        try:
            self._manager = ocp.CheckpointManager(
                Path(folder).absolute(), item_names=("state", "position"), options=options
            )
        except ValueError as error:
            raise ValueError(f"the checkpoints in {folder} cannot be read: {error}") from error

    def save(self, step: int, state: PyTree, position: dict[str, Any], score: float | None) -> None:
        """Write a checkpoint; when this returns, it is on disk and whole.

        Args:
          step: training steps done; names the checkpoint.
          state: the training state.
          position: what else is needed to continue, as JSON values.
          score: what "best" means, higher is better; None: this one is never the best.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(jax.device_get(state)),
                position=ocp.args.JsonSave(position),
            ),
            metrics=None if score is None else {SCORE: float(score)},
            force=True,
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest score, or None if none has a score."""
        return self._manager.best_step() if self._scored else None

    def restore(self, step: int, like: PyTree) -> Restored:
        """Read a checkpoint, as numpy arrays: it does not matter on which devices it was made.

        Args:
          step: which one.
          like: a training state (arrays or their shapes) with the structure of the saved one.

        Raises:
          ValueError: if the checkpoint is damaged or of another structure.
        """
        shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(shapes), position=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise ValueError(
                f"checkpoint {step} in {self._manager.directory} cannot be read (remove its folder "
                f"to continue from the one before): {error}"
            ) from error
        return Restored(restored.state, restored.position)

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()


def _score(metrics: dict[str, float]) -> float:
    return metrics[SCORE]
