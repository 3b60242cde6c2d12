"""One run at a time in a workdir."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ocresnet.training.processes import in_first_process

LOCK = "lock"
"""File in a run's workdir that its process holds, with a line that says who that is."""

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""How file systems answer that cannot lock."""


@contextmanager
def only_run_in(workdir: Path | None) -> Iterator[None]:
    """Hold the workdir for this run; None is no workdir, and nobody else's.

    The kernel gives the lock back when the process dies, however it dies. Of a distributed run the
    first process holds it. On a file system without locks nothing is held.

    Raises:
      OSError: if another run holds it, naming its process; or if the workdir cannot be written.
    """
    if workdir is None:
        yield
        return
    with ExitStack() as held:
        in_first_process(lambda: held.enter_context(_locked(workdir)))
        yield


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    about = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    # Opened for appending: whoever looks must not empty what the holder wrote.
    with (workdir / LOCK).open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(json.dumps(about).encode())
        except BlockingIOError:
            raise OSError(
                f"workdir {workdir} is in use by {_holder(workdir)}: wait until that run is done, "
                "stop it, or choose another workdir."
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise OSError(f"workdir {workdir} cannot be locked: {error.strerror}.") from error
        yield


def _holder(workdir: Path) -> str:
    try:
        about = json.loads((workdir / LOCK).read_text())
        return f"process {about['pid']} on {about['host']}, which began at {about['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said yet
        return "another process"
