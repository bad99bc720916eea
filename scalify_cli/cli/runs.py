"""``ls``, ``show`` and ``logs``: read run directories, change nothing."""

import json as json_module
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, StateOption, Verbose, print_json
from scalify_cli.cli.selection import facts
from scalify_cli.cli.summary import result_rows, results
from scalify_cli.cli.text import age, columns, number, size
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

RunId = Annotated[str, typer.Argument(metavar="ID", help="A run's id, its start, or @last.")]
_SECONDS_BETWEEN_LOOKS = 0.5


def ls(
    runs_dir: RunsDir = RUNS,
    state: StateOption = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List the runs."""
    from scalify_cli.report.runs import find_runs

    found = [run for run in find_runs(runs_dir) if state is None or run.state == state]
    if json:
        print_json([facts(run) for run in found])
    elif found:
        head = ("ID", "STATE", "STEP", "LOSS", "VAL", "AGE", "POINT")
        typer.echo("\n".join(columns([head, *map(_row, found)])))
    else:
        typer.echo(f"no runs in {runs_dir}", err=True)
    return 0


def show(
    run_id: RunId, runs_dir: RunsDir = RUNS, json: Json = False, verbose: Verbose = False
) -> int:
    """Show one run: state, results, origin, files, config."""
    from scalify_cli.report.runs import resolve

    run = resolve(runs_dir, run_id)
    environment = _read_json(run.path / "env.json")
    if json:
        found = {"results": results(_latest(run)), "config": run.config, "env": environment}
        print_json({**facts(run), **found, "files": _files(run)})
        return 0
    rows = [*_summary_rows(run), *_provenance_rows(environment)]
    typer.echo("\n".join(columns(rows)))
    typer.echo("\nfiles")
    typer.echo("\n".join(f"  {line}" for line in columns(_file_rows(run))))
    typer.echo(f"\nconfig\n{_indented(run.path / 'config.yaml')}")
    return 0


def logs(
    run_id: RunId,
    runs_dir: RunsDir = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many.")] = 50,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Print the end of a run's log."""
    from scalify_cli.report.runs import resolve

    run = resolve(runs_dir, run_id)
    path = run.path / "log.txt"
    if not path.exists():
        raise UserError(f"run {run.id} has no log yet", f"look again later: scalify logs {run.id}")
    with path.open(encoding="utf-8", errors="replace") as log:
        last = list(deque(log, maxlen=lines))
        if json:
            print_json([line.rstrip("\n") for line in last])
            return 0
        typer.echo("".join(last), nl=False)
        if follow:
            _follow(log.read, lambda: resolve(runs_dir, run.id).state in ("running", "pending"))
    return 0


def _follow(read: Callable[[], str], alive: Callable[[], bool]) -> None:
    going = True
    while going:
        going = alive()
        typer.echo(read(), nl=False)
        if going:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


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


def _summary_rows(run: "RunInfo") -> list[tuple[str, str]]:
    error = [("error", run.error)] if run.error else []
    return [
        ("run", run.id),
        ("point", " ".join(run.overrides) or "(defaults)"),
        ("state", run.state),
        *error,
        ("step", f"{run.step} of {run.steps}"),
        ("updated", f"{age(run.updated)} ago"),
        *result_rows(results(_latest(run))),
    ]


def _latest(run: "RunInfo") -> dict[str, Any]:
    from scalify_cli.report.runs import read_metrics

    latest: dict[str, Any] = {}
    for record in read_metrics(run.path):
        latest.update(record)
    return {**latest, **run.metrics, **run.status}


def _provenance_rows(environment: Any) -> list[tuple[str, str]]:
    if not isinstance(environment, dict):
        return []
    return [
        (str(key), value if isinstance(value, str) else json_module.dumps(value))
        for key, value in environment.items()
    ]


def _files(run: "RunInfo") -> dict[str, int]:
    return {path.name: _weight(path) for path in sorted(run.path.iterdir())}


def _file_rows(run: "RunInfo") -> list[tuple[str, str]]:
    return [(str(run.path / name), size(weight)) for name, weight in _files(run).items()]


def _weight(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _indented(path: Path) -> str:
    text = path.read_text("utf-8") if path.is_file() else "(none)"
    return "\n".join(f"  {line}" for line in text.splitlines())


def _read_json(path: Path) -> Any:
    try:
        return json_module.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
