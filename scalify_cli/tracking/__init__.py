"""Where a run's records go: its directory, which is the truth, and W&B, which may fail."""

from scalify_cli.tracking.run_directory import RunDirectory
from scalify_cli.tracking.settings import Tracking
from scalify_cli.tracking.sinks import Fanout, Histograms, Jsonl, Null, Sink, read_records

__all__ = [
    "Fanout",
    "Histograms",
    "Jsonl",
    "Null",
    "RunDirectory",
    "Sink",
    "Tracking",
    "read_records",
]
