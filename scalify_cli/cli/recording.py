"""What a launcher tells becomes files: states of runs that cannot write, the code of a job."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scalify_cli.cli.states import true_states
from scalify_cli.launch.task import Event
from scalify_cli.report.runs import RunInfo, read_run
from scalify_cli.tracking.cancelling import forget_cancel
from scalify_cli.tracking.run_directory import mark, read_status
from scalify_cli.tracking.submission import record_code

_LAST = ("failed", "preempted", "cancelled")  # states that a process may have no time to write


def recorded(events: Iterable[Event]) -> Iterator[Event]:
    """The events of a launcher, passed on after they were written down."""
    for event in events:
        if event.kind == "submitting":
            record_code(Path(event.message), Path.cwd())
        elif event.kind == "submitted":
            _mark_pending(event)
        elif event.kind == "ended" and event.task and event.job_id:
            settled([read_run(event.task.path)])
        yield event


def settled(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """The runs in their true states; how one ended that could not say so itself is written."""
    found = true_states(runs)
    for run in found:
        if run.state in _LAST and run.status and run.state != run.status.get("state"):
            mark(run.path, run.state, error=run.error)
    return found


def _mark_pending(event: Event) -> None:
    assert event.task is not None
    path, job = event.task.path, event.job_id
    if read_status(path).get("slurm_job_id") != job:  # else it has begun, and knows better
        forget_cancel(path)
        mark(path, "pending", slurm_job_id=job, slurm_log=event.message, error=None)
