"""``scalify status``: where every run is, as a table, as JSON, or live."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, StateOption, Verbose, print_json
from scalify_cli.cli.selection import BY_INTEREST, MaybeNames, chosen, facts, is_alive, tally, usual
from scalify_cli.cli.text import age, columns, duration, number

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

Watch = Annotated[bool, typer.Option("-w", "--watch", help="Look again until all have ended.")]
ExitStatus = Annotated[
    bool, typer.Option("--exit-status", help="Exit 1 if a run failed, 75 if one has yet to end.")
]
_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_AXES = 6  # more columns than that, and a point is written out instead
_LONGEST_NOTE = 60


def status(
    names: MaybeNames = None,
    watch: Watch = False,
    state: StateOption = None,
    exit_status: ExitStatus = False,
    runs_dir: RunsDir = RUNS,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Show state, step, loss and time left of runs and sweeps."""

    def look() -> "list[RunInfo]":
        found = chosen(runs_dir, names)
        return [run for run in found if state is None or run.state == state]

    runs = _watch(_looks(look, runs_dir), silent=json) if watch else look()
    if json:
        print_json([_facts(run) for run in runs])
    elif runs and not watch:
        typer.echo("\n".join([*table(runs), "", tally(runs)]))
    elif not runs:
        typer.echo(f"no runs{f' are {state.value}' if state else ''} in {runs_dir}", err=True)
    return _exit_code(runs) if exit_status else 0


def _facts(run: "RunInfo") -> dict[str, Any]:
    return {
        **facts(run),
        "values": run.values,
        "started": run.started,
        "eta_seconds": _seconds_left(run),
        "host": run.status.get("host"),
        "slurm_job_id": run.status.get("slurm_job_id"),
    }


def _exit_code(runs: "Sequence[RunInfo]") -> int:
    states = {run.state for run in runs}
    return 1 if "failed" in states else 0 if states <= {"done", "diverged"} else 75


def table(runs: "Sequence[RunInfo]") -> list[str]:
    """The runs as lines, with a column for every key in which they differ."""
    from scalify_cli.report.axes import settings, varying

    given = [settings(run) for run in runs]
    default = usual()
    axes = varying(given, default)
    if len(axes) > _MOST_AXES:
        point_head = ["POINT"]
        points = [[" ".join(f"{key}={each[key]}" for key in axes if key in each)] for each in given]
    else:
        point_head = [key.upper() for key in axes]
        points = [[each.get(key, default.get(key, "-")) for key in axes] for each in given]
    head = ["ID", *point_head, "STATE", "STEP", "LOSS", "VAL", "ETA", "WHERE", "AGE"]
    rows = [[run.id, *point, *_cells(run)] for run, point in zip(runs, points, strict=True)]
    return columns(_with_notes([head, *rows], runs))


def _cells(run: "RunInfo") -> list[str]:
    known = run.steps > 0
    return [
        run.state,
        f"{run.step}/{run.steps}" if known else "-",
        number(run.metrics.get("train/loss")),
        number(run.metrics.get("val/loss")),
        duration(_seconds_left(run)),
        _where(run),
        age(run.updated),
    ]


def _seconds_left(run: "RunInfo") -> float | None:
    seconds = run.status.get("step_seconds")
    return (run.steps - run.step) * seconds if seconds and run.state == "running" else None


def _where(run: "RunInfo") -> str:
    job, host = run.status.get("slurm_job_id"), run.status.get("host")
    parts = [f"job {job}" if job else None, host]
    return " on ".join(part for part in parts if part) or "-"


def _with_notes(rows: list[list[str]], runs: "Sequence[RunInfo]") -> list[list[str]]:
    """A last column with what went wrong, where anything did."""
    notes = [" ".join((run.error or "").split()) for run in runs]
    if not any(notes):
        return rows
    short = [n if len(n) <= _LONGEST_NOTE else f"{n[: _LONGEST_NOTE - 3]}..." for n in notes]
    return [[*row, note] for row, note in zip(rows, ["NOTE", *short], strict=True)]


def _looks(look: "Callable[[], list[RunInfo]]", runs_dir: Path) -> "Iterator[list[RunInfo]]":
    """The runs now, and again and again until nothing can change any more."""
    from scalify_cli.report.sweeps import is_launching

    going = True
    while going:
        starting = is_launching(runs_dir)
        runs = look()
        yield runs
        going = any(is_alive(run, starting) for run in runs)
        if going:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _watch(looks: "Iterator[list[RunInfo]]", silent: bool) -> "list[RunInfo]":
    if silent:
        return [*looks][-1]
    return _watch_live(looks) if sys.stdout.isatty() else _watch_lines(looks)


def _watch_live(looks: "Iterator[list[RunInfo]]") -> "list[RunInfo]":
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console, runs = Console(highlight=False, markup=False), []
    with Live(console=console, auto_refresh=False) as live:
        for runs in looks:
            text = "\n".join(screen(runs, console.height))
            live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
    return runs


def _watch_lines(looks: "Iterator[list[RunInfo]]") -> "list[RunInfo]":
    """The table, then a line for every change of state."""
    runs, before = [], None
    for runs in looks:
        now = {run.id: run.state for run in runs}
        if before is None:
            typer.echo("\n".join([*table(runs), ""]))
        for name, state in now.items():
            if before is not None and before.get(name) != state:
                typer.echo(f"{time.strftime('%H:%M:%S')} {name} {before.get(name)} -> {state}")
        before = now
    typer.echo(tally(runs))
    return runs


def screen(runs: "Sequence[RunInfo]", height: int) -> list[str]:
    """What fits on a terminal: where there are too many, the runs that most want to be seen."""
    room = max(1, height - 5)
    if len(runs) <= room:
        return [*table(runs), "", tally(runs)]
    shown = sorted(runs, key=lambda run: BY_INTEREST.index(run.state))[:room]
    return [*table(shown), f"... and {len(runs) - room} more", "", tally(runs)]
