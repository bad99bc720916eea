"""``scalify diff``: two runs side by side."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, Verbose, print_json
from scalify_cli.cli.selection import chosen, facts
from scalify_cli.cli.summary import latest, results
from scalify_cli.cli.text import change, columns, number, percent, size, thousands
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

Run = Annotated[str, typer.Argument(help="A run's id, its start, or @last.")]
_LONGEST_VALUE = 48
_OF_ONE_PROCESS = ("command", "folder")
_FORMS = {
    "step": str,
    "train_loss": number,
    "val_loss": number,
    "step_seconds": lambda value: f"{value:.4f} s",
    "tokens_per_second": thousands,
    "peak_memory_bytes": size,
    "overflow": percent,
    "underflow": percent,
}


def diff(
    a: Run, b: Run, runs_dir: RunsDir = RUNS, json: Json = False, verbose: Verbose = False
) -> int:
    """Show how two runs differ: configuration, results, surroundings."""
    from scalify_cli.report.diff import differences

    pair = [_one(runs_dir, name) for name in (a, b)]
    config = differences(*_configs(*pair))
    around = differences(*map(_surroundings, pair))
    numbers = [_numbers(run) for run in pair]
    if json:
        both = {"a": facts(pair[0]), "b": facts(pair[1]), "config": config}
        print_json({**both, "results": {"a": numbers[0], "b": numbers[1]}, "environment": around})
        return 0
    head = [["", *(run.id for run in pair), "B/A"], _row("state", [run.state for run in pair])]
    parts = [
        *(_row(key, values) for key, values in config.items() or [("(the same)", ("", ""))]),
        _BLANK,
        *_result_rows(*numbers),
    ]
    after = [_BLANK, *(_row(key, values) for key, values in around.items())] if around else []
    typer.echo("\n".join(columns([*head, _BLANK, *parts, *after])))
    return 0


_BLANK = ["", "", "", ""]


def _one(runs_dir: Path, name: str) -> "RunInfo":
    runs = chosen(runs_dir, [name])
    if len(runs) == 1:
        return runs[0]
    raise UserError(
        f"'{name}' stands for {len(runs)} runs, and diff takes two",
        f"`scalify compare {name}` compares them all",
    )


def _configs(a: "RunInfo", b: "RunInfo") -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The configurations; the words where one of them has not been written yet."""
    from scalify_cli.report.axes import settings

    return (a.config, b.config) if a.config and b.config else (settings(a), settings(b))


def _surroundings(run: "RunInfo") -> dict[str, Any]:
    from scalify_cli.report.runs import read_json

    found = read_json(run.path / "env.json")
    return {key: value for key, value in found.items() if key not in _OF_ONE_PROCESS}


def _numbers(run: "RunInfo") -> dict[str, Any]:
    from scalify_cli.report.compare import step_seconds

    found = {**results(latest(run)), "step_seconds": step_seconds(run)}
    rates = {name: (found[name] or {}).get("rate") for name in ("overflow", "underflow")}
    return {key: {**found, **rates}[key] for key in _FORMS}


def _result_rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            key.removesuffix("_bytes").replace("_", " "),
            *("-" if value is None else form(value) for value in (ours[key], theirs[key])),
            change(theirs[key], ours[key]),
        ]
        for key, form in _FORMS.items()
    ]


def _row(key: str, values: Iterable[Any]) -> list[str]:
    return [key, *map(_short, values), ""]


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
