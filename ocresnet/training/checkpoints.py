"""Checkpoints of a run; the only module that knows orbax.

    checkpoints/<step>/state/            the training state, as orbax writes it
    checkpoints/<step>/checkpoint.json   step, position in the run, score, shapes, and the digest of
                                         every file of state/; sealed

The folder of a checkpoint appears in a single rename once it is whole, and nothing of it is used
unless every byte is as it was written.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ocresnet.files import digest_of_file, read_json, remove_at_once, sealed, write_json
from ocresnet.systems.system import PyTree
from ocresnet.training.processes import in_first_process

STATE, ABOUT = "state", "checkpoint.json"

PARTIAL = ".partial"
"""Folder of the checkpoint that is being written, or removed."""

SPARE_BYTES = 2**20
"""Room on the disk that a checkpoint needs beside its arrays."""


class Checkpoints:
    """The checkpoints of a run: the last ones, and the best.

    Attributes:
      damaged: {step: what is wrong with it} of those that were found damaged, which are left out.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2) -> None:
        """Open (and create) the folder.

        Args:
          folder: where the checkpoints lie.
          keep: how many of the last ones to keep; the one with the best score is kept too.
        """
        self._folder, self._keep = Path(folder).absolute(), keep
        self._folder.mkdir(parents=True, exist_ok=True)
        self._about: dict[int, dict[str, Any]] = {}
        self._whole: set[int] = set()
        self.damaged: dict[int, str] = {}
        for step in self._steps_on_disk():
            try:
                self._about[step] = _read_about(self._folder / str(step))
            except (ValueError, OSError) as error:
                self.damaged[step] = str(error)
        # Each process reads for itself, and only the first writes: none waits for another here.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._orbax = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )

    def _steps_on_disk(self) -> list[int]:
        names = [path.name for path in self._folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def save(self, step: int, state: PyTree, position: dict[str, Any], score: float | None) -> None:
        """Write a checkpoint; when this returns, it is on disk and whole.

        Args:
          step: training steps done; names the checkpoint.
          state: the training state.
          position: what else is needed to continue, as JSON values.
          score: what "best" means, higher is better; None: this one is never the best.

        Raises:
          OSError: if it cannot be written; those that were there before stay.
        """
        about = {"step": step, "position": position, "score": score, "arrays": _arrays(state)}
        arrays = jax.device_get(state)
        in_first_process(lambda: self._write(step, arrays, about))
        self.damaged.pop(step, None)
        self._whole.add(step)
        self._about[step] = about
        kept = (*sorted(self._about)[-self._keep :], self.best_step())
        self._about = {step: about for step, about in self._about.items() if step in kept}
        in_first_process(self._remove_all_others)

    def _write(self, step: int, arrays: PyTree, about: dict[str, Any]) -> None:
        partial, target = self._folder / PARTIAL, self._folder / str(step)
        try:
            if target.exists():  # a damaged one
                self._remove(target)
            shutil.rmtree(partial, ignore_errors=True)
            # Beforehand: of a write that fails, orbax's threads speak even when it is caught.
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + SPARE_BYTES
            if shutil.disk_usage(self._folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _silent_orbax():
                self._orbax.save(partial / STATE, args=ocp.args.StandardSave(arrays))
            digests = {
                str(path.relative_to(partial)): digest_of_file(path)
                for path in sorted((partial / STATE).rglob("*"))
                if path.is_file()
            }
            write_json(partial / ABOUT, sealed({**about, "digests": digests}))
            partial.rename(target)
        except (OSError, ValueError) as error:  # orbax says ValueError of a full disk
            shutil.rmtree(partial, ignore_errors=True)
            before = max(self._about, default=None)
            stays = "there is none before it" if before is None else f"checkpoint {before} stays"
            raise OSError(
                f"checkpoint {step} cannot be written to {self._folder}: {_reason(error)}; {stays}."
            ) from error

    def _remove_all_others(self) -> None:
        for step in self._steps_on_disk():
            if step not in self._about:
                self._remove(self._folder / str(step))

    def _remove(self, checkpoint: Path) -> None:
        """Remove a folder: none is left half removed, which would look like a damaged one."""
        remove_at_once(checkpoint, self._folder / PARTIAL)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint that is whole, or None; damaged ones are left out."""
        for step in sorted(self._about, reverse=True):
            try:
                self._check_files(step)
                return step
            except (ValueError, OSError) as error:
                self.damaged[step] = str(error)
                del self._about[step]
        return None

    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest score, or None if none has a score."""
        scores = {
            step: about["score"]
            for step, about in self._about.items()
            if about["score"] is not None
        }
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def position(self, step: int) -> dict[str, Any]:
        """The position in the run that was saved with a checkpoint."""
        return self._about[step]["position"]

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Read a training state, as numpy arrays: it does not matter on which devices it was made.

        Args:
          step: which one.
          like: a training state (arrays or their shapes) with the structure of the saved one.

        Raises:
          ValueError: if the checkpoint is damaged or of another structure.
        """
        self._check_files(step)
        where = f"checkpoint {step} in {self._folder}"
        saved, wanted = self._about[step]["arrays"], _arrays(like)
        # orbax would cut an array of another shape to size.
        for name in sorted(saved.keys() | wanted.keys()):
            there, here = saved.get(name, "missing"), wanted.get(name, "missing")
            if there != here:
                raise ValueError(
                    f"{where} is of another run: {name} is {there} there, {here} here."
                )
        shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        folder = self._folder / str(step) / STATE
        try:
            return self._orbax.restore(folder, args=ocp.args.StandardRestore(shapes))
        except Exception as error:  # orbax has many ways to say so
            raise ValueError(f"{where} cannot be read: {error}") from error

    def _check_files(self, step: int) -> None:
        """Compare every file with its digest, once."""
        if step in self._whole:
            return
        folder = self._folder / str(step)
        for name, wanted in self._about[step]["digests"].items():
            if not (folder / name).is_file():
                raise ValueError(f"checkpoint {folder} is damaged: {name} is missing.")
            if digest_of_file(folder / name) != wanted:
                raise ValueError(f"checkpoint {folder} is damaged: {name} is not as it was saved.")
        self._whole.add(step)

    def close(self) -> None:
        """Release what orbax holds."""
        self._orbax.close()


def _arrays(state: PyTree) -> dict[str, str]:
    """{path: dtype and shape} of every array of a state."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    if not path.is_file():
        raise ValueError(f"checkpoint {folder} is damaged: {ABOUT} is missing.")
    about = read_json(path)
    if not (
        isinstance(about, dict)
        and {"step", "position", "score", "arrays", "digests"} <= about.keys()
    ):
        raise ValueError(f"checkpoint {folder} is damaged: {ABOUT} does not say what it is.")
    if about["step"] != int(folder.name):
        raise ValueError(f"checkpoint {folder} is damaged: it is that of step {about['step']}.")
    return about


def _reason(error: Exception) -> str:
    """What the system says, without the path that orbax took to it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


@contextmanager
def _silent_orbax() -> Iterator[None]:
    """Without orbax's log, which shows a failed write as pages of tracebacks and then raises it."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
