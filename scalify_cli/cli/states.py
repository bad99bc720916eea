"""What is true of runs that were submitted to SLURM: their own word, and the cluster's.

A run's ``state.json`` is right about how far it came, and wrong when its process could not write
any more. The controller knows that for some minutes, the accounting database, if there is one,
for ever; where neither does, the run's silence is what is left.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from scalify_cli.cli.submitting import tell
from scalify_cli.launch.sbatch import cancelled_path
from scalify_cli.launch.squeue import Job, NoAnswer, accounted, poll
from scalify_cli.report.runs import RunInfo, read_run

_OPEN = ("pending", "running", "preempted")  # SLURM may know better
_ASKED = (*_OPEN, "failed")  # a failed job may have been requeued by hand
_SILENT_SECONDS = 30.0  # three heartbeats
_STUCK = ("held", "Held", "Never", "Bad", "Invalid")  # parts of reasons that time does not mend


def true_states(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """The runs in the states they are really in.

    ``squeue`` is asked once for all of them, ``sacct`` once for those it has forgotten; neither
    when no run was submitted to SLURM.
    """
    runs = _told(runs)
    asked = {_job_id(run) for run in runs if _job_id(run) and _written(run) in _ASKED}
    if not asked:
        return list(runs)
    try:
        jobs = poll(asked)
    except NoAnswer as error:
        _say(f"note: {error}; the states are those that the runs wrote themselves")
        return list(runs)
    forgotten = {_job_id(run) for run in runs if _written(run) in _OPEN} & asked - set(jobs)
    jobs |= accounted(forgotten)
    return [_merged(run, jobs.get(_job_id(run))) if _job_id(run) in asked else run for run in runs]


def _told(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """The runs, after those have learned of their jobs that did not know of them."""
    told = {run_id for runs_dir in {run.path.parent for run in runs} for run_id in tell(runs_dir)}
    return [_again(run) if run.id in told else run for run in runs]


def _again(run: RunInfo) -> RunInfo:
    return replace(read_run(run.path), words=run.words, values=run.values)


def _merged(run: RunInfo, job: Job | None) -> RunInfo:
    if job is None:
        state, error = _without_job(run)
    elif job.over:
        state, error = _after_job(run, job)
    else:
        state, error = _in_queue(run, job)
    return replace(run, state=state, error=error)


def _in_queue(run: RunInfo, job: Job) -> tuple[str, str | None]:
    if job.state == "COMPLETING":
        return ("running", run.error) if _written(run) == "running" else (run.state, run.error)
    if job.state not in ("RUNNING", "SUSPENDED", "STOPPED", "STAGE_OUT"):
        stuck = any(word in job.reason for word in _STUCK)
        return "pending", f"job {job.id} waits: {job.reason}" if stuck else None
    return ("running", None) if _written(run) in _OPEN else (run.state, run.error)


def _after_job(run: RunInfo, job: Job) -> tuple[str, str | None]:
    written = _written(run)
    if written not in _OPEN or (job.state == "COMPLETED" and written != "pending"):
        return run.state, run.error
    told = f"job {job.id} was {job.state}" + (f" ({job.reason})" if job.reason else "")
    if job.state == "CANCELLED":
        return "cancelled", told
    if written == "preempted" or job.state == "PREEMPTED":
        return "preempted", run.error or told
    return "failed", f"{told}{_see_log(run)}"


def _without_job(run: RunInfo) -> tuple[str, str | None]:
    """The job is gone and nobody remembers why."""
    gone = f"job {_job_id(run)} is gone"
    if cancelled_path(Path(run.status.get("slurm_log") or "/none")).exists():
        return "cancelled", f"job {_job_id(run)} was CANCELLED"
    if _written(run) == "running":
        silence = time.time() - (run.updated or 0.0)
        fresh = silence < _SILENT_SECONDS
        return (run.state, run.error) if fresh else ("failed", f"{gone}{_see_log(run)}")
    if _written(run) == "pending":
        began = Path(run.status.get("slurm_log") or "/").is_file()
        if began:
            return "failed", f"{gone} and the run never began{_see_log(run)}"
        return "cancelled", f"{gone} without having started"
    return run.state, run.error


def _see_log(run: RunInfo) -> str:
    log = run.status.get("slurm_log")
    return f"; see {log}" if log else ""


def _job_id(run: RunInfo) -> str:
    return str(run.status.get("slurm_job_id") or "")


def _written(run: RunInfo) -> str:
    return run.status.get("state", "pending")


@cache
def _say(text: str) -> None:
    print(text, file=sys.stderr)
