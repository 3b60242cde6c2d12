"""What a run leaves behind beside its checkpoints: configuration, provenance and metrics.

config.json      what determines the numbers; a resumed run must have the same
run.json         command, versions, devices, start of every session: for the reader
metrics.jsonl    one JSON object an epoch
metrics.sha256   of a finished run, the digest of metrics.jsonl
trajectory.json  the finished network over its depth
"""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ocresnet import files
from ocresnet.files import digest, replace_file, sealed

CONFIG, RUN, METRICS, TRAJECTORY = "config.json", "run.json", "metrics.jsonl", "trajectory.json"
METRICS_SEAL = "metrics.sha256"

NETWORK = "network"
"""Folder of the finished network in a run's workdir."""

PACKAGES = ("ocresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def prepare_workdir(workdir: str | os.PathLike) -> Path:
    """Create the folder and check that it can be written.

    Raises:
      OSError: if it cannot.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror}.") from error
    return workdir


def check_config(workdir: Path, config: dict[str, Any]) -> None:
    """Write the configuration of a new run, or refuse one that differs from that on disk.

    Raises:
      ValueError: naming what differs.
    """
    config = plain(config)
    path = workdir / CONFIG
    if not path.exists():
        write_json(path, sealed(config))
        return
    refuse_other_config(read_json(path), config, str(workdir))


def refuse_other_config(found: Any, wanted: dict[str, Any], where: str) -> None:
    """Refuse to continue a run with another configuration than it was started with.

    Raises:
      ValueError: naming what differs.
    """
    different = list(_differences(found, wanted))
    if different:
        raise ValueError(
            f"{where} holds a run with another configuration ({'; '.join(different)}): choose "
            "another workdir, or the same configuration to continue that run."
        )


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _differences(
                found.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
    elif found != wanted:
        yield f"{name} is {found} there and {wanted} here"


def record_session(workdir: Path, source: dict[str, Any]) -> None:
    """Add this session to `run.json`: command, versions, devices, time; `source` is of the data."""
    path = workdir / RUN
    run = read_json(path) if path.exists() else {"sessions": []}
    if not (isinstance(run, dict) and isinstance(run.get("sessions"), list)):
        raise ValueError(f"{path} is damaged: it holds no list of sessions.")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    run.update(source)
    run["sessions"].append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": ["python", *sys.orig_argv[1:]],
            "versions": versions,
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
    )
    write_json(path, run)


class MetricsFile:
    """`metrics.jsonl`: one JSON object an epoch, each on disk before the call returns."""

    def __init__(self, workdir: Path, rows: Sequence[dict[str, Any]]) -> None:
        """Open the file, with the rows of the epochs that are done and no others."""
        self._path = workdir / METRICS
        replace_file(self._path, _lines(rows).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add the row of one epoch.

        Raises:
          OSError: if it cannot be written.
        """
        try:
            with self._path.open("ab") as file:
                file.write(_lines([row]).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}.") from error


def rows_of_epochs(
    workdir: str | os.PathLike, epochs_done: int, wanted: str
) -> list[dict[str, Any]]:
    """The rows of the first `epochs_done` epochs, of which `wanted` is the digest.

    Raises:
      ValueError: if one of them is missing or is not as it was written.
    """
    path = Path(workdir) / METRICS
    rows = [row for row in read_metrics(workdir) if row["epoch"] <= epochs_done]
    if [row["epoch"] for row in rows] != list(range(1, epochs_done + 1)):
        wrong = "lacks epochs that the checkpoints beside it have"
    elif digest_of_rows(rows) != wanted:
        wrong = "is damaged: its content does not fit its checksum"
    else:
        return rows
    raise ValueError(f"{path} {wrong}: restore the file, or start in another workdir.")


def digest_of_rows(rows: Sequence[dict[str, Any]]) -> str:
    """A digest of metrics, to know them again."""
    return digest(_lines(rows).encode())


def seal_metrics(workdir: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the digest of a finished run's metrics beside them."""
    replace_file(workdir / METRICS_SEAL, digest_of_rows(rows).encode())


def sealed_metrics(workdir: Path, epochs: int) -> list[dict[str, Any]]:
    """The rows of a finished run.

    Raises:
      ValueError: if one of them is missing or is not as it was written.
    """
    path = workdir / METRICS_SEAL
    wanted = path.read_bytes().decode(errors="replace") if path.is_file() else "missing"
    return rows_of_epochs(workdir, epochs, wanted)


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; a last line that was cut off by a kill is left out.

    Raises:
      ValueError: if a line is not the row of an epoch.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1)]
    with suppress(ValueError):
        rows.append(_row(path, len(lines) + 1, last))
    return rows


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged in line {number}: {error}.") from error
    if not (isinstance(row, dict) and type(row.get("epoch")) is int):
        raise ValueError(f"{path} is damaged in line {number}: it is not the row of an epoch.")
    return row


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is not JSON, or not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}: is it a run's workdir?")
    return files.read_json(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step; arrays become lists."""
    files.write_json(path, plain(value))


def plain(value: Any) -> Any:
    """The same value in JSON's types: arrays and scalars of numpy and JAX become lists and numbers,
    named tuples dictionaries."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    return value


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Any]:
    """A function (row) -> None that writes an epoch's metrics for TensorBoard, or does nothing.

    Raises:
      ImportError: if a folder is given and tensorboardX is not installed.
    """
    if folder is None:
        yield lambda row: None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboardX is needed for TensorBoard: pip install 'ocresnet[tensorboard]'."
        ) from error
    with SummaryWriter(str(folder)) as writer:

        def write(row: dict[str, Any]) -> None:
            for name, value in _scalars(row):
                writer.add_scalar(name, value, row["epoch"])
            writer.flush()

        yield write


def _scalars(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a row with its path; of a list over depth, the last: the network's own."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _scalars(item, f"{name}/{key}" if name else key)
    elif isinstance(value, list):
        if value:
            yield from _scalars(value[-1], name)
    elif isinstance(value, (int, float)):
        yield name, value


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(plain(row)) + "\n" for row in rows)
