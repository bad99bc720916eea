"""Finding and reading sweeps, and what a name on the command line stands for."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from scalify_cli.errors import UserError
from scalify_cli.report.runs import RunInfo, find_runs, is_locked, read_run, resolve

SWEEPS = "sweeps"
_LOCK = "lock"  # held by the process that runs the sweep


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the run's id, its words, its values on the axes that vary."""

    id: str
    words: list[str]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """A sweep as its directory tells it; ``baseline`` holds the values of the reference points."""

    name: str
    path: Path
    points: list[Point]
    baseline: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> list[str]:
        """The keys that vary, in the order of the points' values."""
        return list(dict.fromkeys(key for point in self.points for key in point.values))


def find_sweeps(runs_dir: Path) -> list[Sweep]:
    """Every sweep of a runs' folder, the one written last at the end."""
    files = sorted((runs_dir / SWEEPS).glob("*/points.jsonl"), key=_written)
    return [read_sweep(file.parent) for file in files]


def read_sweep(path: Path) -> Sweep:
    """The sweep of a directory ``runs/sweeps/<name>``; tolerates what is missing."""
    lines = [line for line in _lines(path / "points.jsonl") if {"id", "words"} <= line.keys()]
    points = [Point(line["id"], line["words"], line.get("values") or {}) for line in lines]
    baseline = _definition(path).get("baseline") or {}
    return Sweep(path.name, path, points, baseline)


def select(runs_dir: Path, names: Sequence[str]) -> list[RunInfo]:
    """The runs that names on a command line stand for, in their order, none twice.

    Args:
        runs_dir: the runs' folder.
        names: ids, unique beginnings of ids, names of sweeps, and ``@last``: the sweep that was
            written last where the newest run is one of its points, else that run.

    Raises:
        UserError: a name stands for nothing, or an id's beginning for several runs.
    """
    found: dict[str, RunInfo] = {}
    for name in names:
        for run in _named(runs_dir, name):
            found.setdefault(run.id, run)
    return list(found.values())


def find_sweep(runs_dir: Path, name: str) -> Sweep | None:
    """The sweep that a name on a command line stands for, if it is one's; see ``select``."""
    if name == "@last":
        return _last(runs_dir)
    path = runs_dir / SWEEPS / name
    return read_sweep(path) if (path / "points.jsonl").is_file() else None


def everything(runs_dir: Path) -> list[RunInfo]:
    """Every run of a folder, then the points of its sweeps that have no directory yet."""
    points = {point.id: point for point in _all_points(runs_dir)}
    runs = find_runs(runs_dir)
    absent = points.keys() - {run.id for run in runs}
    waiting = point_runs(runs_dir, [point for point in points.values() if point.id in absent])
    return [_at(run, points.get(run.id)) for run in runs] + waiting


def is_launching(runs_dir: Path) -> bool:
    """Whether a process is running one of the folder's sweeps."""
    return any(map(is_locked, (runs_dir / SWEEPS).glob(f"*/{_LOCK}")))


def is_being_run(sweep: Sweep) -> bool:
    """Whether a process is running the sweep."""
    return is_locked(sweep.path / _LOCK)


def point_runs(runs_dir: Path, points: Iterable[Point]) -> list[RunInfo]:
    """The points' runs; one that has no directory yet is in state ``pending``."""
    return [_at(read_run(runs_dir / point.id), point) for point in points]


def _named(runs_dir: Path, name: str) -> list[RunInfo]:
    sweep = find_sweep(runs_dir, name)
    if sweep is not None:
        return point_runs(runs_dir, sweep.points)
    try:
        return [resolve(runs_dir, name)]
    except UserError:
        waiting = [point for point in _all_points(runs_dir) if point.id.startswith(name)]
        if len({point.id for point in waiting}) != 1:
            raise
        return point_runs(runs_dir, waiting[:1])


def _at(run: RunInfo, point: Point | None) -> RunInfo:
    return replace(run, words=tuple(point.words), values=point.values) if point else run


def _last(runs_dir: Path) -> Sweep | None:
    files = sorted((runs_dir / SWEEPS).glob("*/points.jsonl"), key=_written)
    if not files:
        return None
    sweep, newest = read_sweep(files[-1].parent), find_runs(runs_dir)[-1:]
    older = all((run.updated or 0.0) < _written(files[-1]) for run in newest)
    mine = {point.id for point in sweep.points} & {run.id for run in newest}
    return sweep if older or mine else None


def _all_points(runs_dir: Path) -> list[Point]:
    return [point for sweep in find_sweeps(runs_dir) for point in sweep.points]


def _written(file: Path) -> float:
    return file.stat().st_mtime


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict)]


def _definition(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((path / "sweep.yaml").read_text("utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
