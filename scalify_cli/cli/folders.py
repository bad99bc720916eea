"""Whether a folder can take what is to be written."""

import tempfile
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
