"""Along which keys some runs differ, and where each of them stands."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scalify_cli.report.runs import RunInfo

UNKNOWN = "-"
_NOT_AXES = ("launcher", "tracking", "name", "tags", "paths")


def settings(run: RunInfo) -> dict[str, str]:
    """What a run's words, and its sweep's point, say: ``{"precision": "fp8", "seed": "0"}``."""
    words = [word.lstrip("+").partition("=") for word in run.overrides]
    given = {key: value for key, _, value in words} | dict(run.values)
    return {key: canonical(value) for key, value in given.items()}


def varying(given: Sequence[Mapping[str, str]], usual: Mapping[str, str]) -> list[str]:
    """The keys whose values differ, in the order in which they are first mentioned.

    Args:
        given: the ``settings`` of every run.
        usual: the values of keys that are not mentioned.
    """
    keys = dict.fromkeys(key for each in given for key in each)
    return [
        key
        for key in keys
        if key.partition(".")[0] not in _NOT_AXES
        and len({each.get(key, usual.get(key)) for each in given}) > 1
    ]


def place(run: RunInfo, keys: Sequence[str], usual: Mapping[str, str]) -> dict[str, str]:
    """A run's value for each key: its words', else the usual one, else its configuration's."""
    given = {**usual, **settings(run)}
    return {key: given[key] if key in given else _configured(run, key) for key in keys}


def canonical(value: Any) -> str:
    """One text for all ways to write a value: ``1e-3`` and ``0.001``, ``True`` and ``true``."""
    text = str(value).strip()
    try:
        amount = float(text)
    except ValueError:
        return text.lower() if text in ("True", "False") else text
    if not math.isfinite(amount):
        return text
    return str(int(amount)) if amount.is_integer() and abs(amount) < 1e15 else repr(amount)


def _configured(run: RunInfo, key: str) -> str:
    value: Any = run.config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return UNKNOWN if value is None or isinstance(value, dict) else canonical(value)
