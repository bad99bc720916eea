"""What a sweep says of its points: which there are, which cannot be run, how they ended."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from scalify_cli.cli.options import SweepRequest, print_json, to_stderr
from scalify_cli.cli.plan import Cell, Plan, grouped
from scalify_cli.cli.recording import settled
from scalify_cli.cli.selection import tally
from scalify_cli.cli.written import Written
from scalify_cli.config.overrides import repeated
from scalify_cli.errors import UserError
from scalify_cli.report.runs import RunInfo
from scalify_cli.report.sweeps import SWEEPS, point_runs, read_sweep

_MOST_SHOWN = 10  # points refused for the same reason


def refuse(written: Written, request: SweepRequest) -> None:
    """List what cannot be run, and stop unless it is to be left out and something remains."""
    invalid = written.invalid
    if not invalid:
        return
    reasons = list(grouped(invalid))
    for reason, points in reasons:
        to_stderr(f"not possible: {reason.message}")
        for point in points[:_MOST_SHOWN]:
            to_stderr(f"  {shlex.join(point.words)}")
        if len(points) > _MOST_SHOWN:
            to_stderr(f"  and {len(points) - _MOST_SHOWN} more")
    if not (request.skip_invalid and written.cells):
        hint = reasons[0][0].hint if len(reasons) == 1 else "see the reasons above"
        count = f"{len(invalid)} point{'s' * (len(invalid) > 1)} cannot be run"
        if not written.cells:
            raise UserError(f"{count}, and there is no other", hint)
        raise UserError(count, f"{hint}; --skip-invalid leaves them out")


def check_name(written: Written, request: SweepRequest) -> None:
    """See that points do not vanish from the sweep of a name unless its own file has lost them.

    Raises:
        UserError: a name that was given for this sweep is another's.
    """
    before = read_sweep(request.runs_dir / SWEEPS / written.name).points
    lost = {point.id for point in before} - {cell.id for cell in written.cells}
    what = f"{len(lost)} of the points that sweep {written.name} has"
    if lost and request.name:
        raise UserError(f"{what} are not in this one", "another --name keeps both")
    if lost:
        request.say(f"note: {what} are not in it any more; their runs are kept")


def note_repeated(written: Written, request: SweepRequest) -> None:
    """Say which keys are given twice, and that some points are one run, which is started once."""
    for key in repeated(request.words):
        request.say(f"note: {key} is given twice; the last one counts")
    if written.repeated:
        request.say(f"note: {written.repeated} of the points are the same run as another")


def print_points(written: Written, planned: Plan, request: SweepRequest) -> None:
    """Every point as a line to paste into a shell, or as JSON, and what would be started."""
    if request.json:
        wanted = {cell.id for cell in planned.wanted}
        points = [
            {**line(cell), "state": planned.states[cell.id], "start": cell.id in wanted}
            | {"command": _command(cell, request)}
            for cell in planned.cells
        ]
        refused = [{"words": it.words, "reason": it.reason.message} for it in written.invalid]
        about = {"name": written.name, "path": request.runs_dir / SWEEPS / written.name}
        print_json({**about, "counts": planned.counts, "points": points, "invalid": refused})
        return
    for cell in planned.cells:
        typer.echo(_command(cell, request))
    request.say(f"sweep {written.name}, {headline(planned, request)}")


def _command(cell: Cell, request: SweepRequest) -> str:
    """What to paste into a shell to run this point alone."""
    options = [] if request.runs_dir == Path("runs") else ["--runs-dir", str(request.runs_dir)]
    options += ["--config-dir", str(request.config_dir)] if request.config_dir else []
    return shlex.join(["scalify", "run", *cell.words, *options])


def _hint(planned: Plan, request: SweepRequest) -> str:
    """Which option would start what is left alone, and how many are started where that differs."""
    retryable = ("failed", "diverged", "cancelled")
    left = [state for state in retryable if planned.counts.get(state) and not request.force]
    flags = [f"--retry-{state}" for state in left if state not in request.retry]
    usual = planned.counts["new"] + planned.counts.get("preempted", 0)
    count = len(planned.wanted)
    started = f"; {count} to start" if count != planned.counts["new"] or usual != count else ""
    return started + (f" ({', '.join(flags)} to run those again)" if flags else "")


def headline(planned: Plan, request: SweepRequest) -> str:
    """How many points there are in each state, and which option starts what is left alone."""
    return planned.headline + _hint(planned, request)


def line(cell: Cell) -> dict[str, Any]:
    """The point as ``points.jsonl`` and ``--json`` have it."""
    return {"id": cell.id, "words": list(cell.words), "values": dict(cell.values)}


def sum_up(written: Written, planned: Plan, request: SweepRequest, code: int) -> int:
    """Say what has become of the points, and choose the exit code."""
    runs = _runs(planned.cells, request.runs_dir)
    states = {run.state for run in runs}
    code = code or int("failed" in states) or (75 if "preempted" in states else 0)
    if request.json:
        _print_runs(written, planned, runs, request, exit_code=code)
    elif not request.quiet:
        typer.echo(tally(runs))
        typer.echo(f"details  scalify status {written.name}")
        typer.echo(f"results  scalify compare {written.name}")
    return code


def tell_started(written: Written, planned: Plan, request: SweepRequest, pid: int) -> None:
    """Say which process goes on with the sweep."""
    if request.json:
        runs = _runs(planned.cells, request.runs_dir)
        _print_runs(written, planned, runs, request, exit_code=0, pid=pid)
    elif not request.quiet:
        typer.echo(f"sweep {written.name} goes on as process {pid}")
        typer.echo(f"follow it with `scalify status {written.name} -w`")


def _print_runs(
    written: Written, planned: Plan, runs: Sequence[RunInfo], request: SweepRequest, **more: int
) -> None:
    points = [
        {**line(cell), "state": run.state, "error": run.error, "metrics": run.metrics}
        for cell, run in zip(planned.cells, runs, strict=True)
    ]
    about = {"name": written.name, "path": request.runs_dir / SWEEPS / written.name}
    print_json({**about, **more, "points": points})


def _runs(cells: Sequence[Cell], runs_dir: Path) -> list[RunInfo]:
    return settled(point_runs(runs_dir, [cell.point for cell in cells]))
