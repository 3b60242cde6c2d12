"""Files that a reader never sees half of, and that say so when they were damaged."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

SEAL = "sha256"
"""Key of a sealed JSON object that holds the digest of the others."""


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: readers find the old file or the whole new one.

    Raises:
      OSError: if it cannot be written, for instance to a full disk; then nothing has changed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_at_once(folder: Path, aside: Path) -> None:
    """Remove a folder so that a kill leaves all of it, or nothing under its name.

    Args:
      folder: if it is there.
      aside: a name in the same place that it has while it is removed; what a kill left there goes.
    """
    shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir():
        folder.rename(aside)
        shutil.rmtree(aside)


def digest(content: bytes) -> str:
    """The SHA-256 of bytes, to keep beside them or in them: 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """The same of a file's content, which need not fit into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_verified(path: Path, wanted: str) -> bytes:
    """Read a file whose digest is known.

    Raises:
      ValueError: if its content is not what was written.
    """
    content = path.read_bytes()
    if digest(content) != wanted:
        raise ValueError(f"{path} is damaged: its content does not fit its checksum.")
    return content


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The same JSON object with its own digest as last entry, which `read_json` checks."""
    return {**value, SEAL: digest(json.dumps(value).encode())}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step.

    Raises:
      OSError: if it cannot be written.
    """
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; a seal is checked and taken off.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not JSON, or not what was sealed.
    """
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and SEAL in value:
            seal = value.pop(SEAL)
            if sealed(value)[SEAL] != seal:
                raise ValueError("its content does not fit its checksum")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    return value
