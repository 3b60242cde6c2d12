"""Stopping cleanly: SIGTERM and SIGINT become requests that a loop can look at."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequests:
    """Whether a signal has asked the run to stop.

    Attributes:
      requested: whether one has come.
      immediate: whether the next one interrupts what is running.
    """

    requested = False
    immediate = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a signal interrupts at once: for work that can be done again.

        Raises:
          KeyboardInterrupt: when a signal comes, or if one has come before.
        """
        self.immediate = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self.immediate = False


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Note SIGTERM and SIGINT instead of dying of them; a second SIGINT interrupts at once.

    Outside the main thread, where handlers cannot be set, signals are left as they are.
    """
    stop = StopRequests()

    def note(number: int, frame: FrameType | None) -> None:
        again = stop.requested and number == signal.SIGINT
        stop.requested = True
        if again or stop.immediate:
            raise KeyboardInterrupt

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
