"""Finding and reading run directories. Starts no jax, so that ``scalify ls`` is quick."""

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from scalify_cli.errors import UserError

SILENCE_SECONDS = 120.0  # a heartbeat comes every ten
_LOCK = ".lock"  # held by the process that writes the run
_NUMBER = (int, float, type(None))
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("state", "host", "error", "updated"), str),
    "started": (str, type(None)),  # None: its process has yet to begin
    **dict.fromkeys(("step", "steps", "pid"), int),
    "metrics": dict,
}


@dataclass(frozen=True)
class RunInfo:
    """What a run directory says about itself.

    ``state`` is that of ``state.json``, except that a ``running`` whose process is gone, or which
    is silent and not held here, is ``failed``. ``metrics`` holds the newest ``train/loss``,
    ``val/loss`` and ``perf/tokens_per_second``; ``started`` and ``updated`` are in seconds since
    1970; ``status`` is all of ``state.json``. ``words`` and ``values`` are those of a sweep's
    point, where the run was found through one. The configuration is read when it is asked for: a
    thousand of them are slow to read.
    """

    id: str
    path: Path
    state: str
    step: int
    steps: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    started: float | None = None
    updated: float | None = None
    error: str | None = None
    status: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.yaml``; empty before the run has started."""
        return _read_yaml(self.path / "config.yaml")

    @cached_property
    def overrides(self) -> list[str]:
        """The words of the command line that started it."""
        if self.words is not None:
            return list(self.words)
        return _read_text(self.path / "overrides.txt").splitlines()


def find_runs(runs_dir: Path) -> list[RunInfo]:
    """Every run of a folder, the one updated last at the end; none where the folder is missing."""
    if not runs_dir.is_dir():
        return []
    paths = [entry for entry in runs_dir.iterdir() if (entry / "state.json").is_file()]
    runs = [read_run(path) for path in paths]
    return sorted(runs, key=lambda run: (run.updated or 0.0, run.id))


def resolve(runs_dir: Path, prefix: str) -> RunInfo:
    """The one run whose id begins with ``prefix``; ``@last`` or ``-1`` is the one updated last.

    Raises:
        UserError: none does, or several do.
    """
    runs = find_runs(runs_dir)
    if prefix in ("@last", "-1"):
        matches = runs[-1:]
    else:
        matches = [run for run in runs if prefix and run.id.startswith(prefix)]
    exact = [run for run in matches if run.id == prefix]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    raise _no_such_run(runs_dir, prefix, runs) if not matches else _ambiguous(prefix, matches)


def read_run(path: Path) -> RunInfo:
    """What one run directory says; tolerates missing and half-made files."""
    found = read_json(path / "state.json")
    status = {k: x for k, x in found.items() if isinstance(x, _KINDS.get(k, object))}
    state, error = _true_state(path, status)
    return RunInfo(
        id=path.name,
        path=path,
        state=state,
        step=status.get("step") or 0,
        steps=status.get("steps") or 0,
        metrics=_numbers(status.get("metrics") or {}),
        started=_time(status.get("started")),
        updated=_time(status.get("updated")),
        error=error,
        status=status,
    )


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a run directory's ``metrics.jsonl``, oldest first; torn lines left out."""
    for line in _read_text(path / "metrics.jsonl").splitlines():
        record = _numbers(_parse(line))
        if isinstance(record.get("step"), int):
            yield record


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the quantities that are no numbers."""
    return {k: x for k, x in record.items() if "/" not in k or isinstance(x, _NUMBER)}


def is_locked(path: Path) -> bool:
    """Whether a process holds the file's lock; what the file says of it may be long out of date."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _true_state(path: Path, status: dict[str, Any]) -> tuple[str, str | None]:
    """The state and the error, seen through a process that died without a word."""
    state, error = status.get("state", "pending"), status.get("error")
    if state != "running":
        return state, error
    here, pid = status.get("host") == platform.node(), status.get("pid", 0)
    if here and not _is_process(pid):
        return "failed", f"process {pid} is gone"
    silence = _silence(status)
    if silence <= SILENCE_SECONDS or (here and (_is_beginning(status) or is_locked(path / _LOCK))):
        return state, error
    return "failed", f"nothing heard from {status.get('host')} for {silence:.0f} s"


def _is_beginning(status: dict[str, Any]) -> bool:
    """Whether its process has yet to take the lock and to write by itself."""
    return status.get("started", status.get("updated")) is None


def _is_process(pid: int) -> bool:
    """Whether there is such a process on this machine, which need not be the one of old."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0


def _silence(status: dict[str, Any]) -> float:
    updated = _time(status.get("updated"))
    return time.time() - updated if updated else float("inf")


def _no_such_run(runs_dir: Path, prefix: str, runs: list[RunInfo]) -> UserError:
    if not runs:
        return UserError(
            f"there are no runs in {runs_dir}.",
            "start one with `scalify run`, or name another folder with --runs-dir.",
        )
    return UserError(f"no run in {runs_dir} begins with '{prefix}'.", "`scalify ls` lists them.")


def _ambiguous(prefix: str, matches: list[RunInfo]) -> UserError:
    ids = ", ".join(sorted(run.id for run in matches)[:4])
    return UserError(f"'{prefix}' is the beginning of {len(matches)} runs.", f"type more of: {ids}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is none."""
    return _parse(_read_text(path))


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(_read_text(path), Loader=loader)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError):
        return None
