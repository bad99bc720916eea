"""Processes that outlive the one that starts them, found again through files with their ids."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path


class ClusterError(RuntimeError):
    """A daemon does not start, or a package is missing."""


def start(folder: Path, name: str, command: list[str], environment: Mapping[str, str]) -> None:
    """Start a program in a session of its own; its id is in ``<name>.pid``."""
    with (folder / f"{name}.out").open("ab") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    (folder / f"{name}.pid").write_text(f"{process.pid} {command[0]}")


def running(folder: Path, name: str) -> int | None:
    """The id of the program ``name`` if it still runs and is the one that was started."""
    try:
        pid, program = (folder / f"{name}.pid").read_text().split()
    except (OSError, ValueError):
        return None
    _reap(int(pid))
    alive = read(int(pid), "cmdline").startswith(program.encode())
    return int(pid) if alive else None


def end(folder: Path, name: str, number: int = signal.SIGTERM, seconds: float = 15) -> None:
    """Signal a program, and kill it when it does not listen."""
    pid = running(folder, name)
    if pid:
        kill(pid, number)
        if not happens(lambda: running(folder, name) is None, seconds):
            kill(pid, signal.SIGKILL)
    (folder / f"{name}.pid").unlink(missing_ok=True)


def kill(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def with_variables(*words: str) -> Iterator[int]:
    """Ids of the processes that have all these ``NAME=value`` in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        found = read(int(folder.name), "environ").split(b"\0")
        if all(word.encode() in found for word in words):
            yield int(folder.name)


def read(pid: int, name: str) -> bytes:
    """A file of ``/proc``; empty for a process that is gone or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def happens(what: Callable[[], object], seconds: float) -> bool:
    """Whether it becomes true in time; it is asked ten times a second."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def answers(port: int) -> bool:
    """Whether something listens on this machine's port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
