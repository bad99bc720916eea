"""``scalify retry``: run again what has ended badly, where and as it was run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalify_cli.cli.options import (
    RUNS,
    ConfigDir,
    FailFast,
    Gpus,
    Jobs,
    RunsDir,
    SweepRequest,
    Verbose,
    WandbOption,
    gpu_names,
)
from scalify_cli.cli.selection import Names, chosen, tally
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.cli.plan import Cell
    from scalify_cli.report.runs import RunInfo
    from scalify_cli.report.sweeps import Point

_STATES = ("failed", "diverged", "cancelled", "preempted")
_ALONE = ".alone"  # beside the sweeps: scripts and logs of runs that are in none

Failed = Annotated[bool, typer.Option("--failed", help="Only failed ones.")]
Diverged = Annotated[bool, typer.Option("--diverged", help="Only diverged ones, from the start.")]
Cancelled = Annotated[bool, typer.Option("--cancelled", help="Only cancelled ones.")]
Preempted = Annotated[bool, typer.Option("--preempted", help="Only preempted ones.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


def retry(
    names: Names,
    failed: Failed = False,
    diverged: Diverged = False,
    cancelled: Cancelled = False,
    preempted: Preempted = False,
    jobs: Jobs = None,
    gpus: Gpus = None,
    fail_fast: FailFast = False,
    runs_dir: RunsDir = RUNS,
    wandb: WandbOption = None,
    config_dir: ConfigDir = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run again what failed, diverged, was cancelled or preempted; go on from checkpoints."""
    asked = zip(_STATES, (failed, diverged, cancelled, preempted), strict=True)
    states = [state for state, wanted in asked if wanted] or _STATES
    found = chosen(runs_dir, names)
    runs = [run for run in found if run.state in states]
    if not runs:
        typer.echo(f"nothing to retry: {tally(found)}", err=True)
        return 0
    request = SweepRequest(
        words=(),
        runs_dir=runs_dir,
        config_dir=config_dir,
        jobs=jobs,
        gpus=gpu_names(gpus),
        fail_fast=fail_fast,
        wandb=wandb.value if wandb else None,
        quiet=quiet,
    )
    return _retry(runs, request)


def _retry(runs: "Sequence[RunInfo]", request: SweepRequest) -> int:
    from scalify_cli.cli.launchers import check_gpus

    parts = [(folder, part, _cells(part, request)) for folder, part in _by_sweep(runs, request)]
    for _, _, cells in parts:
        check_gpus(cells, request.gpus)
    counts = Counter(run.state for run in runs)
    request.say("again: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    codes = [_launch(*part, request) for part in parts]
    after = chosen(request.runs_dir, [run.id for run in runs])
    if not request.quiet:
        typer.echo(tally(after))
    states = {run.state for run in after}
    unfinished = 75 if states & {"preempted", "cancelled"} else 0
    return max(codes) or int("failed" in states) or unfinished


def _launch(
    folder: Path, runs: "Sequence[RunInfo]", cells: "list[Cell]", request: SweepRequest
) -> int:
    from scalify_cli.cli.plan import Plan
    from scalify_cli.cli.sweeping import launch
    from scalify_cli.tracking.sweep_directory import SweepDirectory

    states = {run.id: run.state for run in runs}
    with SweepDirectory(folder):
        return launch(Plan(cells, states, cells), folder, request)


def _by_sweep(
    runs: "Sequence[RunInfo]", request: SweepRequest
) -> "Iterator[tuple[Path, list[RunInfo]]]":
    """The runs of each sweep, with its folder; then those that are in none."""
    from scalify_cli.report.sweeps import SWEEPS, find_sweeps

    left = {run.id: run for run in runs}
    for sweep in find_sweeps(request.runs_dir):
        points = [point for point in sweep.points if point.id in left]
        if points:
            yield sweep.path, [_at(left.pop(point.id), point) for point in points]
    if left:
        yield request.runs_dir / SWEEPS / _ALONE, list(left.values())


def _at(run: "RunInfo", point: "Point") -> "RunInfo":
    return replace(run, words=tuple(point.words), values=point.values)


def _cells(runs: "Sequence[RunInfo]", request: SweepRequest) -> "list[Cell]":
    """The points that the runs are, checked again.

    Raises:
        UserError: a run's words cannot be run any more, or make another run now.
    """
    from scalify_cli.cli.plan import check
    from scalify_cli.config.grid import GridPoint

    cells = []
    for run in runs:
        words = _words(run)
        found, invalid = check([GridPoint(tuple(words), dict(run.values))], request.config_dir)
        if invalid:
            raise invalid[0].reason
        if found[0].id != run.id:
            message = f"the words of run {run.id} make another run now, {found[0].id}"
            raise UserError(message, f"the options have changed: scalify run {' '.join(words)}")
        cells += found
    return cells


def _words(run: "RunInfo") -> list[str]:
    """What started the run: what its process was told, and the launcher it was submitted with."""
    written = run.path.parent / "jobs" / run.id / "overrides.txt"
    if run.words is None and run.status.get("slurm_job_id") and written.is_file():
        return written.read_text("utf-8").splitlines()
    return run.overrides
