"""A process's place among the processes of one run, read from its environment, and joining them."""

import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

VARIABLE = "SCALIFY_PROCESS"
"""``1/4@127.0.0.1:40000``: which of how many processes, and where they meet."""

HEARTBEAT_SECONDS = 45
"""A process that is silent for longer is lost, and all others end."""

_CONNECT_SECONDS = 120
_PORTS = 61440, 4096  # above those that Linux hands out by itself


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Args:
        rank: 0 for the process that writes the run's directory.
        count: processes of the run.
        address: ``host:port`` where process 0 listens.
        devices: which of the visible accelerators are its own; None: all.
        local: whether a parent on this machine looks after it.
    """

    rank: int
    count: int
    address: str
    devices: tuple[int, ...] | None = None
    local: bool = False


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where it works alone."""
    if VARIABLE in environ:
        numbers, _, address = environ[VARIABLE].partition("@")
        rank, _, count = numbers.partition("/")
        return Place(int(rank), int(count), address, local=True)
    count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
    if count == 1 or "SLURM_PROCID" not in environ:
        return None
    return Place(int(environ["SLURM_PROCID"]), count, _address(environ), _own_devices(environ))


def join(here: Place) -> None:
    """Meet the other processes, before JAX looks for devices.

    A process that loses its parent on this machine is killed.
    """
    import jax

    if here.local:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    jax.distributed.initialize(
        here.address,
        here.count,
        here.rank,
        local_device_ids=here.devices or (),
        initialization_timeout=_CONNECT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )


def leave(code: int) -> None:
    """End a process that failed; the others notice, and it does not wait for them to end too.

    Does nothing in a process that works alone.
    """
    if place() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    os.read(0, 1)  # a pipe that nobody writes to; it ends with the parent
    os.kill(os.getpid(), signal.SIGKILL)


def _address(environ: Mapping[str, str]) -> str:
    """The step's first node, and a port of its own for each step, also of another cluster here."""
    host = re.sub(r"\[(\d+)[^]]*\]", r"\1", environ["SLURM_STEP_NODELIST"]).split(",")[0]
    step = int(environ["SLURM_JOB_ID"]) * 61 + int(environ.get("SLURM_STEP_ID", 0))
    step += crc32(environ.get("SLURM_CLUSTER_NAME", "").encode())
    return f"{host}:{_PORTS[0] + step % _PORTS[1]}"


def _own_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """A share of the visible GPUs, unless SLURM shows each task its own."""
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    tasks = int(environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    share = len(visible) // tasks
    if share == 0 or "SLURM_GPUS_PER_TASK" in environ:
        return tuple(range(len(visible))) or None
    first = int(environ.get("SLURM_LOCALID", 0)) * share
    return tuple(range(first, first + share))
