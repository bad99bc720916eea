"""What may stand where the cursor is: commands, options, ``group=option``, runs and sweeps.

Answers come from file names and from the commands' own parameters; nothing heavy is imported.
"""

import os
from enum import EnumType
from pathlib import Path
from typing import Any, get_args, get_type_hints

from scalify_cli.config import catalogue
from scalify_cli.errors import UserError
from scalify_cli.shipped import shipped

_WITH_RUNS = ("status", "logs", "show", "diff", "cancel", "retry", "rm", "compare")
_WITH_SWEEPS = ("sweep", "plan")


def candidates(line: str, group: Any) -> list[str]:
    """The words that the one under the cursor may become.

    Args:
        line: the command line up to the cursor, program name included.
        group: the Click group, asked for command and option names.
    """
    words = line.split()[1:]
    if not words or line[-1:].isspace():
        words.append("")
    *before, word = words
    if not before:
        found = ["--help", "--version"] if word.startswith("-") else list(group.commands)
    else:
        found = _of_command(group.commands.get(before[0]), before, word)
    return sorted({item for item in found if item.startswith(word)})


def _of_command(command: Any, before: list[str], word: str) -> list[str]:
    if command is None:
        return []
    options = {flag: parameter for parameter in command.params for flag in parameter.opts}
    previous = options.get(before[-1])
    if previous is not None and not previous.is_flag:
        return _of_option(command, previous.name, word)
    if word.startswith("-"):
        return [flag for flag in options if flag.startswith("-")]
    return _of_argument(command, before, word)


def _of_option(command: Any, name: str, word: str) -> list[str]:
    """What an option may be: its choices, keys, or keys with values."""
    if name == "by":
        return _with_commas(word, [*catalogue.GROUPS, *catalogue.SCALARS])
    return _overrides([], word) if name == "baseline" else _choices(command, name)


def _choices(command: Any, name: str) -> list[str]:
    """The values of a parameter that is one of an enumeration."""
    hint = get_type_hints(command.callback).get(name)
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, EnumType)]
    return [member.value for kind in kinds for member in kind]  # pyright: ignore


def _of_argument(command: Any, before: list[str], word: str) -> list[str]:
    name = before[0]
    if name in ("run", "configs"):
        return _overrides(before[1:], word)
    if name in _WITH_SWEEPS:
        return [*_swept(before[1:], word), *_written_sweeps(before)]
    if name in _WITH_RUNS:
        return _runs_and_sweeps(before)
    return _choices(command, "shell")


def _overrides(before: list[str], word: str) -> list[str]:
    key, equals, _ = word.partition("=")
    try:
        if equals:
            return [f"{key}={option}" for option in catalogue.options(key)]
        if "." in key:
            return _fields(before, key.partition(".")[0])
    except UserError:
        return []
    return [f"{name}=" for name in (*catalogue.GROUPS, *catalogue.SCALARS)]


def _swept(before: list[str], word: str) -> list[str]:
    """As ``_overrides``, where a value may be several with commas between them."""
    key, equals, value = word.partition("=")
    if not equals:
        return _overrides(before, word)
    options = [known.partition("=")[2] for known in _overrides(before, f"{key}=")]
    return [f"{key}={known}" for known in _with_commas(value, options)]


def _with_commas(written: str, known: list[str]) -> list[str]:
    """The words that may follow those before the last comma."""
    before = written.rpartition(",")[0]
    taken = before.split(",")
    return [f"{before}," * bool(before) + word for word in known if word not in taken]


def _fields(before: list[str], group: str) -> list[str]:
    if group not in catalogue.GROUPS:
        return []
    chosen = [word.partition("=")[2] for word in before if word.startswith(f"{group}=")]
    option = chosen[-1].rpartition(",")[2] if chosen else catalogue.defaults()[group]
    return [f"{group}.{key}=" for key in catalogue.fields(group, option)]


def _written_sweeps(before: list[str]) -> list[str]:
    """The sweeps in files: of this folder, those shipped, and those that were started."""
    folders = (Path("sweeps"), shipped("sweeps"))
    files = [path.stem for folder in folders for path in folder.glob("*.yaml")]
    return [*files, *_folder_names(before, "sweeps/*/sweep.yaml")]


def _runs_and_sweeps(before: list[str]) -> list[str]:
    return ["@last", *_folder_names(before, "*/state.json", "sweeps/*/points.jsonl")]


def _folder_names(before: list[str], *patterns: str) -> list[str]:
    """The names of the folders that have such a file in the runs' folder."""
    named = before[before.index("--runs-dir") + 1] if "--runs-dir" in before[:-1] else None
    folder = Path(named or os.environ.get("SCALIFY_RUNS") or "runs")
    try:
        return [path.parent.name for pattern in patterns for path in folder.glob(pattern)]
    except OSError:
        return []
