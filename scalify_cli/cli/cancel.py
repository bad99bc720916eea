"""``scalify cancel``: end runs early; those that run write a checkpoint first."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from scalify_cli.cli.options import RUNS, RunsDir, Verbose
from scalify_cli.cli.selection import Names, chosen
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

_SECONDS_TO_STOP = 10.0
_SECONDS_BETWEEN_LOOKS = 0.2
_CAN_END = ("running", "pending")
_ENDED = ("done", "diverged", "failed", "cancelled")


def cancel(names: Names, runs_dir: RunsDir = RUNS, verbose: Verbose = False) -> int:
    """Cancel runs and sweeps: what runs writes a checkpoint, what waits is not started."""
    found = chosen(runs_dir, names)
    runs = [run for run in found if run.state in _CAN_END]
    _check_reach(runs)
    _stop(runs)
    going = _still_going(runs)
    for run in runs:
        typer.echo(f"{'cancelling' if run in going else _state(run)} {run.id}")
    if going:
        typer.echo("note: some have yet to write a checkpoint; see `scalify status`", err=True)
    if not runs:
        typer.echo(f"nothing to cancel: {len(found)} of {len(found)} have ended", err=True)
    return 0


def _check_reach(runs: "Sequence[RunInfo]") -> None:
    """Refuse before anything is stopped."""
    import platform

    here = platform.node()
    for run in runs:
        host = run.status.get("host")
        if run.state == "running" and not _job(run) and host != here:
            raise UserError(f"run {run.id} runs on {host}", "cancel it there")


def _job(run: "RunInfo") -> str | None:
    return run.status.get("slurm_job_id")


def _stop(runs: "Sequence[RunInfo]") -> None:
    """Leave word in every run's directory, then send the signals: no queue starts another."""
    from scalify_cli.launch.slurm import NoAnswer
    from scalify_cli.launch.slurm import cancel as cancel_jobs
    from scalify_cli.tracking.cancelling import request_cancel
    from scalify_cli.tracking.run_directory import holder

    for run in runs:
        request_cancel(run.path)
    try:
        cancel_jobs(*[job for run in runs if (job := _job(run))])
    except NoAnswer as error:
        raise UserError(str(error), "cancel where the cluster can be reached", 1) from None
    for run in runs:
        process = None if _job(run) else holder(run.path)
        if process is not None:
            os.kill(process, signal.SIGTERM)


def _still_going(runs: "Sequence[RunInfo]") -> "list[RunInfo]":
    """Those whose process still writes after a little while."""
    end, going = time.monotonic() + _SECONDS_TO_STOP, list(runs)
    while going := [run for run in going if not _has_ended(run.path)]:
        if time.monotonic() > end:
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return going


def _state(run: "RunInfo") -> str:
    from scalify_cli.tracking.run_directory import read_status

    return read_status(run.path).get("state", "cancelled")


def _has_ended(path: Path) -> bool:
    """Whether its process is gone; what such a one has left unsaid is written."""
    from scalify_cli.tracking.run_directory import mark, read_status

    return read_status(path).get("state") in _ENDED or mark(path, "cancelled")
