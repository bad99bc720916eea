"""From the points of a sweep to their ends: plan, ask, launch, follow, sum up."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from scalify_cli.cli.folders import shared_locks
from scalify_cli.cli.follow import Follower, display, follow, to_stderr, wait_for
from scalify_cli.cli.options import print_json
from scalify_cli.cli.plan import Cell, Invalid, Plan, grouped, needs_force, plan, task
from scalify_cli.cli.recording import recorded, settled
from scalify_cli.cli.selection import tally
from scalify_cli.cli.written import Written, read
from scalify_cli.config import build
from scalify_cli.errors import UserError
from scalify_cli.launch.task import Launcher, Queue, Task
from scalify_cli.report.runs import RunInfo
from scalify_cli.report.sweeps import SWEEPS, point_runs
from scalify_cli.tracking.sweep_directory import SweepDirectory

_MANY = 50  # points; more of them, and a person is asked
_MOST_SHOWN = 10  # points refused for the same reason
_GROUP = "WANDB_RUN_GROUP"  # of the environment, which runs inherit here and in SLURM's queue


@dataclass(frozen=True)
class SweepRequest:
    """One command line of ``sweep``, parsed; see its options."""

    words: tuple[str, ...]
    runs_dir: Path
    config_dir: Path | None = None
    name: str | None = None
    only: str | None = None
    limit: int | None = None
    retry: frozenset[str] = frozenset()
    force: bool = False
    skip_invalid: bool = False
    jobs: int | None = None
    gpus: tuple[str, ...] | None = None
    fail_fast: bool = False
    detach: bool = False
    wandb: str | None = None
    yes: bool = False
    json: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """A line of chatter, unless it is to be quiet."""
        if not self.quiet:
            to_stderr(text)


def sweep_points(request: SweepRequest, *, dry_run: bool = False) -> int:
    """Plan a sweep and start what is missing; the exit code.

    Raises:
        UserError: the sweep cannot be read, some of it cannot be run, or it is being run already.
    """
    written = read(request.words, request.name, request.runs_dir, request.config_dir)
    if dry_run:
        _print_points(written, request)
        _refuse(written.invalid, request)
        return 0
    _refuse(written.invalid, request)
    _note_repeated(written, request)
    if request.detach and not _elsewhere(written.cells):
        return _detach(written, request)
    with SweepDirectory(request.runs_dir / SWEEPS / written.name) as directory:
        planned = _plan(written.cells, request)
        request.say(planned.headline + _hint(planned, request))
        _ask(planned, request)
        directory.write(written.definition, [_line(cell) for cell in written.cells])
        code = launch(planned, directory.path, request)
    return _sum_up(written, planned, request, code)


def launch(planned: Plan, folder: Path, request: SweepRequest) -> int:
    """Start the wanted points and wait for all that run; an exit code, 0 unless stopped or failed.

    Raises:
        UserError: the points name different launchers, or the launcher refuses them.
    """
    follower = Follower(planned.wanted, request.say)
    live = sys.stderr.isatty() and not request.quiet
    points, locks = len(planned.cells), shared_locks()
    queue = Queue(request.jobs, request.gpus, request.fail_fast, request.detach, points, locks)
    try:
        if planned.wanted:
            launcher = _launcher(planned.wanted)
            events = recorded(launcher.launch(_tasks(planned, request), folder, queue))
            with _group(folder.name), display(follower, live=live):
                follow(events, follower)
        if not follower.stopped and not request.detach:
            wait_for(planned.cells, request.runs_dir, request.say)
    except KeyboardInterrupt:
        to_stderr(f"left alone; `scalify status {folder.name}` tells how it goes on")
        return 130
    return follower.stopped or int(bool(follower.failed))


@contextmanager
def _group(name: str) -> Iterator[None]:
    """W&B shows the runs that are started meanwhile as one group, unless they are told another."""
    named = _GROUP in os.environ or name.startswith(".")
    try:
        os.environ.update({} if named else {_GROUP: name})
        yield
    finally:
        if not named:
            del os.environ[_GROUP]


def _plan(cells: Sequence[Cell], request: SweepRequest) -> Plan:
    return plan(
        cells,
        request.runs_dir,
        retry=request.retry,
        force=request.force,
        only=request.only,
        limit=request.limit,
    )


def _tasks(planned: Plan, request: SweepRequest) -> list[Task]:
    elsewhere = _elsewhere(planned.wanted)
    return [
        task(
            cell,
            request.runs_dir,
            again=request.force or needs_force(planned.states[cell.id]),
            config_dir=request.config_dir,
            wandb=request.wandb,
            elsewhere=elsewhere,
        )
        for cell in planned.wanted
    ]


def _launcher(cells: Sequence[Cell]) -> Launcher:
    first = cells[0]
    for cell in cells:
        if cell.launcher != first.launcher:
            raise UserError(
                "the points of this sweep name different launchers",
                "give one launcher to all of them; a second sweep can have another",
            )
    return build(first.launcher, "launcher")


def _elsewhere(cells: Sequence[Cell]) -> bool:
    """Whether the launcher takes the runs to other machines."""
    return bool(cells) and getattr(_launcher(cells), "elsewhere", False)


def _refuse(invalid: Sequence[Invalid], request: SweepRequest) -> None:
    """List what cannot be run, and stop unless it is to be left out."""
    if not invalid:
        return
    reasons = list(grouped(invalid))
    for reason, points in reasons:
        to_stderr(f"not possible: {reason.message}")
        for point in points[:_MOST_SHOWN]:
            to_stderr(f"  {shlex.join(point.words)}")
        if len(points) > _MOST_SHOWN:
            to_stderr(f"  and {len(points) - _MOST_SHOWN} more")
    if not request.skip_invalid:
        hint = reasons[0][0].hint if len(reasons) == 1 else "see the reasons above"
        count = f"{len(invalid)} point{'s' * (len(invalid) > 1)} cannot be run"
        raise UserError(count, f"{hint}; --skip-invalid leaves them out")


def _note_repeated(written: Written, request: SweepRequest) -> None:
    if written.repeated:
        request.say(f"note: {written.repeated} of the points are the same run as another")


def _print_points(written: Written, request: SweepRequest) -> None:
    planned = _plan(written.cells, request)
    if request.json:
        wanted = {cell.id for cell in planned.wanted}
        points = [
            {**_line(cell), "state": planned.states[cell.id], "start": cell.id in wanted}
            | {"command": _command(cell, request)}
            for cell in planned.cells
        ]
        refused = [{"words": it.words, "reason": it.reason.message} for it in written.invalid]
        about = {"name": written.name, "path": request.runs_dir / SWEEPS / written.name}
        print_json({**about, "counts": planned.counts, "points": points, "invalid": refused})
        return
    for cell in planned.cells:
        typer.echo(_command(cell, request))
    request.say(f"sweep {written.name}, {planned.headline}{_hint(planned, request)}")


def _command(cell: Cell, request: SweepRequest) -> str:
    """What to paste into a shell to run this point alone."""
    options = [] if request.runs_dir == Path("runs") else ["--runs-dir", str(request.runs_dir)]
    options += ["--config-dir", str(request.config_dir)] if request.config_dir else []
    return shlex.join(["scalify", "run", *cell.words, *options])


def _hint(planned: Plan, request: SweepRequest) -> str:
    """Which option would start what is left alone, and how many are started where that differs."""
    retryable = ("failed", "diverged", "cancelled")
    left = [state for state in retryable if planned.counts.get(state) and not request.force]
    flags = [f"--retry-{state}" for state in left if state not in request.retry]
    usual = planned.counts["new"] + planned.counts.get("preempted", 0)
    count = len(planned.wanted)
    started = f"; {count} to start" if count != planned.counts["new"] or usual != count else ""
    return started + (f" ({', '.join(flags)} to run those again)" if flags else "")


def _ask(planned: Plan, request: SweepRequest) -> None:
    many = len(planned.wanted) > _MANY
    if many and not request.yes and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"Start {len(planned.wanted)} runs?", default=True, abort=True, err=True)


def _line(cell: Cell) -> dict[str, Any]:
    return {"id": cell.id, "words": list(cell.words), "values": dict(cell.values)}


def _sum_up(written: Written, planned: Plan, request: SweepRequest, code: int) -> int:
    """Say what has become of the points, and choose the exit code."""
    runs = _runs(planned.cells, request.runs_dir)
    states = {run.state for run in runs}
    code = code or int("failed" in states) or (75 if "preempted" in states else 0)
    name = written.name
    if request.json:
        points = [
            {**_line(cell), "state": run.state, "error": run.error, "metrics": run.metrics}
            for cell, run in zip(planned.cells, runs, strict=True)
        ]
        path = request.runs_dir / SWEEPS / name
        print_json({"name": name, "path": path, "exit_code": code, "points": points})
    elif not request.quiet:
        typer.echo(tally(runs))
        typer.echo(f"details  scalify status {name}\nresults  scalify compare {name}")
    return code


def _runs(cells: Sequence[Cell], runs_dir: Path) -> list[RunInfo]:
    return settled(point_runs(runs_dir, [cell.point for cell in cells]))


def _detach(written: Written, request: SweepRequest) -> int:
    """The same command in a session of its own, which outlives this terminal."""
    planned = _plan(written.cells, request)
    request.say(planned.headline + _hint(planned, request))
    _ask(planned, request)
    folder = request.runs_dir / SWEEPS / written.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalify_cli", "sweep", *_arguments(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    typer.echo(f"sweep {written.name} goes on as process {process.pid}")
    typer.echo(f"follow it with `scalify status {written.name} -w`")
    return 0


def _arguments(request: SweepRequest) -> list[str]:
    """The command line again, to be waited for, and without questions."""
    values = {
        "--runs-dir": request.runs_dir,
        "--config-dir": request.config_dir,
        "--name": request.name,
        "--only": request.only,
        "--limit": request.limit,
        "--jobs": request.jobs,
        "--gpus": ",".join(request.gpus) if request.gpus else None,
        "--wandb": request.wandb,
    }
    flags = {
        **{f"--retry-{state}": True for state in sorted(request.retry)},
        "--force": request.force,
        "--skip-invalid": request.skip_invalid,
        "--fail-fast": request.fail_fast,
    }
    given = [
        item for key, value in values.items() if value is not None for item in (key, str(value))
    ]
    return [*request.words, *given, *(flag for flag, asked in flags.items() if asked), "--yes"]
