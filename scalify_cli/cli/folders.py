"""Folders that take what is to be written, or cannot."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from scalify_cli.cli.errors import explain, is_disk_full
from scalify_cli.errors import UserError


def check_writable(runs_dir: Path) -> None:
    """Fail before anything is computed.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs_dir) as probe:
            probe.write(bytes(65536))
    except OSError as error:
        problem = explain(error)
        hint = problem.hint if is_disk_full(error) else "choose another folder with --runs-dir"
        message = f"runs cannot be written to {runs_dir}: {error.strerror}"
        raise UserError(message, hint) from error


def shared_locks() -> Path | None:
    """Where all of the user's sweeps on this machine lock GPUs; None: it cannot be written."""
    from scalify_cli.data.cache import cache_root

    folder = cache_root(None) / "places"
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else None
