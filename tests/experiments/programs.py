"""Starting binaries: in this process, or in one of their own where a process is what is tested."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Outcome(NamedTuple):
    """Exit status, stdout and stderr of a program."""

    code: int
    output: str
    errors: str


def call(main: Callable[[list[str]], int], *arguments: object) -> Outcome:
    """Call a binary's `main` in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, output.getvalue(), errors.getvalue())


def start(module: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """Start `python -m <module>` in the checkout, with one device."""
    inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Outcome:
    """Wait for a process."""
    output, errors = process.communicate(timeout=300)
    return Outcome(process.returncode, output, errors)


def kill_after_an_epoch(module: str, *arguments: object) -> None:
    """Start a run in a process of its own, and kill it when it has printed its first epoch."""
    process = start(module, *arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.kill()
    process.communicate()


def interrupted_at_import_of(module: str, folder: Path) -> dict[str, str]:
    """The environment of a process that gets SIGINT when it imports `module`.

    Args:
      module: its name.
      folder: where the file goes that Python runs first of all.
    """
    program = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
