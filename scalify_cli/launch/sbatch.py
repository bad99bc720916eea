"""``job.sbatch``: an array of runs as a plain script, rendered by a pure function."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.launch.slurm import Slurm

SCRIPT, TASKS = "job.sbatch", "tasks"
ANSWER = "job"  # the array's id, from sbatch itself

_BODY = """\
export SCALIFY_SUBMISSION={folder}
{setup}
# A line of the file "tasks" is a run: one that is done ends at once, one that was stopped resumes.
eval "set -- $(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$SCALIFY_SUBMISSION/tasks")"
cancelled=$SCALIFY_SUBMISSION/$SLURM_ARRAY_TASK_ID.cancelled
rm -f "$cancelled"
trap : TERM  # scancel reaches the run, which writes a checkpoint; this script waits for it
{srun} "$@"
code=$?

# 75: stopped with a checkpoint; 143: before there was anything to save. A job that still runs was
# warned of its time limit or of a preemption, and queues again; one that was cancelled does not,
# and leaves word of it, for SLURM forgets: it ends for no reason, not preempted and not requeued.
job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID  # the array's own number would mean all of it
if [[ $code == 75 || $code == 143 ]]; then
  restarts=${{SLURM_RESTART_COUNT:-0}}
  told=$(scontrol --oneliner show job "$job")
  if [[ $told == *" JobState=RUNNING "* ]]; then
    ((restarts < {max_requeues})) && scontrol requeue "$job"
  elif [[ $told == *" JobState=C"*" Reason=None "*" Restarts=$restarts "* ]]; then
    [[ $told == *" PreemptTime="[0-9]* ]] || touch "$cancelled"
  fi
fi
exit $code
"""


@dataclass(frozen=True)
class Submission:
    """One array to be submitted.

    Args:
        name: the job's name in the queue.
        folder: where the script, the list of tasks and the logs are; absolute.
        directory: where the runs' processes start; absolute.
        commands: what each task runs.
        parallel: tasks at a time; None: as many as the cluster likes.
    """

    name: str
    folder: Path
    directory: Path
    commands: Sequence[Sequence[str]]
    parallel: int | None = None


def render(slurm: "Slurm", submission: Submission) -> str:
    """The text of ``job.sbatch``."""
    options = "".join(f"#SBATCH {option}\n" for option in _options(slurm, submission))
    body = _BODY.format(
        folder=shlex.quote(str(submission.folder)),
        setup="".join(f"{line}\n" for line in _setup(slurm)),
        srun=shlex.join(_srun(slurm)),
        max_requeues=slurm.max_requeues,
    )
    return f"#!/bin/bash\n{options}\n{body}"


def render_tasks(slurm: "Slurm", submission: Submission) -> str:
    """The text of ``tasks``: a command a line, as one would type it.

    Raises:
        UserError: a word has a line break in it.
    """
    lines = [shlex.join(_command(slurm, command)) for command in submission.commands]
    for line in lines:
        if "\n" in line:
            raise UserError(f"a line break in {line!r}", "leave it out of the words of a run")
    return "".join(f"{line}\n" for line in lines)


def log_path(folder: Path, index: int | str) -> Path:
    """Where the output of a task of the array goes."""
    return folder / f"{index}.log"


def cancelled_path(log: Path) -> Path:
    """Where a task leaves word that it was cancelled."""
    return log.with_suffix(".cancelled")


def _options(slurm: "Slurm", submission: Submission) -> Iterator[str]:
    limit = f"%{submission.parallel}" if submission.parallel else ""
    yield f"--job-name={shlex.quote(submission.name)}"
    yield f"--array=0-{len(submission.commands) - 1}{limit}"
    yield f"--chdir={shlex.quote(str(submission.directory))}"
    folder = Path(str(submission.folder).replace("%", "%%"))  # a % begins a pattern of SLURM's
    yield f"--output={shlex.quote(str(log_path(folder, '%a')))}"
    yield "--open-mode=append"
    yield "--requeue"
    yield f"--nodes={slurm.nodes}"
    yield f"--ntasks-per-node={slurm.tasks_per_node}"
    if slurm.signal_seconds:
        yield f"--signal=TERM@{slurm.signal_seconds}"
    for name, value in _resources(slurm).items():
        if value is not None:
            yield f"--{name}={shlex.quote(str(value))}"
    yield from slurm.sbatch


def _resources(slurm: "Slurm") -> dict[str, object]:
    return {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time,
        "mem": slurm.memory,
        "gpus-per-node": slurm.gpus,
        "cpus-per-task": slurm.cpus,
        "constraint": slurm.constraint,
    }


def _setup(slurm: "Slurm") -> Iterator[str]:
    if slurm.modules:
        yield f"module load {shlex.join(slurm.modules)}"
    yield from slurm.setup


def _srun(slurm: "Slurm") -> Iterator[str]:
    """Signals reach the processes that ``srun`` started, on every node, and not the script."""
    yield "srun"
    if slurm.cpus:
        yield f"--cpus-per-task={slurm.cpus}"  # srun does not ask sbatch for it
    if slurm.processes > 1:
        yield "--wait=60"  # seconds for the others to end once one has
    yield from slurm.srun


def _command(slurm: "Slurm", command: Sequence[str]) -> list[str]:
    own = [slurm.python, *command[1:]] if slurm.python else list(command)
    return [*shlex.split(slurm.container or ""), *own]
