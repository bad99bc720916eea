"""``scalify show``: what a run is, and what a sweep is."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, Verbose, print_json
from scalify_cli.cli.selection import Names, chosen, facts, tally
from scalify_cli.cli.summary import latest, result_rows, results
from scalify_cli.cli.text import age, columns, size

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo
    from scalify_cli.report.sweeps import Sweep


def show(
    names: Names, runs_dir: RunsDir = RUNS, json: Json = False, verbose: Verbose = False
) -> int:
    """Show runs: state, results, origin, files, config; or what a sweep is."""
    parts = [part for name in names for part in _named(runs_dir, name)]
    if json:
        found = [_as_json(part, runs_dir) for part in parts]
        print_json(found if len(found) > 1 else found[0])
    else:
        typer.echo("\n\n".join(_as_text(part, runs_dir) for part in parts))
    return 0


def _named(runs_dir: Path, name: str) -> "list[RunInfo] | list[Sweep]":
    from scalify_cli.report.sweeps import find_sweep

    sweep = find_sweep(runs_dir, name)
    return [sweep] if sweep else chosen(runs_dir, [name])


def _as_json(part: "RunInfo | Sweep", runs_dir: Path) -> dict[str, Any]:
    from scalify_cli.report.runs import RunInfo, read_json

    if not isinstance(part, RunInfo):
        return _sweep_facts(part, runs_dir)
    found = {"results": results(latest(part)), "config": part.config}
    environment = read_json(part.path / "env.json")
    return {**facts(part), **found, "env": environment, "files": _files(part)}


def _as_text(part: "RunInfo | Sweep", runs_dir: Path) -> str:
    from scalify_cli.report.runs import RunInfo

    return _run_text(part) if isinstance(part, RunInfo) else _sweep_text(part, runs_dir)


def _run_text(run: "RunInfo") -> str:
    from scalify_cli.report.runs import read_json

    rows = [*_summary_rows(run), *_provenance_rows(read_json(run.path / "env.json"))]
    files = [f"  {line}" for line in columns(_file_rows(run))]
    config = _indented(run.path / "config.yaml")
    return "\n".join([*columns(rows), "", "files", *files, "", f"config\n{config}"])


def _sweep_facts(sweep: "Sweep", runs_dir: Path) -> dict[str, Any]:
    runs = chosen(runs_dir, [sweep.name])
    return {
        "sweep": sweep.name,
        "path": sweep.path,
        "axes": {axis: _values(sweep, axis) for axis in sweep.axes},
        "baseline": sweep.baseline,
        "points": [{"id": run.id, "state": run.state, "words": run.overrides} for run in runs],
    }


def _sweep_text(sweep: "Sweep", runs_dir: Path) -> str:
    axes = [(axis, " ".join(map(str, _values(sweep, axis)))) for axis in sweep.axes]
    rows = [
        ("sweep", sweep.name),
        ("directory", str(sweep.path)),
        ("state", tally(chosen(runs_dir, [sweep.name]))),
        ("baseline", " ".join(f"{k}={v}" for k, v in sweep.baseline.items()) or "(none)"),
        *axes,
    ]
    definition = _indented(sweep.path / "sweep.yaml")
    return "\n".join([*columns(rows), "", f"definition\n{definition}"])


def _values(sweep: "Sweep", axis: str) -> list[Any]:
    return list(dict.fromkeys(p.values[axis] for p in sweep.points if axis in p.values))


def _summary_rows(run: "RunInfo") -> list[tuple[str, str]]:
    error = [("error", run.error)] if run.error else []
    return [
        ("run", run.id),
        ("point", " ".join(run.overrides) or "(defaults)"),
        ("state", run.state),
        *error,
        ("step", f"{run.step} of {run.steps}"),
        ("updated", f"{age(run.updated)} ago"),
        *result_rows(results(latest(run))),
    ]


def _provenance_rows(environment: Any) -> list[tuple[str, str]]:
    if not isinstance(environment, dict):
        return []
    return [
        (str(key), value if isinstance(value, str) else json_module.dumps(value))
        for key, value in environment.items()
    ]


def _files(run: "RunInfo") -> dict[str, int]:
    entries = sorted(run.path.iterdir()) if run.path.is_dir() else []
    return {path.name: _weight(path) for path in entries}


def _file_rows(run: "RunInfo") -> list[tuple[str, str]]:
    return [(str(run.path / name), size(weight)) for name, weight in _files(run).items()]


def _weight(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _indented(path: Path) -> str:
    text = path.read_text("utf-8") if path.is_file() else "(none)"
    return "\n".join(f"  {line}" for line in text.splitlines())
