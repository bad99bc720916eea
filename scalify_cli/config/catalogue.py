"""What can be chosen, read from file names alone: groups are folders, options are YAML files."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from scalify_cli.errors import UserError
from scalify_cli.shipped import shipped

GROUPS = (
    "precision",
    "scaling",
    "model",
    "optimizer",
    "data",
    "trainer",
    "launcher",
    "tracking",
)
SCALARS = ("seed", "name", "tags")
_FIELD = re.compile(r"^([A-Za-z]\w*)\s*:", re.MULTILINE)
_COMPANY = re.compile(r"^defaults\s*:|^#\s*@package", re.MULTILINE)
_TIME = re.compile(r"^\s*([\w-]+)\s*:\s*([1-9]\d*(?::[0-5]?\d)+)\s*(?:#.*)?$", re.MULTILINE)
_DEFAULT = re.compile(r"^\s*-\s*(\w+):\s*(\w+)\s*$", re.MULTILINE)


def folders(config_dir: Path | None = None) -> list[Path]:
    """Where options are looked up, first match wins: the flag, ``$SCALIFY_CONF``, the shipped ones.

    Raises:
        UserError: a named folder does not exist.
    """
    named = [config_dir, os.environ.get("SCALIFY_CONF")]
    chosen = [Path(folder).expanduser().absolute() for folder in named if folder]
    for folder in chosen:
        if not folder.is_dir():
            raise UserError(
                f"the configuration folder {folder} does not exist",
                "check --config-dir and $SCALIFY_CONF; both are optional",
            )
    return [*chosen, shipped("conf")]


def check_times(folder: Path) -> None:
    """Look for what one writes as a time and YAML reads as a number, in base 60.

    Raises:
        UserError: there is one in an option's file.
    """
    for path in sorted(folder.glob("**/*.yaml")):
        found = _TIME.search(path.read_text("utf-8", "replace"))
        if found:
            key, time = found.groups()
            hint = f'quote it: {key}: "{time}"'
            raise UserError(f"{path}: {key}: {time} is a number to YAML, not a time", hint)


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """The options of a group (``model``, ``trainer/sized``), sorted."""
    found = {
        path.stem
        for folder in folders(config_dir)
        for path in folder.glob(f"{group}/*.yaml")
        if not path.name.startswith(".")
    }
    return sorted(found)


def option_path(group: str, option: str, config_dir: Path | None = None) -> Path | None:
    """The file that defines the option, or None."""
    candidates = (folder / group / f"{option}.yaml" for folder in folders(config_dir))
    return next((path for path in candidates if path.is_file()), None)


def is_group(key: str, config_dir: Path | None = None) -> bool:
    """Whether ``key=...`` chooses an option rather than sets a value."""
    return key in GROUPS or (
        key.startswith(tuple(f"{group}/" for group in GROUPS)) and bool(options(key, config_dir))
    )


def describe(group: str, option: str, config_dir: Path | None = None) -> str:
    """The one-line comment at the top of the option's file; empty when there is none."""
    path = option_path(group, option, config_dir)
    first = path.read_text("utf-8").partition("\n")[0] if path else ""
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def fields(group: str, option: str, config_dir: Path | None = None) -> list[str]:
    """The keys an option's file sets, in file order."""
    path = option_path(group, option, config_dir)
    keys = _FIELD.findall(path.read_text("utf-8")) if path else []
    return [key for key in keys if key != "defaults"]


def defaults(config_dir: Path | None = None) -> dict[str, str]:
    """The option each group has when nothing is said."""
    return dict(_DEFAULT.findall(_main(config_dir)))


def stands_alone(group: str, option: str, config_dir: Path | None = None) -> bool:
    """Whether choosing the option changes its own group only, and the same in every company.

    It does not where its file has defaults or a package of its own, or where the choice of
    another file depends on it.
    """
    path = option_path(group, option, config_dir) if group in GROUPS else None
    text = path.read_text("utf-8") if path else "defaults:"
    return not _COMPANY.search(text) and f"${{{group}}}" not in _main(config_dir)


def _main(config_dir: Path | None) -> str:
    files = (folder / "config.yaml" for folder in folders(config_dir))
    return next(path for path in files if path.is_file()).read_text("utf-8")


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """``did you mean 'x'?``, or the choices when nothing is close."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose from: {', '.join(known)}" if known else "there is nothing to choose from"
