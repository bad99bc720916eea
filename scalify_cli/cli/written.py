"""Which sweep a command line means: a file, a name, or the words themselves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalify_cli.cli.plan import Cell, Invalid, check, digest
from scalify_cli.config.catalogue import did_you_mean
from scalify_cli.config.grid import Grid, adjusted, axes, definition, expand
from scalify_cli.config.identity import NOT_IDENTITY
from scalify_cli.config.sweep_file import read_grid
from scalify_cli.errors import UserError
from scalify_cli.report.sweeps import SWEEPS
from scalify_cli.shipped import shipped

_NAME = re.compile(r"\w[\w.-]*")
_NO_NAME = "sweep"


@dataclass(frozen=True)
class Written:
    """A sweep with its name, its definition, its points, and those that cannot be run."""

    name: str
    definition: dict[str, Any]
    cells: list[Cell]
    invalid: list[Invalid]
    repeated: int = 0


def read(
    words: Sequence[str], name: str | None, runs_dir: Path, config_dir: Path | None
) -> Written:
    """The sweep that a command line means.

    Args:
        words: the name or file of a sweep, if any, then overrides.
        name: what to call it; None: as its file, or by its axes.
        runs_dir: sweeps that were started are found there too.
        config_dir: a folder of the user's own options, searched first.

    Raises:
        UserError: there is no such sweep, or it cannot be read or expanded.
    """
    source = words[0] if words and "=" not in words[0] else None
    path = _find(source, runs_dir, config_dir) if source is not None else None
    changes = words if path is None else words[1:]
    grid = adjusted(read_grid(path) if path else Grid(), changes)
    points = expand(grid, config_dir)
    cells, invalid = check(points, config_dir)
    if name is None:
        name = _named(path, changes, axes(points), digest(cells))
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is no name for a sweep", "use letters, digits, '-' and '_'")
    repeated = len(points) - len(cells) - len(invalid)
    return Written(name, definition(grid, config_dir), cells, invalid, repeated)


def known(runs_dir: Path, config_dir: Path | None) -> list[str]:
    """The names that ``find`` knows."""
    files = [file for folder in _folders(config_dir) for file in folder.glob("*.yaml")]
    started = (runs_dir / SWEEPS).glob("*/sweep.yaml")
    return sorted({*(file.stem for file in files), *(file.parent.name for file in started)})


def _find(name: str, runs_dir: Path, config_dir: Path | None) -> Path:
    """The file of a sweep: by its path, or its name here, in the user's folder, or shipped."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    files = [folder / f"{name}.yaml" for folder in _folders(config_dir)]
    files.append(runs_dir / SWEEPS / name / "sweep.yaml")
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        hint = did_you_mean(name, known(runs_dir, config_dir))
        raise UserError(f"there is no sweep '{name}'", f"{hint} or write KEY=VALUE,VALUE")
    return found


def _folders(config_dir: Path | None) -> list[Path]:
    own = [config_dir / SWEEPS] if config_dir else []
    return [Path(SWEEPS), *own, shipped(SWEEPS)]


def _named(path: Path | None, changes: Sequence[str], keys: list[str], hexadecimal: str) -> str:
    """The file's name while its points are the file's; else with digits that tell them apart."""
    roots = {re.split(r"[./=]", word.lstrip("+"), maxsplit=1)[0] for word in changes}
    if path is None:
        stem = "-".join(key.rpartition(".")[2] for key in keys) or _NO_NAME
        return f"{stem[:40]}-{hexadecimal}"
    stem = path.parent.name if path.name == "sweep.yaml" else path.stem
    return stem if roots <= {*NOT_IDENTITY} else f"{stem}-{hexadecimal}"
