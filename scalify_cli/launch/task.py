"""What a launcher is given, and what it says while it works. It prints nothing itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Task:
    """One run to be started.

    Args:
        id: the run's id.
        command: what a user could type; its first word is the interpreter.
        path: the run's directory, which may not exist yet.
    """

    id: str
    command: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class Event:
    """Something that happened to a task, or to the launcher where ``task`` is None.

    Args:
        kind: ``submitted`` (to a cluster, ``job_id``), ``started``, ``ended`` (``code``: the exit
            code, negative for a signal, None where it is not known), ``skipped`` (somebody
            cancelled it), ``stopping`` (no more are started; with a ``code``, that of the signal
            which also asked those that run for a checkpoint), ``killed``, ``waiting`` (nothing
            happened for a while), ``note``.
        task: the task it happened to.
        code: the exit code of the process.
        job_id: the cluster's name for it.
        message: for people.
        tasks: all of an array's, with ``submitting``.
    """

    kind: str
    task: Task | None = None
    code: int | None = None
    job_id: str | None = None
    message: str = ""
    tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Queue:
    """What the command line says about the order of work.

    Args:
        jobs: runs at a time; None: as many as the machine has room for.
        gpus: names for CUDA_VISIBLE_DEVICES; None: those there are.
        fail_fast: start nothing more once a run has failed.
        detach: hand the work over, and do not wait for its end.
        points: how many there are with those that need not run: cores are shared out the same
            when a sweep is started again, for a run's last digits depend on its threads.
        locks: the folder of those on GPUs, for all that share this machine's; None: beside the
            sweeps.
    """

    jobs: int | None = None
    gpus: tuple[str, ...] | None = None
    fail_fast: bool = False
    detach: bool = False
    points: int | None = None
    locks: Path | None = None


class Launcher(Protocol):
    """Starts tasks somewhere, in their order, and tells what becomes of them."""

    def launch(self, tasks: Sequence[Task], folder: Path, options: Queue) -> Iterator[Event]:
        """Start the tasks; ``folder`` is the sweep's, ``runs/sweeps/<name>``."""
        ...
