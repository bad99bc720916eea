"""Room for runs on this machine: GPUs, or parts of its cores.

A place is a set of locked files: one for each of its GPUs, in a folder that all sweeps of a user
share, or one for a part of the cores, beside the sweeps that share those. The run's own process
inherits the locks, so the place stays taken as long as that process lives, whatever becomes of the
one that started it.
"""

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from scalify_cli.errors import UserError
from scalify_cli.launch.task import Queue

FOLDER = ".places"  # beside the sweeps
_POOLS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")


@dataclass(frozen=True)
class Place:
    """Room for one run: the files to lock, and the variables that keep the run inside it."""

    locks: tuple[Path, ...]
    environment: dict[str, str]

    @contextmanager
    def taken(self) -> Iterator[list[int] | None]:
        """All its locks, for the run's process to inherit; None: a run has one of them."""
        with ExitStack() as stack:
            files = [stack.enter_context(_opened(path)) for path in self.locks]
            if all(map(_lock, files)):
                yield [file.fileno() for file in files]
                return
        yield None


def places(options: Queue, count: int, folder: Path, processes: int = 1) -> list[Place]:
    """Where ``count`` runs of so many processes can be; with GPUs there may be more than jobs.

    Args:
        options: how many at a time, on which GPUs.
        count: runs that are to be started.
        folder: for locks, where ``options`` name none.
        processes: of each run.

    Raises:
        UserError: more runs at a time are wanted than there are GPUs to give to each.
    """
    gpus = find_gpus() if options.gpus is None else list(options.gpus)
    if gpus:
        return _gpu_places(gpus, options, processes, options.locks or folder)
    room = max(1, cores() // processes)
    jobs = options.jobs or min(room, max(1, options.points or count))
    threads = str(max(1, cores() // jobs))  # of each process: a run's last digits depend on them
    environment = {name: os.environ.get(name, threads) for name in _POOLS}
    return [Place((_file(folder, f"cpu-{index}"),), environment) for index in range(jobs)]


def find_gpus() -> list[str]:
    """The GPUs that JAX could use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = os.environ.get("JAX_PLATFORMS", "cuda")
    if not any(name in wanted for name in ("cuda", "gpu")) or not any(map(find_spec, _CUDA)):
        return []
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return list(_cards())


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu_places(gpus: Sequence[str], options: Queue, processes: int, folder: Path) -> list[Place]:
    jobs, most = options.jobs or 1, len(gpus) // processes
    if jobs > most:
        wanted = jobs * processes
        raise UserError(
            f"{wanted} processes at a time need {wanted} GPUs, and there are {len(gpus)}: "
            f"{', '.join(gpus)}",
            f"use -j {most}, or name more with --gpus" if most else "name more with --gpus",
        )
    cards, starts = _cards(), range(0, most * processes, processes)
    shares = [gpus[start : start + processes] for start in starts]
    return [
        Place(
            tuple(sorted({_file(folder, f"gpu-{_card(name, cards)}") for name in share})),
            {"CUDA_VISIBLE_DEVICES": ",".join(share)},
        )
        for share in shares
    ]


def _cards() -> dict[str, str]:
    """The unique name of each GPU by its index, where the driver tells."""
    if shutil.which(_QUERY[0]) is None:
        return {}
    done = subprocess.run(_QUERY, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return {index: name for index, _, name in (line.partition(", ") for line in lines)}


def _card(name: str, cards: Mapping[str, str]) -> str:
    """The unique name of what CUDA_VISIBLE_DEVICES may call by its index, or its name's start."""
    found = [card for index, card in cards.items() if index == name or card.startswith(name)]
    return found[0] if found else name


def _file(folder: Path, name: str) -> Path:
    return folder / f"{platform.node()}-{name.replace('/', '-')}"


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
