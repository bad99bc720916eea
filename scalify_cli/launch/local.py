"""Runs as processes on this machine."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalify_cli.launch.task import Event, Queue, Task


@dataclass(frozen=True)
class Local:
    """On this machine; a run that is asked for alone, in the process that was asked."""

    def launch(self, tasks: Sequence[Task], folder: Path, options: Queue) -> Iterator[Event]:
        """One after the other."""
        for task in tasks:
            yield Event("started", task)
            yield Event("ended", task, subprocess.run(task.command, check=False).returncode)
