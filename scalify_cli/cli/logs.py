"""``scalify logs``: the ends of logs, and what is added to them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, Verbose, print_json
from scalify_cli.cli.selection import Names, chosen, is_alive
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo

_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_PER_STATE = 4  # states are asked for less often: a cluster's answer costs something


def logs(
    names: Names,
    runs_dir: RunsDir = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many.")] = 50,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Print the ends of logs; of several runs with their ids before the lines."""
    runs = chosen(runs_dir, names)
    tails = [Tail(run.id, _log(run), len(runs) > 1) for run in runs]
    if not follow and not any(tail.path.exists() for tail in tails):
        _refuse(tails)
    if json:
        found = {tail.run_id: tail.last(lines, partial=True) for tail in tails}
        print_json(found if len(runs) > 1 else found[runs[0].id])
        return 0
    _print(tails, lambda tail: tail.last(lines, partial=not follow))
    if follow:
        _follow(tails, lambda: _look_again(tails, names, runs_dir))
    return 0


def _look_again(tails: "Sequence[Tail]", names: Sequence[str], runs_dir: Path) -> bool:
    """Turn to the logs that the runs have now; whether more may come."""
    from scalify_cli.report.sweeps import is_launching

    starting, now = is_launching(runs_dir), chosen(runs_dir, names)
    paths = {run.id: _log(run) for run in now}
    for tail in tails:
        tail.turn_to(paths.get(tail.run_id, tail.path))
    return any(is_alive(run, starting) for run in now)


def _log(run: "RunInfo") -> Path:
    """The run's own log; before it has one, what its job printed."""
    own, job = run.path / "log.txt", run.status.get("slurm_log")
    ended = run.state not in ("running", "pending")
    return Path(job) if job and ended and not own.exists() else own


@dataclass
class Tail:
    """The end of one log.

    Args:
        run_id: the run's id.
        path: the log, which may not exist yet.
        named: whether lines are printed with the id.
    """

    run_id: str
    path: Path
    named: bool
    _read: int = 0  # bytes

    def last(self, count: int, *, partial: bool) -> list[str]:
        """The last lines that are whole, or the last ones there are."""
        found = self.more(partial=partial)
        return found[-count:] if count else []

    def more(self, *, partial: bool = False) -> list[str]:
        """The lines since the last call; a log that has become shorter is read from its start."""
        try:
            with self.path.open("rb") as file:
                self._read = 0 if file.seek(0, 2) < self._read else self._read
                file.seek(self._read)
                content = file.read()
        except OSError:
            return []
        end = len(content) if partial else content.rfind(b"\n") + 1
        self._read += end
        return content[:end].decode("utf-8", "replace").splitlines()

    def turn_to(self, path: Path) -> None:
        """Go on with another log, from its start."""
        if path != self.path:
            self.path, self._read = path, 0

    def shown(self, line: str) -> str:
        return f"{self.run_id}  {line}" if self.named else line


def _refuse(tails: Sequence[Tail]) -> None:
    if len(tails) > 1:
        raise UserError("none of these runs has a log yet", "follow them with -f")
    identity = tails[0].run_id
    raise UserError(f"run {identity} has no log yet", f"look again later: scalify logs {identity}")


def _print(tails: Sequence[Tail], lines: Callable[[Tail], list[str]]) -> None:
    for tail in tails:
        for line in lines(tail):
            typer.echo(tail.shown(line))


def _follow(tails: Sequence[Tail], alive: Callable[[], bool]) -> None:
    looks = 0
    while looks % _LOOKS_PER_STATE or alive():
        _print(tails, Tail.more)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        looks += 1
    _print(tails, lambda tail: tail.more(partial=True))
