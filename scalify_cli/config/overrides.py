"""The words after ``scalify run``: refused here when one run cannot be made of them.

Hydra's grammar is kept, its strictness is not: ``+key`` and ``key`` mean the same, because
validation against the dataclasses, which comes later, knows every key there is.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalify_cli.config.catalogue import GROUPS, SCALARS, did_you_mean, is_group, options
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_KEY = re.compile(r"[+~]*[\w./@]+")


def normalise(words: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """The overrides for Hydra: options as ``group=option``, values as ``++key=value``.

    Raises:
        UserError: a word is malformed, names no known group or option, deletes, or sweeps.
    """
    return [_normalise(word, config_dir) for word in words]


def repeated(words: Sequence[str]) -> list[str]:
    """Keys that are given more than once (the last one counts)."""
    counts = Counter(word.partition("=")[0].lstrip("+") for word in words if "=" in word)
    return [key for key, count in counts.items() if count > 1]


def _normalise(word: str, config_dir: Path | None) -> str:
    override = parse(word)
    key = override.key_or_group
    _check_shape(word, key, override)
    if not is_group(key, config_dir):
        _check_first_name(word, key)
        return f"++{word.lstrip('+')}"
    check_option(word, key, override.value(), config_dir)
    return word.lstrip("+")


def parse(word: str) -> "Override":
    """The word as Hydra's grammar reads it.

    Raises:
        UserError: it does not.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except HydraException:
        raise UserError(f"'{word}' cannot be read as key=value", _how_to_write(word)) from None


def _how_to_write(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return f"write {key or 'key'}=VALUE, as in precision=fp8"
    if key != key.strip() or value != value.strip():
        return "leave no space around '='"
    if not _KEY.fullmatch(key):
        return "a key is letters, digits, '_' and dots, as in model.width=256"
    if value.startswith("~"):
        return f"write {key}=$HOME{value[1:]}"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return f"quote a value that has = or other signs in it: '{key}=\"{quoted}\"'"


def _check_shape(word: str, key: str, override: "Override") -> None:
    if not key:
        raise UserError(f"'{word}' has no key", "write KEY=VALUE, as in seed=3")
    if override.is_delete():
        _refuse_deletion(word, key)
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise UserError(
            f"'{word}': Hydra's own settings are not used here",
            "use --runs-dir for where runs go and `scalify sweep` for many of them",
        )
    if override.package is not None:
        raise UserError(f"'{word}': a group cannot be moved with '@'", f"write {key}=OPTION")
    if override.is_sweep_override():
        raise UserError(
            f"'{word}' names more than one value, and this is one run",
            f"use `scalify sweep {word}`",
        )


def _refuse_deletion(word: str, key: str) -> None:
    instead = f"{key}=none" if "none" in options(key) else f"{key}=VALUE"
    raise UserError(
        f"'{word}': '{key}' cannot be removed, every run has one",
        f"set it instead: {instead}",
    )


def _check_first_name(word: str, key: str) -> None:
    first = key.partition(".")[0].partition("/")[0]
    if first not in (*GROUPS, *SCALARS) or "/" in key:
        known = (*GROUPS, *SCALARS)
        raise UserError(f"'{word}': there is no '{key}'", did_you_mean(first, known))


def check_option(word: str, group: str, value: object, config_dir: Path | None) -> None:
    """Refuse a value that names no option of the group.

    Raises:
        UserError: beginning with the word.
    """
    known = options(group, config_dir)
    if not isinstance(value, str) or not value:
        raise UserError(f"'{word}': {group} takes the name of an option", _choose(known))
    if value not in known:
        raise UserError(
            f"'{word}': {group} has no option '{value}'", _options_hint(group, value, known)
        )


def _options_hint(group: str, value: str, known: list[str]) -> str:
    suggestion = did_you_mean(value, known)
    if suggestion.startswith("choose"):
        return suggestion
    return f"{suggestion} {_choose(known)}"


def _choose(known: list[str]) -> str:
    return f"choose from: {', '.join(known)}"
