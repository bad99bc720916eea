"""``scalify compare``: cells of a grid against each other, as a table, CSV or JSON."""

import csv
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, Verbose, print_json
from scalify_cli.cli.selection import Names, chosen, usual
from scalify_cli.cli.text import columns, number, signed_percent
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.compare import Comparison, Row


class Output(StrEnum):
    """How a comparison is printed."""

    table = "table"
    csv = "csv"
    json = "json"


By = Annotated[
    str | None, typer.Option("--by", metavar="KEY,...", help="The rows; by default, what varies.")
]
Baseline = Annotated[
    list[str] | None,
    typer.Option("--baseline", metavar="KEY=VALUE", help="What gaps are to; may be repeated."),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print it.")]


def compare(
    names: Names,
    by: By = None,
    baseline: Baseline = None,
    output: OutputOption = Output.table,
    runs_dir: RunsDir = RUNS,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Compare cells: validation loss over seeds, gap to the baseline, time of a step."""
    from scalify_cli.report import compare as report

    base = _pairs(baseline) if baseline else _of_sweeps(runs_dir, names)
    keys = list(dict.fromkeys(key.strip() for key in by.split(",") if key.strip())) if by else []
    found = report.compare(chosen(runs_dir, names), by=keys, baseline=base, usual=usual())
    _note(base, found, asked=bool(baseline))
    if json or output is Output.json:
        print_json(_as_json(found))
    elif output is Output.csv:
        _print_csv(found)
    else:
        typer.echo("\n".join(_table(found)))
    return 0


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = [pair.partition("=") for word in words for pair in word.replace(",", " ").split()]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--baseline {key} has no value", "write --baseline precision=fp32")
    return {key: value for key, _, value in pairs}


def _of_sweeps(runs_dir: Path, names: Sequence[str]) -> dict[str, Any]:
    """The baseline that the sweeps agree on; none when they do not."""
    from scalify_cli.report.sweeps import find_sweep

    sweeps = [sweep for name in names if (sweep := find_sweep(runs_dir, name))]
    found = [sweep.baseline for sweep in sweeps if sweep.baseline]
    return found[0] if all(each == found[0] for each in found[1:]) and found else {}


def _note(base: Mapping[str, Any], found: "Comparison", asked: bool) -> None:
    words = " ".join(f"{key}={value}" for key, value in base.items())
    if base and not found.baseline:
        if asked:
            raise UserError(f"none of these runs is the baseline {words}", "compare more runs")
        typer.echo(f"note: no run is the baseline {words}, so there are no gaps", err=True)
    elif not base:
        typer.echo("note: gaps need a baseline, as --baseline precision=fp32", err=True)


def _table(found: "Comparison") -> list[str]:
    head = [
        *(axis.upper() for axis in found.axes),
        *("RUNS", "DONE", "DIVERGED", "FAILED", "UNFINISHED"),
        *("VAL LOSS", "SPREAD", "GAP", "SPREAD", "PAIRS", "STEP", "RATIO"),
    ]
    lines = columns([head, *(_cells(row, found.axes) for row in found.rows)])
    words = " ".join(f"{key}={value}" for key, value in found.baseline.items())
    return [*lines, "", f"gaps and ratios are to {words}, seed by seed"] if words else lines


def _cells(row: "Row", axes: Sequence[str]) -> list[str]:
    gap = ["baseline", "-"] if row.is_baseline else [signed_percent(row.gap), _points(row)]
    return [
        *(row.values[axis] for axis in axes),
        str(sum(row.counts.values())),
        *map(str, row.counts.values()),
        number(row.loss),
        number(row.spread),
        *gap,
        str(row.pairs),
        "-" if row.step_seconds is None else f"{row.step_seconds:.3g} s",
        "-" if row.step_ratio is None else f"{row.step_ratio:.2f}x",
    ]


def _points(row: "Row") -> str:
    return "-" if row.gap_spread is None else f"{100 * row.gap_spread:.2f} %"


def _record(row: "Row", axes: Sequence[str]) -> dict[str, Any]:
    return {
        **{axis: row.values[axis] for axis in axes},
        "runs": sum(row.counts.values()),
        **row.counts,
        "val_loss": row.loss,
        "val_loss_spread": row.spread,
        "gap": row.gap,
        "gap_spread": row.gap_spread,
        "pairs": row.pairs,
        "step_seconds": row.step_seconds,
        "step_ratio": row.step_ratio,
    }


def _print_csv(found: "Comparison") -> None:
    rows = [_record(row, found.axes) for row in found.rows]
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _as_json(found: "Comparison") -> dict[str, Any]:
    runs = [
        {
            "id": result.run.id,
            "state": result.run.state,
            "outcome": result.outcome,
            "values": result.values,
            "val_loss": result.loss,
            "gap": result.gap,
            "step_seconds": result.step_seconds,
            "step_ratio": result.step_ratio,
        }
        for result in found.results
    ]
    rows = [_record(row, found.axes) for row in found.rows]
    return {"axes": found.axes, "baseline": found.baseline, "rows": rows, "runs": runs}
