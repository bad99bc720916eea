"""Runs as jobs of a SLURM cluster: submitted as arrays, followed through ``squeue``."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from scalify_cli.errors import UserError
from scalify_cli.launch.sbatch import (
    ANSWER,
    SCRIPT,
    TASKS,
    Submission,
    log_path,
    render,
    render_tasks,
)
from scalify_cli.launch.squeue import Job, NoAnswer, cancel, largest_array, poll, submit
from scalify_cli.launch.task import Event, Queue, Task

__all__ = ["Job", "NoAnswer", "Slurm", "cancel", "poll"]

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_AT_LEAST = {"nodes": 1, "tasks_per_node": 1, "signal_seconds": 0, "max_requeues": 0}


@dataclass(frozen=True)
class Slurm:
    """What every job asks for; what is None is left to the cluster.

    Args:
        partition, account, qos, time, memory, constraint: as ``sbatch`` takes them.
        gpus: of a node, as ``1`` or ``a100:2``.
        cpus: of a task.
        nodes, tasks_per_node: of one run, which is one process a task.
        modules: names for ``module load``.
        container: words before the command, as ``apptainer exec --nv image.sif``.
        sbatch: more ``#SBATCH`` lines, without that word.
        srun: more options of ``srun``.
        setup: lines of bash before the run.
        python: the interpreter there; None: the one that submits.
        parallel: jobs at a time.
        signal_seconds: before the time limit a run is told to write a checkpoint.
        max_requeues: times that a job may queue again.
        max_array_size: tasks in one array; None: what the cluster says.
        poll_seconds: between two questions to the cluster.

    Raises:
        UserError: a count is too small, or the time limit leaves no time before the signal.
    """

    elsewhere = True  # a run asked for alone is submitted, too

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    memory: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    constraint: str | None = None
    modules: list[str] = field(default_factory=list)
    container: str | None = None
    sbatch: list[str] = field(default_factory=list)
    srun: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    python: str | None = None
    parallel: int | None = None
    signal_seconds: int = 120
    max_requeues: int = 100
    max_array_size: int | None = None
    poll_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise _wrong(name, getattr(self, name), f"use {least} or more")
        for name in ("cpus", "parallel", "max_array_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise _wrong(name, getattr(self, name), "use 1 or more, or null")
        if self.time is not None and _seconds(self.time) <= self.signal_seconds:
            hint = f"use launcher.signal_seconds=N with N below {_seconds(self.time)}"
            raise _wrong("time", self.time, f"it is over before the signal; {hint}")

    @property
    def processes(self) -> int:
        """Of one run."""
        return self.nodes * self.tasks_per_node

    def launch(self, tasks: Sequence[Task], folder: Path, options: Queue) -> Iterator[Event]:
        """Submit the tasks and, unless detached, tell what becomes of them until all have ended.

        Before each array comes ``submitting``, whose message is the folder of its script: what
        belongs beside it can be written then. From there on a file says what SLURM has answered,
        whatever becomes of this process.

        Raises:
            UserError: SLURM refuses a job.
        """
        waiting: dict[str, Task] = {}
        for event in self._submit(tasks, folder.absolute(), options.jobs or self.parallel):
            if event.task and event.job_id:
                waiting[event.job_id] = event.task
            yield event
        if not options.detach:
            yield from self.follow(waiting, fail_fast=options.fail_fast)

    def follow(self, tasks: Mapping[str, Task], *, fail_fast: bool = False) -> Iterator[Event]:
        """What becomes of jobs until all have ended.

        Args:
            tasks: by the ids of their jobs.
            fail_fast: cancel those that wait once one has failed.
        """
        open_jobs, states = dict(tasks), dict.fromkeys(tasks, "PENDING")
        while open_jobs:
            try:
                jobs = poll(open_jobs)
            except NoAnswer as error:
                yield Event("waiting", message=str(error))
                time.sleep(self.poll_seconds)
                continue
            yield from _changes(open_jobs, states, jobs)
            if fail_fast and "FAILED" in states.values():
                yield Event("stopping", message="a run failed; what has not begun is cancelled")
                cancel(*[job_id for job_id in open_jobs if states[job_id] == "PENDING"])
                fail_fast = False
            if open_jobs:
                yield Event("waiting")
                time.sleep(self.poll_seconds)

    def _submit(self, tasks: Sequence[Task], folder: Path, parallel: int | None) -> Iterator[Event]:
        size = self.max_array_size or largest_array()
        before = ""
        for start in range(0, len(tasks), size):
            chunk = tasks[start : start + size]
            place = _new_folder(folder)
            name = f"scalify-{folder.name}"
            commands = [task.command for task in chunk]
            submission = Submission(name, place, Path.cwd(), commands, parallel)
            (place / TASKS).write_text(render_tasks(self, submission), "utf-8")
            (place / SCRIPT).write_text(render(self, submission), "utf-8")
            (place / ANSWER).touch()
            yield Event("submitting", message=str(place), tasks=tuple(chunk))
            after = [f"--dependency=afterany:{before}"] if before and parallel else []
            before = submit(place / SCRIPT, place / ANSWER, *after)
            for index, task in enumerate(chunk):
                log = str(log_path(place, index))
                yield Event("submitted", task, job_id=f"{before}_{index}", message=log)


def _new_folder(folder: Path) -> Path:
    for number in count(1):
        place = folder / f"slurm-{number}"
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        return place
    raise AssertionError("count never ends")


def _changes(
    open_jobs: dict[str, Task], states: dict[str, str], jobs: Mapping[str, Job]
) -> Iterator[Event]:
    """What is new in ``jobs``; those that are over leave ``open_jobs``."""
    for job_id, task in list(open_jobs.items()):
        job = jobs.get(job_id, Job(job_id, "COMPLETED", "the queue has forgotten it"))
        if job.over:
            del open_jobs[job_id]
        if job.state != states[job_id]:
            states[job_id] = job.state
            yield _event(job, task)


def _event(job: Job, task: Task) -> Event:
    if job.over:
        return Event("ended", task, job_id=job.id, message=_told(job))
    kind = "started" if job.state == "RUNNING" else "note"
    return Event(kind, task, job_id=job.id, message=_told(job))


def _told(job: Job) -> str:
    return f"job {job.id} is {job.state}" + (f" ({job.reason})" if job.reason else "")


def _wrong(name: str, value: object, hint: str) -> UserError:
    return UserError(f"launcher.{name}={value} is no use", hint)


def _seconds(text: str) -> float:
    """The length of a time limit in SLURM's notation; infinite where it names none."""
    found = _TIME.fullmatch(text.strip())
    if not found:
        return float("inf")
    numbers = [int(part) for part in found["clock"].split(":")]
    if found["days"]:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((int(found["days"]) * 24 + hours) * 60 + minutes) * 60 + seconds
    hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    return (hours * 60 + minutes) * 60 + seconds
