"""``runs/sweeps/<name>/``: which points a sweep has; written by the process that runs it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from scalify_cli.errors import UserError
from scalify_cli.tracking.files import take_lock, write_atomically

SWEEPS = "sweeps"  # the folder in the runs' folder


class SweepDirectory:
    """One sweep's folder, held under an exclusive lock while in a ``with`` block.

    Args:
        path: the folder, ``runs/sweeps/<name>``.

    Raises:
        UserError: on entering, another process is running this sweep.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        name = self.path.name
        try:
            self._lock = take_lock(self.path / "lock")
        except BlockingIOError as busy:
            raise UserError(
                f"sweep {name} is already being run by {busy.strerror}",
                f"follow it with `scalify status {name} -w`",
            ) from None
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._lock.close()

    def write(self, definition: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
        """Write ``sweep.yaml`` and ``points.jsonl``.

        Args:
            definition: the sweep in its own language, ``baseline`` included.
            points: ``id``, ``words`` and ``values`` (varying axes only) of each.
        """
        text = yaml.safe_dump(dict(definition), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "sweep.yaml", text)
        lines = "".join(json.dumps(dict(point)) + "\n" for point in points)
        write_atomically(self.path / "points.jsonl", lines)
