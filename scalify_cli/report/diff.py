"""What sets two runs apart before any number: their configurations and their surroundings."""

from collections.abc import Iterator, Mapping
from typing import Any

Difference = dict[str, tuple[Any, Any]]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference:
    """``{"model.width": (256, 512)}``: the keys whose values differ, None where there is none."""
    left, right = dict(_leaves(ours)), dict(_leaves(theirs))
    keys = dict.fromkeys([*left, *right])
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
