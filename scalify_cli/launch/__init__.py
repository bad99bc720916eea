"""Where a run's process lives."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Local:
    """On this machine, in the process that was asked."""
