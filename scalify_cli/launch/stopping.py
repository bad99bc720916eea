"""Being asked to stop: SIGTERM and SIGINT, turned into a question that can be asked at leisure."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODES = {"SIGTERM": 75, "SIGINT": 130}


class Stopped(BaseException):
    """A signal came while nothing had to be saved; its text is the signal's name."""


class Stop:
    """Called, it names the signal that came, or None.

    Only the first signal is caught: a second one does what it always does. In a SLURM job a second
    SIGTERM is ignored, for the cluster repeats it, and knows SIGKILL.
    """

    def __init__(self):
        self.reason: str | None = None
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def __call__(self) -> str | None:
        return self.reason

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits to be asked for; outside, it raises ``Stopped``."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def install(self) -> None:
        """Catch the signals of ``EXIT_CODES``."""
        for name in EXIT_CODES:
            number = signal.Signals[name]
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Let every signal do what it did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        self.restore()
        if self.reason == "SIGTERM" and "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not self._deferred:
            raise Stopped(self.reason)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Catch signals inside the block; in a thread, where Python cannot, nothing is caught."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop.install()
    try:
        yield stop
    finally:
        stop.restore()


class Signals:
    """How many signals came, and the first one's name."""

    def __init__(self):
        self.count = 0
        self.reason = ""

    def take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.reason = self.reason or signal.Signals(number).name


@contextmanager
def count_signals() -> Iterator[Signals]:
    """Count signals inside the block; in a thread, where Python cannot, none are counted."""
    signals, previous = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.Signals[name] for name in EXIT_CODES]
        previous = {number: signal.signal(number, signals.take) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
