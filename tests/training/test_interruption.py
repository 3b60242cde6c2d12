"""Signals become requests, or interrupt at once where nothing can be lost."""

import os
import signal

import pytest

from ocresnet.training.interruption import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_a_second_interrupt_interrupts(number):
    before = signal.getsignal(number)
    with stop_requests() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_can_be_done_again_is_interrupted_at_once(number):
    with stop_requests() as stop:
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            os.kill(os.getpid(), number)
            pytest.fail("this is not reached")
        assert stop.requested
        with pytest.raises(KeyboardInterrupt), stop.at_once():  # as one has come already
            pytest.fail("nor is this")
