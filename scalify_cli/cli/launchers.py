"""Which launcher starts the points of a sweep, and whether it fits the command line."""

from collections.abc import Sequence

from scalify_cli.cli.plan import Cell, one_launcher
from scalify_cli.config import build
from scalify_cli.errors import UserError
from scalify_cli.launch.task import Launcher


def launcher_of(cells: Sequence[Cell]) -> Launcher:
    """The one launcher of all the points.

    Raises:
        UserError: the points name different ones, or its values are no use.
    """
    return build(one_launcher(cells), "launcher")


def is_elsewhere(cells: Sequence[Cell]) -> bool:
    """Whether the launcher takes the runs to other machines."""
    return getattr(launcher_of(cells), "elsewhere", False)


def check_gpus(cells: Sequence[Cell], gpus: Sequence[str] | None) -> None:
    """Refuse GPUs that are named for runs on other machines.

    Raises:
        UserError: they are.
    """
    if gpus is not None and is_elsewhere(cells):
        raise UserError(
            "--gpus names GPUs of this machine, and SLURM chooses where the runs go",
            "leave it out; launcher.gpus=1 asks SLURM for a GPU",
        )
