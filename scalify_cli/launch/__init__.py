"""Where a run's process lives."""

from scalify_cli.launch.local import Local
from scalify_cli.launch.slurm import Slurm

__all__ = ["Local", "Slurm"]
