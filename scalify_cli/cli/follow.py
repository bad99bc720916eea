"""What a sweep says while it works, and what it writes for runs that cannot any more."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalify_cli.cli.plan import Cell, states_of
from scalify_cli.cli.text import duration, number
from scalify_cli.launch.stopping import EXIT_CODES
from scalify_cli.launch.task import Event, Task
from scalify_cli.report.runs import RunInfo, is_locked, read_run
from scalify_cli.tracking.run_directory import LOCK, mark

_GOOD = (0, *EXIT_CODES.values())
_TAIL = 4096  # bytes of a log in which a last word is looked for
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_END = 20.0
_UNDER_WAY = ("running", "pending")


@dataclass
class Follower:
    """Takes the events of a launcher, and tells people what they mean.

    Args:
        cells: the points that are to be started.
        say: prints a line.
    """

    cells: Sequence[Cell]
    say: Callable[[str], None]
    running: dict[str, Task] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    ended: int = 0
    stopped: int = 0
    began: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Note one event; say it where it matters."""
        if event.task is None:
            self._take_own(event)
        elif event.kind == "started":
            self.running[event.task.id] = event.task
            place = f"{len(self.running) + self.ended}/{len(self.cells)}"
            self.say(f"started {self._name(event.task)} ({place})")
        elif event.kind == "ended":
            self._end(event, event.task)
        elif event.message:
            self.say(f"{event.kind} {self._name(event.task)}: {event.message}")

    def lines(self) -> Iterator[str]:
        """A line for the whole, then one for each run that is running."""
        left = len(self.cells) - self.ended
        seconds = (time.monotonic() - self.began) / self.ended * left if self.ended else None
        head = f"{self.ended}/{len(self.cells)} ended, {len(self.running)} running"
        bad = f", {len(self.failed)} failed" if self.failed else ""
        yield f"{head}{bad}  ETA {duration(seconds)}"
        for task in list(self.running.values()):
            run = read_run(task.path)
            loss = number(run.metrics.get("train/loss"))
            yield f"  {self._name(task)}  step {run.step}/{run.steps}  loss {loss}"

    def _take_own(self, event: Event) -> None:
        if event.kind in ("stopping", "killed"):
            self.stopped = self.stopped or event.code or 0
        if event.message:
            self.say(event.message)

    def _end(self, event: Event, task: Task) -> None:
        self.running.pop(task.id, None)
        self.ended += 1
        run = settled(event, task, stopping=bool(self.stopped))
        if run.state == "failed" or (event.code not in (*_GOOD, None) and run.state in ("done",)):
            self.failed.add(task.id)
        self.say(f"{_told(run, event)} {self._name(task)}{_results(run)}")

    def _name(self, task: Task) -> str:
        label = next((cell.label for cell in self.cells if cell.id == task.id), "")
        return f"{task.id} {label}"


def settled(event: Event, task: Task, *, stopping: bool) -> RunInfo:
    """The run of a task that has ended, in the state that its directory is left in.

    A process that was killed, or that never came to its run, has not written how it ended.
    """
    if stopping and event.code is not None and event.code < 0:
        _end_killed(task.path, event.message)
        return read_run(task.path)
    run = read_run(task.path)
    if event.job_id or event.code in (*_GOOD, None) or run.state == "running":
        return run
    if run.status.get("state") not in ("done", "diverged", "failed", "cancelled"):
        mark(task.path, "failed", error=_last_word(task.path / "log.txt") or event.message)
    return read_run(task.path)


def _end_killed(path: Path, message: str) -> None:
    """Of a run's processes the one that we started is gone; wait until none holds the run."""
    end = time.monotonic() + _SECONDS_TO_END
    while is_locked(path / LOCK) and time.monotonic() < end:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if read_run(path).status.get("state") == "running":
        mark(path, "preempted", error=message)


def wait_for(cells: Sequence[Cell], runs_dir: Path, say: Callable[[str], None]) -> None:
    """Wait for runs that other processes have started."""
    told = False
    while waiting := _under_way(cells, runs_dir):
        if not told:
            told = True
            say(f"waiting for {waiting}, started by another process; Ctrl-C leaves it alone")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


@contextmanager
def display(follower: Follower, *, live: bool) -> Iterator[None]:
    """Inside, a terminal shows the follower's lines, and keeps them up to date."""
    if not live:
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    follower.say = console.print
    look: Any = lambda: "\n".join(follower.lines())  # noqa: E731
    with Live(get_renderable=look, console=console, refresh_per_second=2, transient=True):
        yield


def follow(events: Iterable[Event], follower: Follower) -> None:
    """Take the events until there are no more."""
    for event in events:
        follower.take(event)


def _under_way(cells: Sequence[Cell], runs_dir: Path) -> str:
    states = states_of(cells, runs_dir)
    ids = [cell.id for cell, state in zip(cells, states, strict=True) if state in _UNDER_WAY]
    return ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")


def _told(run: RunInfo, event: Event) -> str:
    return "not started" if not run.status else run.state if run.state != "pending" else event.kind


def _results(run: RunInfo) -> str:
    if run.error:
        return f": {run.error}"
    loss = run.metrics.get("val/loss")
    return f": validation loss {number(loss)}" if loss is not None else ""


def _last_word(log: Path) -> str | None:
    """The last ``error:`` line of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return found[-1] if found else None
