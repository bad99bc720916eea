"""Which runs a command is about: ids, beginnings of ids, names of sweeps, ``@last``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

_HELP = "Ids, their starts, names of sweeps, or @last."
Names = Annotated[list[str], typer.Argument(metavar="ID|SWEEP...", help=_HELP)]
MaybeNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID|SWEEP...", help=f"{_HELP} None: all.", show_default=False),
]
BY_INTEREST = ("running", "failed", "diverged", "preempted", "cancelled", "pending", "done")


def chosen(runs_dir: Path, names: Sequence[str] | None) -> "list[RunInfo]":
    """The runs that the names stand for, in their true states; every run when there are none.

    Raises:
        UserError: a name stands for nothing, or for several runs.
    """
    from scalify_cli.cli.states import true_states
    from scalify_cli.cli.submitting import tell
    from scalify_cli.report.sweeps import everything, select

    tell(runs_dir)  # first: a run that has no directory yet has one then
    return true_states(select(runs_dir, names) if names else everything(runs_dir))


def usual() -> dict[str, str]:
    """The values of keys that a run's words do not mention."""
    from scalify_cli.config.catalogue import defaults

    return defaults()


def facts(run: "RunInfo") -> dict[str, Any]:
    """A run as JSON."""
    return {
        "id": run.id,
        "path": run.path,
        "state": run.state,
        "error": run.error,
        "step": run.step,
        "steps": run.steps,
        "overrides": run.overrides,
        "updated": run.updated,
        "metrics": run.metrics,
    }


def is_alive(run: "RunInfo", starting: bool) -> bool:
    """Whether its state may yet change by itself.

    Args:
        run: a run in its true state.
        starting: whether there is a process that starts pending runs on this machine.
    """
    submitted = run.status.get("slurm_job_id") is not None
    return run.state == "running" or (run.state == "pending" and (submitted or starting))


def tally(runs: "Sequence[RunInfo]") -> str:
    """``24 runs: 4 running, 1 failed, 19 done``."""
    counts = Counter(run.state for run in runs)
    parts = [f"{counts[state]} {state}" for state in BY_INTEREST if counts[state]]
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {', '.join(parts)}"
