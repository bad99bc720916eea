"""Word left in a run's directory that it is to end, for whoever stops it and whoever starts it."""

import time
from pathlib import Path

CANCEL = "cancel"  # launchers, which import nothing of ours, look for a file of this name


def request_cancel(path: Path) -> None:
    """Leave word: when it is next stopped the run is ``cancelled``, and no queue starts it.

    Raises:
        OSError: the directory cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / CANCEL).write_text(f"{time.time()}\n")


def is_cancelled(path: Path, since: float = 0.0) -> bool:
    """Whether there is such word, left no earlier than ``since`` (seconds since 1970)."""
    try:
        return (path / CANCEL).stat().st_mtime >= since
    except OSError:
        return False


def forget_cancel(path: Path) -> None:
    """Take it back: the run is wanted again."""
    (path / CANCEL).unlink(missing_ok=True)
