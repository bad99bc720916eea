"""Room for runs on this machine: GPUs, or parts of its cores.

A place is a locked file. The run's own process inherits the lock, so the place stays taken as long
as that process lives, whatever becomes of the one that started it.
"""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from scalify_cli.errors import UserError
from scalify_cli.launch.task import Queue

FOLDER = ".places"  # beside the sweeps, shared by all of them
_POOLS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_QUERY = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")


@dataclass(frozen=True)
class Place:
    """Room for one run, and the variables that keep the run inside it."""

    name: str
    environment: dict[str, str]

    def take(self, folder: Path) -> TextIO | None:
        """The lock's file, to be inherited and closed; None: a run is there."""
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{platform.node()}-{self.name}").open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file


def places(options: Queue, count: int, processes: int = 1) -> list[Place]:
    """Where ``count`` runs of so many processes can be at the same time, at the most.

    Raises:
        UserError: more runs at a time are wanted than there are GPUs to give to each.
    """
    gpus = find_gpus() if options.gpus is None else list(options.gpus)
    if gpus:
        return _gpu_places(gpus, options.jobs, processes)
    room = max(1, cores() // processes)
    jobs = options.jobs or min(room, max(1, options.points or count))
    threads = str(max(1, cores() // (jobs * processes)))
    environment = {name: os.environ.get(name, threads) for name in _POOLS}
    return [Place(f"cpu-{index}", environment) for index in range(jobs)]


def find_gpus() -> list[str]:
    """The GPUs that JAX could use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = os.environ.get("JAX_PLATFORMS", "cuda")
    if not any(name in wanted for name in ("cuda", "gpu")) or not any(map(find_spec, _CUDA)):
        return []
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which(_QUERY[0]) is None:
        return []
    done = subprocess.run(_QUERY, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_places(gpus: Sequence[str], jobs: int | None, processes: int) -> list[Place]:
    most = len(gpus) // processes
    if (jobs or 1) > most:
        wanted = (jobs or 1) * processes
        raise UserError(
            f"{wanted} processes at a time need {wanted} GPUs, and there are {len(gpus)}: "
            f"{', '.join(gpus)}",
            f"use -j {most}, or name more with --gpus" if most else "name more with --gpus",
        )
    starts = [index * processes for index in range(jobs or most)]
    shares = [gpus[start : start + processes] for start in starts]
    return [
        Place(f"gpu-{'-'.join(share)}", {"CUDA_VISIBLE_DEVICES": ",".join(share)})
        for share in shares
    ]
