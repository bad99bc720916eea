"""What SLURM says about jobs, asked of its own commands; all of it works without accounting."""

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from scalify_cli.errors import UserError
from scalify_cli.launch.stopping import count_signals

ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
_SECONDS = 30.0  # a controller that takes longer is not there
_SUBMIT_SECONDS = 300.0  # sbatch asks a busy one again itself, and may not be cut short
_LARGEST_ARRAY = 1001  # SLURM's default
_UNKNOWN = "Invalid job id"


class NoAnswer(Exception):
    """SLURM cannot be asked from here, or does not answer now."""


@dataclass(frozen=True)
class Job:
    """One job, or one task of an array.

    Args:
        id: ``12``, or ``12_3`` for a task of an array; a requeued job keeps it.
        state: SLURM's word, as ``PENDING``.
        reason: why it waits, or why it ended; may be empty.
        node: where it runs or ran; may be empty.
    """

    id: str
    state: str
    reason: str = ""
    node: str = ""

    @property
    def over(self) -> bool:
        """Whether it neither runs nor waits any more."""
        return self.state in ENDED


def poll(job_ids: Iterable[str]) -> dict[str, Job]:
    """What the controller knows of these jobs: those queued, running, or ended minutes ago.

    Raises:
        NoAnswer: there is no ``squeue`` here, or no controller behind it.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    whole = ",".join(sorted(_whole(wanted)))
    form = "%i|%T|%r|%N"
    try:
        out = _ask("squeue", "-h", "-r", "--states=all", "-j", whole, "-o", form)
    except NoAnswer as error:
        if _UNKNOWN in str(error):
            return {}
        raise
    return _parsed(out, wanted)


def accounted(job_ids: Iterable[str]) -> dict[str, Job]:
    """What the accounting database, where there is one, knows of these jobs."""
    wanted = set(job_ids)
    if not wanted:
        return {}
    whole = ",".join(sorted(_whole(wanted)))
    form = "JobID,State,ExitCode,NodeList"
    try:
        return _parsed(_ask("sacct", "-X", "-n", "-P", "-j", whole, "-o", form), wanted)
    except NoAnswer:
        return {}


def cancel(*job_ids: str) -> None:
    """Cancel jobs; one that runs gets SIGTERM, and some seconds to write a checkpoint.

    Raises:
        NoAnswer: SLURM cannot be asked.
    """
    if job_ids:
        _ask("scancel", "--quiet", *job_ids)


def submit(script: Path, answer: Path, *options: str) -> str:
    """Hand a script to ``sbatch``; the job's id.

    ``sbatch`` writes the id into a file, and is let finish: a signal that comes meanwhile does what
    it does when the id is there, and after SIGKILL it is there, too.

    Raises:
        UserError: SLURM refuses it; the file is gone then.
    """
    try:
        with count_signals() as signals, answer.open("w") as file:
            _ask("sbatch", "--parsable", *options, str(script), out=file)
    except NoAnswer as error:
        answer.unlink()
        hint = f"mend the launcher's values; the script is {script}"
        raise UserError(f"the job was not taken: {error}", hint, exit_code=1) from None
    if signals.count:
        signal.raise_signal(signal.Signals[signals.reason])
    return answer.read_text("utf-8").strip().partition(";")[0]


def largest_array() -> int:
    """``MaxArraySize`` of the cluster."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    except NoAnswer:
        found = None
    return max(1, int(found[1])) if found else _LARGEST_ARRAY


def _ask(*command: str, out: int | TextIO = subprocess.PIPE) -> str:
    """What a command prints; with a file for that the command is safe from Ctrl-C."""
    try:
        done = subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_SECONDS if out is subprocess.PIPE else _SUBMIT_SECONDS,
            check=False,
            env=_environment(),
            start_new_session=out is not subprocess.PIPE,
        )
    except FileNotFoundError:
        raise NoAnswer(f"there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} does not answer") from None
    if done.returncode:
        raise NoAnswer(_reason(command[0], done.stderr))
    return done.stdout


def _environment() -> dict[str, str]:
    """Ours, without what a job that we may be in would hand on to the jobs we submit."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in kept}


def _reason(program: str, text: str) -> str:
    lines = [line.removeprefix(f"{program}: ").removeprefix("error: ") for line in text.split("\n")]
    return "; ".join(line for line in lines if line) or f"{program} failed"


def _whole(job_ids: Iterable[str]) -> set[str]:
    """The arrays that tasks belong to."""
    return {job_id.partition("_")[0] for job_id in job_ids}


def _parsed(text: str, wanted: set[str]) -> dict[str, Job]:
    rows: Sequence[list[str]] = [line.split("|") for line in text.splitlines()]
    jobs = (_job(*row[:4]) for row in rows if len(row) >= 4)
    return {job.id: job for job in jobs if job.id in wanted}


def _job(job_id: str, state: str, reason: str, node: str) -> Job:
    told = "" if reason in ("None", "0:0") else reason
    return Job(job_id, state.split()[0], told, "" if node == "None assigned" else node)
