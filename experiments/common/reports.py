"""What experiments leave behind: tables, records with their origin, rows that resume."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ocresnet.files import replace_file
from ocresnet.training import records

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if this is one."""


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1
) -> str:
    """A Markdown table, without a newline at its end.

    Args:
      columns: their titles.
      rows: cells; None leaves a cell empty.
      left: how many of the first columns are text, aligned to the left; the others are numbers.
    """
    lines = [columns, *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * left + "---:|" * (len(columns) - left))
    return "\n".join(text)


@cache
def provenance() -> dict[str, Any]:
    """Where a result comes from: command, commit, versions, device and start of this process."""
    return {
        "command": _command(),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | _versions(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, in one step, with where it comes from as `made`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_json(path, {**record, "made": provenance()})


class Study:
    """The rows of an experiment, each on disk as soon as it exists.

    A row is a line of <output>.jsonl: settings, key, where it comes from, what was measured. What
    is found there with the same settings and key is not measured again; rows of other settings stay
    where they are and take no part.

    Attributes:
      rows: of these settings, in the order in which they were measured; a row is its key and what
        was measured, in JSON's types.
    """

    def __init__(
        self,
        output: str | os.PathLike | None,
        settings: Mapping[str, Any],
        *,
        writes: bool = True,
    ) -> None:
        """Open the study, and find the rows that an earlier process left.

        Args:
          output: path without extension; None keeps nothing on disk.
          settings: what all rows have in common and their numbers depend on.
          writes: whether this process writes; of several hosts' processes only the first one does.

        Raises:
          ValueError: if a line of the file is damaged (a last one that was cut off is dropped).
          OSError: if the file cannot be written.
        """
        self._output, self._writes = output, writes and output is not None
        self._settings = records.plain(dict(settings))
        self._lines: list[dict[str, Any]] = []
        if output is not None:
            found = _whole_lines(self.path(".jsonl"), mend=writes)
            self._lines = [line for line in found if line["settings"] == self._settings]

    @property
    def writes(self) -> bool:
        """Whether anything is written."""
        return self._writes

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [{**line["key"], **line["measured"]} for line in self._lines]

    def row(
        self, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The row of a key: as it was found, or measured now and written down."""
        plain_key = records.plain(dict(key))
        for line in self._lines:
            if line["key"] == plain_key:
                return {**plain_key, **line["measured"]}
        line = {
            "settings": self._settings,
            "key": plain_key,
            "made": provenance(),
            "measured": records.plain(dict(measure())),
        }
        self._lines.append(line)
        if self._writes:
            self.path(".jsonl").parent.mkdir(parents=True, exist_ok=True)
            with self.path(".jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return {**plain_key, **line["measured"]}

    def write(self, text: str) -> None:
        """Write <output>.md with the text, and <output>.json with settings, rows and origins."""
        if not self._writes:
            return
        made = [line["made"] for line in self._lines]
        record = {
            "settings": self._settings,
            "made": [origin for index, origin in enumerate(made) if origin not in made[:index]],
            "rows": self.rows,
        }
        records.write_json(self.path(".json"), record)
        replace_file(self.path(".md"), (text.strip() + "\n").encode())

    def path(self, suffix: str) -> Path:
        """<output><suffix>: appended, since a name such as jax_0.10 has a dot of its own."""
        return Path(f"{self._output}{suffix}")


def _whole_lines(path: Path, mend: bool) -> list[dict[str, Any]]:
    """The lines of a file of rows but for a last one that was cut off, which is mended away."""
    content = path.read_text() if path.exists() else ""
    whole = content[: content.rfind("\n") + 1]
    if mend and whole != content:
        replace_file(path, whole.encode())
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            if not {"settings", "key", "made", "measured"} <= line.keys():
                raise ValueError("it is not the row of a study.")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path} is damaged in line {number}: {error}") from error
        lines.append(line)
    return lines


def _versions() -> dict[str, str]:
    installed = {}
    for package in records.PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def _command() -> str:
    """The command line of this process; an installed binary goes by its name."""
    arguments = sys.orig_argv[1:]
    if arguments and Path(arguments[0]).name.startswith("ocresnet-"):
        return shlex.join([Path(arguments[0]).name, *arguments[1:]])
    return shlex.join(["python", *arguments])


def _commit() -> str | None:
    """The checkout's commit, "-dirty" with changes; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
