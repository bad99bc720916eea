"""What there is to do about the points of a sweep, found out before anything starts."""

import hashlib
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalify_cli.cli.selection import is_alive
from scalify_cli.cli.states import true_states
from scalify_cli.config.catalogue import did_you_mean
from scalify_cli.errors import UserError
from scalify_cli.launch.task import Task
from scalify_cli.report.sweeps import Point, point_runs

if TYPE_CHECKING:
    from scalify_cli.config.grid import GridPoint

_ORDER = ("new", "pending", "done", "diverged", "failed", "preempted", "cancelled", "running")
_ENDED = ("done", "diverged")


@dataclass(frozen=True)
class Cell:
    """A point that can be run: its id, its words, its varying values, its launcher's values."""

    id: str
    words: tuple[str, ...]
    values: Mapping[str, Any]
    launcher: Mapping[str, Any]

    @property
    def point(self) -> Point:
        return Point(self.id, list(self.words), dict(self.values))

    @property
    def label(self) -> str:
        """``precision=fp8 seed=0``: what sets it apart."""
        return " ".join(f"{key}={value}" for key, value in self.values.items()) or "(one point)"


@dataclass(frozen=True)
class Invalid:
    """A point that cannot be run, and why."""

    words: tuple[str, ...]
    reason: UserError


@dataclass(frozen=True)
class Plan:
    """The points, the state of each, and those that are to be started now."""

    cells: list[Cell]
    states: dict[str, str]
    wanted: list[Cell]

    @property
    def counts(self) -> dict[str, int]:
        """How many points are in each state; ``new`` is always there."""
        counts = Counter(self.states.values())
        return {state: counts[state] for state in _ORDER if counts[state] or state == "new"}

    @property
    def headline(self) -> str:
        """``24 points: 18 new, 4 done, 1 failed, 1 running``."""
        parts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        count = len(self.cells)
        return f"{count} point{'s' * (count != 1)}: {parts}"


def check(
    points: Sequence["GridPoint"], config_dir: Path | None
) -> tuple[list[Cell], list[Invalid]]:
    """The points composed, validated and given their ids (none twice), and those refused."""
    from scalify_cli.config.composition import Composer

    composer, refuse = Composer(config_dir, apart=True), _combinations()
    cells: dict[str, Cell] = {}
    invalid: list[Invalid] = []
    for point in points:
        try:
            values = composer.values(point.words)
            refuse(values)
        except UserError as error:
            invalid.append(Invalid(point.words, error))
            continue
        cell = _cell(point, values)
        if cells.setdefault(cell.id, cell).launcher != cell.launcher:
            invalid.append(Invalid(point.words, _two_launchers()))
    return list(cells.values()), invalid


def plan(
    cells: Sequence[Cell],
    runs_dir: Path,
    *,
    retry: Collection[str] = (),
    force: bool = False,
    limit: int | None = None,
) -> Plan:
    """What is missing, from what the run directories say.

    Args:
        cells: the points.
        runs_dir: where their runs are.
        retry: states of ended runs that are to be run again.
        force: run every point again that is not running.
        limit: start no more than this.
    """
    states = dict(zip([cell.id for cell in cells], states_of(cells, runs_dir), strict=True))
    startable = {"new", "preempted", *retry}
    if force:
        startable = {*_ORDER} - {"running", "pending"}
    wanted = [cell for cell in interleaved(cells) if states[cell.id] in startable]
    return Plan(list(cells), states, wanted[:limit])


def interleaved(cells: Sequence[Cell]) -> list[Cell]:
    """The first seed of everything, then the second: early results, and programs compiled once.

    Points that differ in their seeds alone share a compiled program, which the first of them
    leaves for the others; started together, each would compile it.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    ranks: dict[str, int] = {}
    for cell in cells:
        rest = tuple(word for word in cell.words if not word.startswith("seed="))
        ranks[cell.id] = seen[rest]
        seen[rest] += 1
    return sorted(cells, key=lambda cell: ranks[cell.id])


def states_of(cells: Sequence[Cell], runs_dir: Path) -> list[str]:
    """The true state of each point's run; ``new`` where nothing has begun or been submitted."""
    runs = true_states(point_runs(runs_dir, [cell.point for cell in cells]))
    waits = [run.state == "pending" and not is_alive(run, starting=False) for run in runs]
    return ["new" if idle else run.state for run, idle in zip(runs, waits, strict=True)]


