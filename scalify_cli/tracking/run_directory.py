"""``runs/<id>/``: the truth about a run, readable at any moment and written by one process."""

import json
import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TextIO

from scalify_cli.errors import UserError
from scalify_cli.tracking.cancelling import forget_cancel, is_cancelled
from scalify_cli.tracking.files import json_line, take_lock, write_atomically
from scalify_cli.tracking.provenance import environment, patch
from scalify_cli.tracking.submission import submission

STATES = ("pending", "running", "done", "diverged", "failed", "preempted", "cancelled")
HEARTBEAT_SECONDS = 10.0
LOCK = ".lock"
_HEADLINES = ("train/loss", "val/loss", "perf/tokens_per_second")
_LOCK_SECONDS = 1.0  # between two attempts to take it
_RECORD_SECONDS = 1.0  # records come by the millisecond; the file changes once a second


class RunDirectory:
    """One run's folder, held under an exclusive lock while in a ``with`` block.

    Entering makes the folder and takes the lock; ``start`` turns it into a run. Leaving through an
    exception ends the run as ``failed`` (an interrupt: ``preempted``) with the error's text.

    Args:
        path: the folder, ``runs/<id>``.

    Raises:
        UserError: on entering, another process is writing this run.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._guard = threading.Lock()
        self._over = threading.Event()
        self._heart: threading.Thread | None = None
        self._written = 0.0
        self._first: tuple[float, int] | None = None
        self._status: dict[str, Any] = {}

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def status(self) -> dict[str, Any]:
        """What ``state.json`` says; empty before the first ``start``."""
        return dict(self._status)

    @property
    def attempt(self) -> int:
        """How many processes have started this run, this one included."""
        return self._status.get("attempt", 0)

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _take_lock(self.path)
        self._status = read_status(self.path)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and self._status.get("state") == "running":
            state = "failed" if isinstance(error, Exception) else "preempted"
            self._try_to_finish(state, _one_line(error))
        self._over.set()
        if self._heart:
            self._heart.join()
        self._lock.close()

    def clear(self) -> None:
        """Forget earlier attempts: remove everything but the lock, and empty the log.

        The log stays the same file: a queue may have opened it for what this process prints.
        """
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name == "log.txt":
                os.truncate(entry, 0)
            elif entry.name != LOCK:
                entry.unlink()
        self._status = {}

    def start(
        self,
        *,
        config: str,
        overrides: Sequence[str],
        steps: int,
        step: int = 0,
        devices: Sequence[str] = (),
        argv: Sequence[str] | None = None,
    ) -> None:
        """Write what the run is and where it comes from, then ``running``, and keep a heartbeat.

        Args:
            config: the resolved configuration, as YAML.
            overrides: the words of the command line.
            steps, step: updates of the whole run, and those already made.
            devices: descriptions for ``env.json``.
            argv: the command; None: this process's.
        """
        folder = Path.cwd()
        facts = environment(devices, sys.argv if argv is None else argv, folder)
        write_atomically(self.path / "config.yaml", config)
        write_atomically(self.path / "overrides.txt", "".join(f"{word}\n" for word in overrides))
        write_atomically(self.path / "env.json", json.dumps(facts, indent=2) + "\n")
        write_atomically(self.path / "git.patch", patch(folder))
        forget_cancel(self.path)
        self._status |= {"state": "running", "step": step, "steps": steps, **_process()}
        self._status |= {"started": _now(), "error": None, "attempt": self.attempt + 1}
        self._write()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def record(self, record: Mapping[str, Any]) -> None:
        """Note how far the run is: its step, and the newest of its metrics."""
        with self._guard:
            self._status["step"] = record["step"]
            metrics = self._status.get("metrics", {})
            self._status["metrics"] = metrics | {k: record[k] for k in _HEADLINES if k in record}
            if "train/loss" in record:
                self._status["step_seconds"] = self._pace(record["step"])
        if time.monotonic() - self._written >= _RECORD_SECONDS:
            self._write()

    def _pace(self, step: int) -> float | None:
        """Seconds a step, all that comes between steps included, since this process's first."""
        now = time.monotonic()
        begun, first = self._first = self._first or (now, step)
        return round((now - begun) / (step - first), 6) if step > first else None

    def log(self, message: str) -> None:
        """Append one line to ``log.txt``."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_now()} {message}\n")

    def finish(self, state: str, *, error: str | None = None, **facts: Any) -> None:
        """End the run in one of ``STATES``; ``facts`` are added to ``state.json``.

        A ``preempted`` that was asked for by ``request_cancel`` is ``cancelled``.
        """
        if state not in STATES:
            raise ValueError(f"{state} is no state of a run; choose from {', '.join(STATES)}")
        self._over.set()
        if state == "preempted" and is_cancelled(self.path):
            state = "cancelled"
        with self._guard:
            self._status |= {"state": state, "error": error, **facts}
        self._write()

    def _try_to_finish(self, state: str, error: str) -> None:
        try:
            self.finish(state, error=error)
        except OSError:  # a full disk: the first error is the one to report
            self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
            except OSError:
                continue  # the next beat may find room; training notices a full disk by itself

    def _write(self) -> None:
        with self._guard:
            self._written = time.monotonic()
            self._status["updated"] = _now()
            write_atomically(self.path / "state.json", json_line(self._status))


def mark(path: Path, state: str, **facts: Any) -> bool:
    """Write a state on behalf of a process that cannot: ``pending``, ``failed``, ``cancelled``, ...

    Nothing is written, and False returned, while a process holds the run.

    Args:
        path: the run's directory, which is made where it is missing.
        state: one of ``STATES``.
        facts: for ``state.json``: ``slurm_job_id``, ``error``, ...

    Raises:
        OSError: the directory cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock = take_lock(path / LOCK)
    except BlockingIOError:
        return False
    with lock:
        status = {"error": None, **read_status(path), "state": state, **facts, "updated": _now()}
        write_atomically(path / "state.json", json_line(status))
    return True


