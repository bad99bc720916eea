"""``scalify rm``: remove runs and sweeps from the disk."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from scalify_cli.cli.options import RUNS, RunsDir, Verbose, Yes
from scalify_cli.cli.selection import Names, chosen, is_alive
from scalify_cli.cli.text import size
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo
    from scalify_cli.report.sweeps import Sweep


def rm(names: Names, yes: Yes = False, runs_dir: RunsDir = RUNS, verbose: Verbose = False) -> int:
    """Remove runs, and sweeps with the runs that are in no other sweep."""
    from scalify_cli.report.sweeps import find_sweep

    sweeps = {name: sweep for name in names if (sweep := find_sweep(runs_dir, name))}
    others = _of_others(runs_dir, {sweep.name for sweep in sweeps.values()})
    found = [(name, run) for name in names for run in chosen(runs_dir, [name])]
    runs = {run.id: run for name, run in found if name not in sweeps or run.id not in others}
    if kept := len({run.id for _, run in found} - runs.keys()):
        typer.echo(f"note: {_count(kept, 'run')} of other sweeps too, kept", err=True)
    _check_idle([*runs.values()], [*sweeps.values()])
    doomed = [run for run in runs.values() if run.path.is_dir()]
    what = _what(doomed, [*sweeps.values()])
    if not (yes or _agreed(what)):
        typer.echo("nothing is removed", err=True)
        return 1
    _remove(doomed, [*sweeps.values()])
    typer.echo(f"removed {what}")
    return 0


def _of_others(runs_dir: Path, mine: set[str]) -> set[str]:
    from scalify_cli.report.sweeps import find_sweeps

    others = [sweep for sweep in find_sweeps(runs_dir) if sweep.name not in mine]
    return {point.id for sweep in others for point in sweep.points}


def _check_idle(runs: "Sequence[RunInfo]", sweeps: "Sequence[Sweep]") -> None:
    from scalify_cli.report.sweeps import is_being_run

    for sweep in sweeps:
        if is_being_run(sweep):
            hint = f"`scalify cancel {sweep.name}` first"
            raise UserError(f"sweep {sweep.name} is being run", hint)
    for run in runs:
        if is_alive(run, starting=False):
            raise UserError(f"run {run.id} is {run.state}", f"`scalify cancel {run.id}` first")


def _what(runs: "Sequence[RunInfo]", sweeps: "Sequence[Sweep]") -> str:
    weight = size(sum(path.stat().st_size for run in runs for path in _files(run.path)))
    named = f" and sweep {', '.join(sweep.name for sweep in sweeps)}" if sweeps else ""
    return f"{_count(len(runs), 'run')} ({weight}){named}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(f"{what} would be removed", "--yes removes without asking")
    return typer.confirm(f"remove {what}?", err=True)


def _remove(runs: "Sequence[RunInfo]", sweeps: "Sequence[Sweep]") -> None:
    from scalify_cli.tracking.run_directory import remove

    for run in runs:
        if not remove(run.path):
            raise UserError(f"run {run.id} has just started", f"`scalify cancel {run.id}` first")
        shutil.rmtree(run.path.parent / "jobs" / run.id, ignore_errors=True)
    for sweep in sweeps:
        shutil.rmtree(sweep.path)
