"""Signals and time: when a study stops early."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from tune.execution.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    said = io.StringIO()
    stopping = Stopping(Console(file=said, width=200))
    before = signal.getsignal(number)
    with stopping.listening():
        os.kill(os.getpid(), number)
        assert stopping.asked
        assert "stopping when each running trial has ended its epoch" in said.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_time_runs_out() -> None:
    now = 10.0
    stopping = Stopping(Console(file=io.StringIO()), max_seconds=5.0, clock=lambda: now)
    assert not stopping.out_of_time()
    now = 14.9
    assert not stopping.out_of_time()
    now = 15.0
    assert stopping.out_of_time()
    assert stopping.elapsed == 5.0
    assert not Stopping(Console(file=io.StringIO())).out_of_time()