def holder(path: Path) -> int | None:
    """The process on this machine that is writing the run, if there is one."""
    try:
        take_lock(path / LOCK).close()
    except BlockingIOError as busy:
        here = re.fullmatch(rf"process (\d+) on {re.escape(platform.node())}", busy.strerror or "")
        return int(here[1]) if here else None
    except OSError:
        return None
    return None


def remove(path: Path) -> bool:
    """Remove a run's directory; False, and nothing removed, while a process writes it.

    Raises:
        OSError: something in it cannot be removed.
    """
    try:
        with take_lock(path / LOCK):
            shutil.rmtree(path)
    except BlockingIOError:
        return False
    return True


def end_lost_run(path: Path, error: str, states: Sequence[str] = ("running",)) -> None:
    """Write ``failed`` over one of ``states`` of a run whose writer is gone.

    Raises:
        UserError: its writer is there.
    """
    with RunDirectory(path) as directory:
        if directory.status.get("state") in states:
            directory.finish("failed", error=error)


def read_status(path: Path) -> dict[str, Any]:
    """The ``state.json`` of a run directory; empty when there is none, or it is no JSON object."""
    try:
        status = json.loads((path / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _take_lock(path: Path) -> TextIO:
    """The run's lock; a job waits for it, for SLURM requeues a run whose node it cannot reach."""
    while True:
        try:
            return take_lock(path / LOCK)
        except BlockingIOError as busy:
            if submission() is None:
                raise UserError(
                    f"run {path.name} is already being written by {busy.strerror}.",
                    f"follow it with `scalify logs {path.name} -f`.",
                ) from None
        time.sleep(_LOCK_SECONDS)


def _process() -> dict[str, Any]:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return {"host": platform.node(), "pid": os.getpid(), "slurm_job_id": job}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
