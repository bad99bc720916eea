"""Options that several commands share."""

import json
import math
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scalify_cli.errors import UserError

RunsDir = Annotated[
    Path, typer.Option("--runs-dir", envvar="SCALIFY_RUNS", help="Where the runs are.")
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="A folder of your own options, searched first.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more; tracebacks too.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="As precision=fp8 trainer.steps=100.", show_default=False
    ),
]
Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Runs at a time.")]
Gpus = Annotated[str | None, typer.Option("--gpus", help="GPUs to use, as 0,1; one a run.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="After a failure start no more.")]
Detach = Annotated[bool, typer.Option("-d", "--detach", help="Start it, and do not wait.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
RUNS = Path("runs")


class Cfg(StrEnum):
    """How much of the configuration to print."""

    diff = "diff"
    full = "full"
    json = "json"


class Wandb(StrEnum):
    """Where W&B records go."""

    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


WandbOption = Annotated[Wandb | None, typer.Option("--wandb", help="Where W&B records go.")]


class State(StrEnum):
    """What can have become of a run."""

    pending = "pending"
    running = "running"
    done = "done"
    diverged = "diverged"
    failed = "failed"
    preempted = "preempted"
    cancelled = "cancelled"


StateOption = Annotated[State | None, typer.Option("--state", help="Only runs in this state.")]


@dataclass(frozen=True)
class Request:
    """One command line of ``run``, parsed."""

    overrides: list[str]
    runs_dir: Path
    config_dir: Path | None
    json: bool
    quiet: bool
    force: bool = False
    wandb: str | None = None
    detach: bool = False


@dataclass(frozen=True)
class SweepRequest:
    """One command line of ``sweep``, parsed; see its options."""

    words: tuple[str, ...]
    runs_dir: Path
    config_dir: Path | None = None
    name: str | None = None
    only: str | None = None
    limit: int | None = None
    retry: frozenset[str] = frozenset()
    force: bool = False
    skip_invalid: bool = False
    jobs: int | None = None
    gpus: tuple[str, ...] | None = None
    fail_fast: bool = False
    detach: bool = False
    wandb: str | None = None
    yes: bool = False
    json: bool = False
    quiet: bool = False

    def say(self, text: str) -> None:
        """A line of chatter, unless it is to be quiet."""
        if not self.quiet:
            to_stderr(text)


def to_stderr(text: str) -> None:
    """A line of chatter."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Strict JSON on stdout: NaN and infinities become null, paths text."""
    typer.echo(json.dumps(_strict(value), indent=2, default=str))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gpu_names(text: str | None) -> tuple[str, ...] | None:
    """``0,1`` taken apart.

    Raises:
        UserError: it names none, or one twice.
    """
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or len(set(names)) != len(names):
        raise UserError(f"--gpus {text} names no GPU, or one twice", "write --gpus 0,1")
    return names
