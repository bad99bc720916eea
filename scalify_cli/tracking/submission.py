"""The code a job was submitted with, written beside its script, against the code it finds."""

import os
from pathlib import Path

from scalify_cli.tracking.files import write_atomically
from scalify_cli.tracking.provenance import patch, revision

VARIABLE = "SCALIFY_SUBMISSION"  # job.sbatch sets it to its own folder
_REVISION, _PATCH = "git.sha", "git.patch"


def submission() -> Path | None:
    """The folder of the job that this process is a task of; None outside a job."""
    place = os.environ.get(VARIABLE)
    return Path(place) if place else None


def record_code(place: Path, source: Path) -> None:
    """Write the revision of the repository around ``source``, and the changes on top of it."""
    write_atomically(place / _REVISION, f"{_sha(source)}\n")
    write_atomically(place / _PATCH, patch(source))


def code_change(source: Path) -> str:
    """How the code differs from what was submitted; empty when it does not, or outside a job."""
    place = submission()
    try:
        before = (place / _REVISION).read_text().strip() if place else ""
        changes = (place / _PATCH).read_bytes() if place else b""
    except OSError:
        return ""
    if not before:
        return ""
    now = _sha(source)
    if now != before:
        return f"the code is at {now[:10] or 'no revision'}; submitted was {before[:10]}"
    if patch(source) != changes:
        return f"the code has changed since it was submitted; {place}/{_PATCH} is what it was"
    return ""


def _sha(source: Path) -> str:
    found = revision(source)
    return found["sha"] if found else ""
