"""What a launcher tells becomes files: states of runs that cannot write, the code of a job."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scalify_cli.cli.states import true_states
from scalify_cli.cli.submitting import note, tell
from scalify_cli.launch.task import Event
from scalify_cli.report.runs import RunInfo, read_run
from scalify_cli.tracking.run_directory import mark
from scalify_cli.tracking.submission import record_code

_LAST = ("failed", "preempted", "cancelled")  # states that a process may have no time to write


def recorded(events: Iterable[Event]) -> Iterator[Event]:
    """The events of a launcher, passed on after they were written down."""
    for event in events:
        if event.kind == "submitting":
            record_code(Path(event.message), Path.cwd())
            note(Path(event.message), [task.path for task in event.tasks])
        elif event.kind == "submitted" and event.task:
            tell(event.task.path.parent)  # all of the array, with its first
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
