"""Arrays on their way to SLURM: noted before they are submitted, until their runs know their jobs.

``sbatch`` itself writes an array's id to the disk. Should the process that submitted be gone by
then, whoever reads the runs next tells them.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scalify_cli.launch.sbatch import ANSWER, log_path
from scalify_cli.report.runs import read_json
from scalify_cli.report.sweeps import SWEEPS
from scalify_cli.tracking.cancelling import forget_cancel
from scalify_cli.tracking.files import write_atomically
from scalify_cli.tracking.run_directory import mark, read_status

FOLDER = ".submitting"  # beside the sweeps; empty but for moments


def note(place: Path, runs: Sequence[Path]) -> None:
    """Write down which runs the array is for whose script is in ``place``.

    Raises:
        OSError: the runs' folder cannot be written.
    """
    folder = runs[0].parent / SWEEPS / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    record = {"place": str(place), "runs": [run.name for run in runs]}
    write_atomically(folder / "-".join(place.parts[-3:]), json.dumps(record))


def tell(runs_dir: Path) -> set[str]:
    """Mark the runs of the arrays that SLURM has taken as pending; the ids of those runs."""
    told: set[str] = set()
    for file in (runs_dir / SWEEPS / FOLDER).glob("[!.]*"):
        with suppress(OSError):  # somebody else's runs, which only they can write
            told |= _tell(runs_dir, file)
    return told


def _tell(runs_dir: Path, file: Path) -> set[str]:
    record = read_json(file)
    if not record:  # another process has told them
        return set()
    place = Path(record["place"])
    array = _answer(place)
    if array == "":  # sbatch is at work
        return set()
    names = record["runs"] if array else []
    for index, name in enumerate(names):
        _mark_pending(runs_dir / name, f"{array}_{index}", log_path(place, index))
    file.unlink(missing_ok=True)
    return set(names)


def _answer(place: Path) -> str | None:
    """The array's id; empty as long as there is none, None where there will be none."""
    try:
        return (place / ANSWER).read_text("utf-8").strip().partition(";")[0]
    except FileNotFoundError:
        return None


def _mark_pending(path: Path, job: str, log: Path) -> None:
    if read_status(path).get("slurm_job_id") != job:  # else it has begun, and knows better
        forget_cancel(path)
        mark(path, "pending", slurm_job_id=job, slurm_log=str(log), error=None)