def fitting(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    """The points that every part of the pattern fits; all where there is none.

    A part is a word with ``*`` and ``?`` (``precision=fp8*``) or the beginning of an id; ``!``
    before it turns it round.

    Raises:
        UserError: a part, or the pattern, fits no point.
    """
    kept = list(cells)
    for part in (pattern or "").split():
        fits = {cell.id for cell in cells if _fits(cell, part.lstrip("!"))}
        if cells and not fits:
            raise UserError(f"--only: no point fits '{part.lstrip('!')}'", _known(cells, part))
        kept = [cell for cell in kept if (cell.id in fits) != part.startswith("!")]
    if cells and not kept:
        raise UserError(f"--only: no point fits '{pattern}'", "every part has to fit; see -n")
    return kept


def task(
    cell: Cell,
    runs_dir: Path,
    *,
    again: bool = False,
    config_dir: Path | None = None,
    wandb: str | None = None,
    elsewhere: bool = False,
) -> Task:
    """The process that runs the point.

    Args:
        cell: the point.
        runs_dir: where its directory is, or will be.
        again: start over, even where it is done or has diverged.
        config_dir, wandb: as ``scalify run`` takes them.
        elsewhere: the process is started by a cluster, which the run need not ask again.
    """
    words = [word for word in cell.words if not (elsewhere and word.startswith("launcher"))]
    options = ["--runs-dir", str(runs_dir.absolute()), "--quiet"]
    options += ["--config-dir", str(config_dir.absolute())] if config_dir else []
    options += ["--wandb", wandb] if wandb else []
    options += ["--force"] if again else []
    command = (sys.executable, "-m", "scalify_cli", "run", *words, *options)
    return Task(cell.id, command, (runs_dir / cell.id).absolute())


def needs_force(state: str) -> bool:
    """Whether ``scalify run`` would call a run in this state done."""
    return state in _ENDED


def digest(cells: Sequence[Cell]) -> str:
    """Six hex digits that stand for this set of points."""
    return hashlib.sha256("\n".join(sorted(cell.id for cell in cells)).encode()).hexdigest()[:6]


def grouped(invalid: Sequence[Invalid]) -> Iterator[tuple[UserError, list[Invalid]]]:
    """The refused points, together where the reason is the same."""
    reasons: dict[str, list[Invalid]] = {}
    for point in invalid:
        reasons.setdefault(point.reason.message, []).append(point)
    for points in reasons.values():
        yield points[0].reason, points


def _cell(point: "GridPoint", values: dict[str, Any]) -> Cell:
    from scalify_cli.config import signature

    return Cell(signature(values), point.words, point.values, values["launcher"])


def _combinations() -> Any:
    """Refuses configurations whose precision and scaling do not go together."""
    from scalify_cli.config import build
    from scalify_cli.precision import Policy

    @cache
    def combine(precision: tuple, scaling: tuple) -> None:
        Policy(build(dict(precision), "precision"), build(dict(scaling), "scaling"))

    return lambda values: combine(_frozen(values["precision"]), _frozen(values["scaling"]))


def _frozen(values: Mapping[str, Any]) -> tuple:
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in values.items())


def one_launcher(cells: Sequence[Cell]) -> Mapping[str, Any]:
    """The launcher's values, which all of the points have.

    Raises:
        UserError: they have not.
    """
    if any(cell.launcher != cells[0].launcher for cell in cells):
        raise _two_launchers()
    return cells[0].launcher


def _two_launchers() -> UserError:
    return UserError(
        "the points of this sweep name different launchers",
        "give one launcher to all of them; a second sweep can have another",
    )


def _known(cells: Sequence[Cell], part: str) -> str:
    """What could be meant by a part of a pattern that fits nothing."""
    words = list(dict.fromkeys(word for cell in cells for word in cell.words))
    key, equals, _ = part.lstrip("!").partition("=")
    if not equals:
        return "a part is KEY=VALUE, with * and ?, or the beginning of an id"
    keys = list(dict.fromkeys(word.partition("=")[0] for word in words))
    same = [word for word in words if word.startswith(f"{key}=")]
    return did_you_mean(part.lstrip("!"), same) if same else did_you_mean(key, keys)


def _fits(cell: Cell, part: str) -> bool:
    if "=" in part:
        return any(fnmatch(word, part) for word in cell.words)
    return cell.id.startswith(part)
