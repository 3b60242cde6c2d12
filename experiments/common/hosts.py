"""Running on several hosts: every process joins the others before JAX computes anything."""

import importlib.util
import os
from pathlib import Path

import jax

from .flag_kinds import FlagValues, Section


class HostFlags:
    """Which processes there are, and which devices this one uses."""

    def __init__(self, values: FlagValues) -> None:
        section = Section(values, "Hosts and devices")
        self._coordinator = section.text(
            "coordinator", "host:port of process 0, where the processes meet. Default: one process."
        )
        self._processes = section.whole("processes", "How many processes there are.", least=1)
        self._process = section.whole("process", "Which one this is, from 0.", least=0)
        self._devices = section.whole("devices", "Local devices to use. Default: all.")

    def start(self) -> None:
        """Join the other processes, if there are any; call it before any computation.

        They are those of the flags, or those that Slurm or a TPU pod says there are.

        Raises:
          ValueError: if only some of the flags are given, or they do not fit together.
          OSError: if the other processes cannot be reached.
        """
        flags = (self._coordinator, self._processes, self._process)
        if any(flag.value is not None for flag in flags):
            self._start_as_told()
        elif _slurm_tasks() > 1:
            _initialize()
        elif _on_tpu_machine():
            try:
                _initialize()
            except ValueError:
                return  # a TPU machine that belongs to no pod

    def devices(self) -> list[jax.Device] | None:
        """The first `--devices` local devices, or None for all.

        Raises:
          ValueError: if there are not that many, or there are several processes.
        """
        count = self._devices.value
        if count is None:
            return None
        if jax.process_count() > 1:
            raise ValueError("several processes use all their devices: leave --devices out.")
        devices = jax.local_devices()
        if not 1 <= count <= len(devices):
            raise ValueError(
                f"--devices is {count}, but this machine has {len(devices)}: choose 1 to "
                f"{len(devices)}."
            )
        return devices[:count]

    def _start_as_told(self) -> None:
        coordinator, processes, process = (
            flag.value for flag in (self._coordinator, self._processes, self._process)
        )
        if coordinator is None or processes is None or process is None:
            raise ValueError("--coordinator, --processes and --process belong together: give all.")
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator is {coordinator!r}, but must be host:port.")
        if process >= processes:
            raise ValueError(
                f"--process is {process}, but of {processes} processes it must be 0 to "
                f"{processes - 1}."
            )
        _initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def _initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except RuntimeError as error:
        raise OSError(f"the processes did not find each other: {error}") from error


def _slurm_tasks() -> int:
    """How many tasks this one was started with by srun."""
    started = "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ
    return int(os.environ.get("SLURM_NTASKS", 1)) if started else 1


def _on_tpu_machine() -> bool:
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
