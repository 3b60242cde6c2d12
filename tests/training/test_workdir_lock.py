"""Only one run at a time writes to a workdir."""

import errno
import os
import re
import signal
import subprocess
import sys

import pytest

from ocresnet.training import workdir_lock
from ocresnet.training.workdir_lock import only_run_in

HOLD = """
import sys, time
from pathlib import Path
from ocresnet.training.workdir_lock import only_run_in
with only_run_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_run_is_refused_while_the_first_one_lasts(tmp_path):
    with only_run_in(tmp_path):
        for _ in range(2):  # and is not harmed by the refusal
            who = rf"in use by process {os.getpid()} on \S+, which began at 20.* UTC: wait"
            with pytest.raises(OSError, match=who), only_run_in(tmp_path):
                pass
    with only_run_in(tmp_path):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    held = re.escape(f"workdir {tmp_path} is in use by process {process.pid} ")
    with pytest.raises(OSError, match=held), only_run_in(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_run_in(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def unable(file, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(workdir_lock.fcntl, "flock", unable)
    with only_run_in(tmp_path):
        pass


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(file, operation):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workdir_lock.fcntl, "flock", full)
    held = pytest.raises(OSError, match=r"workdir .* cannot be locked: No space left on device\.")
    with held, only_run_in(tmp_path):
        pass


def test_without_a_workdir_nothing_is_held():
    with only_run_in(None), only_run_in(None):
        pass
