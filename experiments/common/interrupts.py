"""Ctrl-C ends a program with one line and exit status 130, wherever it is."""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit status of a program that was stopped by a signal: 128 and the number of SIGINT."""

LINE = "interrupted."


def exit_on_sigint() -> None:
    """From now on SIGINT prints one line and ends the process at once.

    An exception would not do: raised in a callback of an import or of the garbage collector, it is
    printed with a traceback and swallowed. Training sets a handler of its own, which saves first.
    """
    # What was printed is then already out when the process ends.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{LINE}\n".encode())
    os._exit(INTERRUPTED)
