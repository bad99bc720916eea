"""``scalify ls``: the runs there are."""

from typing import TYPE_CHECKING

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, StateOption, Verbose, print_json
from scalify_cli.cli.selection import facts
from scalify_cli.cli.text import age, columns, number

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo


def ls(
    runs_dir: RunsDir = RUNS,
    state: StateOption = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List the runs."""
    from scalify_cli.cli.states import true_states
    from scalify_cli.report.runs import find_runs

    runs = true_states(find_runs(runs_dir))
    found = [run for run in runs if state is None or run.state == state]
    if json:
        print_json([facts(run) for run in found])
    elif found:
        head = ("ID", "STATE", "STEP", "LOSS", "VAL", "AGE", "POINT")
        typer.echo("\n".join(columns([head, *map(_row, found)])))
    else:
        typer.echo(f"no runs in {runs_dir}", err=True)
    return 0


def _row(run: "RunInfo") -> tuple[str, ...]:
    return (
        run.id,
        run.state,
        f"{run.step}/{run.steps}",
        number(run.metrics.get("train/loss")),
        number(run.metrics.get("val/loss")),
        age(run.updated),
        " ".join(run.overrides) or "(defaults)",
    )
