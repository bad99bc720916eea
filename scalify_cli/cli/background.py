"""A sweep that goes on in a process of its own."""

import subprocess
import sys

from scalify_cli.cli.options import SweepRequest
from scalify_cli.cli.plan import Plan
from scalify_cli.cli.points import tell_started
from scalify_cli.cli.written import Written
from scalify_cli.report.sweeps import SWEEPS


def go_on(written: Written, planned: Plan, request: SweepRequest) -> int:
    """Start the same command in a session of its own, which outlives this terminal."""
    folder = request.runs_dir / SWEEPS / written.name
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalify_cli", "sweep", *_arguments(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    tell_started(written, planned, request, process.pid)
    return 0


def _arguments(request: SweepRequest) -> list[str]:
    """The command line again, to be waited for, and without questions."""
    values = {
        "--runs-dir": request.runs_dir,
        "--config-dir": request.config_dir,
        "--name": request.name,
        "--only": request.only,
        "--limit": request.limit,
        "--jobs": request.jobs,
        "--gpus": ",".join(request.gpus) if request.gpus else None,
        "--wandb": request.wandb,
    }
    flags = {
        **{f"--retry-{state}": True for state in sorted(request.retry)},
        "--force": request.force,
        "--skip-invalid": request.skip_invalid,
        "--fail-fast": request.fail_fast,
    }
    given = [
        item for key, value in values.items() if value is not None for item in (key, str(value))
    ]
    return [*request.words, *given, *(flag for flag, asked in flags.items() if asked), "--yes"]
