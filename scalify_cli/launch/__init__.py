"""Where a run's process lives."""

from scalify_cli.launch.local import Local

__all__ = ["Local"]
