"""Runs as processes on this machine."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalify_cli.errors import UserError
from scalify_cli.launch.task import Event, Queue, Task


@dataclass(frozen=True)
class Local:
    """On this machine; a run that is asked for alone, in the process that was asked.

    Args:
        processes: of one run, each with its part of every batch, of the GPUs and of the cores.

    Raises:
        UserError: there is no such number of processes.
    """

    processes: int = 1

    def __post_init__(self):
        if self.processes < 1:
            raise UserError(
                f"launcher.processes={self.processes} is too small.",
                "launcher.processes is a whole number of at least 1.",
            )

    def launch(self, tasks: Sequence[Task], folder: Path, options: Queue) -> Iterator[Event]:
        """One after the other."""
        for task in tasks:
            yield Event("started", task)
            yield Event("ended", task, subprocess.run(task.command, check=False).returncode)
