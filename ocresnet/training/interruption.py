"""Stopping cleanly: SIGTERM and SIGINT become requests that a loop can look at."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequests:
    """Whether a signal has asked the run to stop."""

    requested = False


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Note SIGTERM and SIGINT instead of dying of them; a second SIGINT interrupts at once.

    Outside the main thread, where handlers cannot be set, signals are left as they are.
    """
    stop = StopRequests()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, note) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
