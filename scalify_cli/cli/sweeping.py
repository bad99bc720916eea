"""From the points of a sweep to their ends: plan, ask, launch, follow, sum up."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from scalify_cli.cli.background import go_on
from scalify_cli.cli.folders import check_writable, shared_locks
from scalify_cli.cli.follow import Follower, display, follow, wait_for
from scalify_cli.cli.launchers import check_gpus, is_elsewhere, launcher_of
from scalify_cli.cli.options import SweepRequest, to_stderr
from scalify_cli.cli.plan import Plan, fitting, needs_force, one_launcher, plan, task
from scalify_cli.cli.points import (
    check_name,
    headline,
    line,
    note_repeated,
    print_points,
    refuse,
    sum_up,
)
from scalify_cli.cli.recording import recorded
from scalify_cli.cli.written import Written, read
from scalify_cli.launch.task import Queue, Task
from scalify_cli.report.sweeps import SWEEPS
from scalify_cli.tracking.sweep_directory import SweepDirectory

_MANY = 50  # points; more of them, and a person is asked
_GROUP = "WANDB_RUN_GROUP"  # of the environment, which runs inherit here and in SLURM's queue


def sweep_points(request: SweepRequest, *, dry_run: bool = False) -> int:
    """Plan a sweep and start what is missing; the exit code.

    Raises:
        UserError: the sweep cannot be read, some of it cannot be run, or it is being run already.
    """
    written = read(request.words, request.name, request.runs_dir, request.config_dir)
    note_repeated(written, request)
    if dry_run:
        print_points(written, _plan(written, request), request)
    _check(written, request)
    if dry_run:
        return 0
    check_writable(request.runs_dir)
    with SweepDirectory(request.runs_dir / SWEEPS / written.name) as directory:
        planned = _plan(written, request)
        request.say(headline(planned, request))
        _ask(planned, request)
        directory.write(written.definition, [line(cell) for cell in written.cells])
        apart = request.detach and planned.wanted and not is_elsewhere(planned.wanted)
        code = 0 if apart else launch(planned, directory.path, request)
    if apart:
        return go_on(written, planned, request)
    return sum_up(written, planned, request, code)


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
            launcher = launcher_of(planned.wanted)
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


def _check(written: Written, request: SweepRequest) -> None:
    """Refuse, before anything is written, what could not be run or would be lost."""
    refuse(written, request)
    cells = fitting(written.cells, request.only)
    one_launcher(cells)
    check_gpus(cells, request.gpus)
    check_name(written, request)


def _plan(written: Written, request: SweepRequest) -> Plan:
    return plan(
        fitting(written.cells, request.only),
        request.runs_dir,
        retry=request.retry,
        force=request.force,
        limit=request.limit,
    )


def _tasks(planned: Plan, request: SweepRequest) -> list[Task]:
    elsewhere = is_elsewhere(planned.wanted)
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


def _ask(planned: Plan, request: SweepRequest) -> None:
    many = len(planned.wanted) > _MANY
    if many and not request.yes and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"Start {len(planned.wanted)} runs?", default=True, abort=True, err=True)
