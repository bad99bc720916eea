"""One run as several processes of this machine: they start together and end together."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scalify_cli.errors import UserError
from scalify_cli.launch.distributed import VARIABLE
from scalify_cli.launch.stopping import EXIT_CODES

GRACE_SECONDS = 20.0
"""How long the others may take to say how they fared, once one has failed."""

_POLL_SECONDS = 0.05
_ENDED_WELL = (0, *EXIT_CODES.values())


@dataclass(frozen=True)
class Lost:
    """The process that failed first: its rank, whether it was killed, and what it said."""

    rank: int
    killed: bool
    message: str
    said: str


def run_together(command: Sequence[str], count: int) -> tuple[int, Lost | None]:
    """Run ``count`` copies of a command as one run; the first has this process's output.

    SIGTERM and SIGINT are passed on to each; one that dies of them, too young to catch them, has
    not failed. When one has ended badly, the others are given some seconds and then killed; all
    are killed when this process dies.

    Returns:
        The exit code of the first process (where it was killed: 1, or the code of having been
        stopped), and who failed.
    """
    group = _Group()
    with _passing_on(group):
        group.start(command, count)
        lost = group.wait()
    code = group.processes[0].returncode
    if lost is None:
        return (code if code in _ENDED_WELL else EXIT_CODES[group.signals[0].name]), None
    return (code if code > 0 and code not in _ENDED_WELL else 1), lost


class _Group:
    def __init__(self):
        self.processes: list[subprocess.Popen] = []
        self.said: list[IO[bytes]] = []
        self.signals: list[signal.Signals] = []

    def start(self, command: Sequence[str], count: int) -> None:
        address = f"127.0.0.1:{_free_port()}"
        for rank in range(count):
            own = _gpus(os.environ, rank, count) | {VARIABLE: f"{rank}/{count}@{address}"}
            self.said.append(tempfile.TemporaryFile())  # noqa: SIM115 (open until the end)
            process = subprocess.Popen(
                command,
                env={**os.environ, **own},
                stdin=subprocess.PIPE,  # its end tells them of ours
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else self.said[rank],
                close_fds=False,  # the locks on our place are theirs too, should they outlive us
                start_new_session=True,  # a Ctrl-C of the terminal reaches them once, through us
            )
            self.processes.append(process)
        for number in self.signals:
            self.send(number)

    def wait(self) -> Lost | None:
        """Until all have ended; who failed first, unless that was a signal that we passed on."""
        first, deadline = None, float("inf")
        while None in [process.poll() for process in self.processes]:
            if first is None and (first := self.ended_badly()) is not None:
                deadline = time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        first = self.ended_badly() if first is None else first
        return None if first is None or self.was_told(first) else self.lost(first)

    def ended_badly(self) -> int | None:
        """Of those that have by now the one that most likely did first.

        A killed one cannot speak for itself; JAX aborts a process that has lost another.
        """
        codes = {rank: process.returncode for rank, process in enumerate(self.processes)}
        bad = [rank for rank, code in codes.items() if code not in (None, *_ENDED_WELL)]
        order = {
            rank: (not self.was_told(rank), codes[rank] == -signal.SIGABRT, codes[rank] > 0, rank)
            for rank in bad
        }
        return min(bad, key=order.__getitem__, default=None)

    def was_told(self, rank: int) -> bool:
        """Whether it has died of a signal that we passed on."""
        return -self.processes[rank].returncode in self.signals

    def lost(self, rank: int) -> Lost:
        code, file = self.processes[rank].returncode, self.said[rank]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        file.seek(0)
        said = file.read().decode(errors="replace")
        return Lost(rank, code < 0, f"process {rank} of {len(self.processes)} {how}", said)

    def send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)  # nothing happens to one that has ended


@contextmanager
def _passing_on(group: _Group) -> Iterator[None]:
    def pass_on(number, frame):
        group.signals.append(signal.Signals(number))
        group.send(number)

    numbers = signal.SIGTERM, signal.SIGINT
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in group.processes:
            if process.poll() is None:
                process.kill()


def _gpus(environ: Mapping[str, str], rank: int, count: int) -> dict[str, str]:
    """A process's part of the GPUs where there are any.

    Each has as many threads as one process would have: a run's last digits depend on them.
    """
    if environ.get("JAX_PLATFORMS", "") == "cpu":
        return {}
    nodes = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    names = environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, nodes))).split(",")
    if not names[0]:
        return {}
    share = len(names) // count
    if share == 0:
        raise UserError(
            f"launcher.processes={count} asks for more GPUs than the {len(names)} visible ones.",
            f"use launcher.processes={len(names)}, or JAX_PLATFORMS=cpu.",
        )
    own = names[rank * share : (rank + 1) * share]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
