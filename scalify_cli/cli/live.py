"""What a run says while it runs: one live line on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from scalify_cli.cli.text import duration, number, thousands


class Display(Protocol):
    """Shows records of ``metrics.jsonl`` and events as they come."""

    def show(self, record: dict[str, Any]) -> None:
        """Show one record, or one ``{"event": ..., "message": ...}``."""


class Silent:
    """Shows nothing but warnings."""

    def show(self, record: dict[str, Any]) -> None:
        if record.get("event") == "warning":
            print(f"warning: {record['message']}", file=sys.stderr, flush=True)


class Lines:
    """``step=100 loss=3.2100 ...`` for logs and pipes.

    Args:
        stream: where lines go.
        every: steps between lines; validation and the last step always get one.
        steps: the last step.
    """

    def __init__(self, stream: TextIO, every: int, steps: int):
        self.stream, self.every, self.steps = stream, every, steps

    def show(self, record: dict[str, Any]) -> None:
        if "event" in record:
            print(record.get("message", record["event"]), file=self.stream, flush=True)
        elif self._matters(record):
            print(plain_line(record), file=self.stream, flush=True)

    def _matters(self, record: dict[str, Any]) -> bool:
        step = record.get("step", 0)
        due = step % self.every == 0 or step in (1, self.steps)
        return "val/loss" in record or (due and "train/loss" in record)


class LiveLine:
    """One line that rewrites itself: step, losses, tokens/s, time left."""

    def __init__(self, live: Any, steps: int):
        self.live, self.steps = live, steps
        self.latest: dict[str, Any] = {}

    def show(self, record: dict[str, Any]) -> None:
        if "event" in record:
            self.live.console.print(record.get("message", record["event"]))
            return
        self.latest.update(record)
        self.live.update(live_line(self.latest, self.steps), refresh=False)


def plain_line(record: dict[str, Any]) -> str:
    """``step=100 loss=3.2100 val_loss=3.3000 tokens/s=12345``, whatever of it there is."""
    cells = [
        ("step", "step", "d"),
        ("loss", "train/loss", ".4f"),
        ("val_loss", "val/loss", ".4f"),
        ("tokens/s", "perf/tokens_per_second", ".0f"),
    ]
    found = [(label, record.get(key), form) for label, key, form in cells]
    return " ".join(f"{name}={value:{form}}" for name, value, form in found if value is not None)


def live_line(latest: dict[str, Any], steps: int) -> str:
    """The live line's text."""
    step = latest.get("step", 0)
    seconds = latest.get("perf/step_seconds")
    left = None if seconds is None else (steps - step) * seconds
    return (
        f"step {step}/{steps}  loss {number(latest.get('train/loss'))}"
        f"  val {number(latest.get('val/loss'))}"
        f"  {thousands(latest.get('perf/tokens_per_second'))} tokens/s  ETA {duration(left)}"
    )


@contextmanager
def display(*, steps: int, every: int, json: bool, quiet: bool) -> Iterator[Display]:
    """The display that fits: chatter goes to stderr when stdout carries JSON."""
    if quiet:
        yield Silent()
    elif json or not sys.stdout.isatty():
        yield Lines(sys.stderr if json else sys.stdout, every, steps)
    else:
        with _live() as live:
            yield LiveLine(live, steps)


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    return Live("preparing", console=console, refresh_per_second=4, transient=True)
