"""Runs as processes on this machine, as many at a time as it has room for."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scalify_cli.errors import UserError
from scalify_cli.launch.places import FOLDER, Place, places
from scalify_cli.launch.stopping import EXIT_CODES, Signals, count_signals
from scalify_cli.launch.task import Event, Queue, Task

CANCEL = "cancel"  # a file in a run's directory
_LOOK_SECONDS = 0.05
_KEPT = (0, *EXIT_CODES.values())  # exit codes of runs that have not failed


@dataclass(frozen=True)
class Local:
    """On this machine; a run that is asked for alone, in the process that was asked.

    Args:
        processes: of one run, each with its part of every batch, of the GPUs and of the cores.

    Raises:
        UserError: there is no such number of processes.
    """

    processes: int = 1

    def __post_init__(self):
        if self.processes < 1:
            raise UserError(
                f"launcher.processes={self.processes} is too small.",
                "launcher.processes is a whole number of at least 1.",
            )

    def launch(self, tasks: Sequence[Task], folder: Path, options: Queue) -> Iterator[Event]:
        """Start each task in a session of its own as soon as there is a place for it.

        What it prints goes to its ``log.txt``. A first SIGINT or SIGTERM stops the starting and
        asks the running ones for a checkpoint, a second one kills them. Closing the iterator
        leaves them running.

        Raises:
            UserError: more runs at a time are wanted than there are GPUs.
        """
        room = places(options, len(tasks), folder.parent / FOLDER, self.processes)
        with count_signals() as signals:
            yield from _Line(room, deque(tasks), options, signals).events()


@dataclass
class _Line:
    """The tasks that wait, and the processes that run."""

    room: list[Place]
    waiting: deque[Task]
    options: Queue
    signals: Signals
    running: dict[Task, subprocess.Popen] = field(default_factory=dict)
    heeded: int = 0
    words: dict[Task, int | None] = field(init=False)

    def __post_init__(self):
        self.words = {task: _word(task) for task in self.waiting}

    def events(self) -> Iterator[Event]:
        """Everything that happens, until nothing waits and nothing runs."""
        told = False
        while self.waiting or self.running:
            yield from self._heed()
            yield from self._ended()
            yield from self._start()
            if self.waiting and not self.running and not told:
                told = True
                yield Event("note", message="every place here is taken; waiting for one")
            time.sleep(_LOOK_SECONDS)

    def _start(self) -> Iterator[Event]:
        most = self.options.jobs or len(
            self.room
        )  # a place is free before its run's end is noticed
        while self.waiting and len(self.running) < most and not self.signals.count:
            task = self.waiting[0]
            if _word(task) not in (None, self.words[task]):
                yield Event("skipped", self.waiting.popleft(), message="cancelled")
                continue
            try:
                process = self._placed(task)
            except OSError as error:
                yield Event("ended", self.waiting.popleft(), 1, message=str(error))
                continue
            if process is None:
                return
            self.running[self.waiting.popleft()] = process
            yield Event("started", task)

    def _placed(self, task: Task) -> subprocess.Popen | None:
        """The task's process, in the first place that is free; None: none is."""
        for place in self.room:
            with place.taken() as locks:
                if locks is not None:
                    return _start(task, place, locks)
        return None

    def _ended(self) -> Iterator[Event]:
        ended = [task for task, process in self.running.items() if process.poll() is not None]
        for task in ended:
            code = self.running.pop(task).returncode
            yield Event("ended", task, code, message=_told(code))
            if self.options.fail_fast and code not in _KEPT and self.waiting:
                self.waiting.clear()
                yield Event("stopping", message=f"{task.id} failed: nothing more is started")

    def _heed(self) -> Iterator[Event]:
        """What the signals that came since the last look ask for."""
        if self.heeded == self.signals.count:
            return
        first, self.heeded = self.heeded == 0, self.signals.count
        self.waiting.clear()
        for process in self.running.values():
            _signal(process, signal.SIGTERM if first else signal.SIGKILL)
        if first:
            message = f"stopping: {len(self.running)} running write a checkpoint; again kills them"
            yield Event("stopping", code=EXIT_CODES[self.signals.reason], message=message)
        else:
            yield Event("killed", message=f"{len(self.running)} killed")


def _start(task: Task, place: Place, locks: Sequence[int]) -> subprocess.Popen:
    task.path.mkdir(parents=True, exist_ok=True)
    with (task.path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place.environment},
            start_new_session=True,
            pass_fds=locks,
        )


def _word(task: Task) -> int | None:
    """When somebody left word in the run's directory that it is not to start; None: nobody has.

    In nanoseconds by the clock of the file system, which may be behind this machine's.
    """
    try:
        return (task.path / CANCEL).stat().st_mtime_ns
    except OSError:
        return None


def _signal(process: subprocess.Popen, number: int) -> None:
    """A request goes to the process alone, death to everything it has started."""
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _told(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
