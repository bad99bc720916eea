"""A sweep's file, read: YAML in which everything means what it looks like, in known sections."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from scalify_cli.config.catalogue import did_you_mean
from scalify_cli.config.grid import Grid
from scalify_cli.errors import UserError

_WORDS = "a list of words, as [model=gpt_nano]"
_SHAPES = {
    "description": (str, "text"),
    "base": (list, _WORDS),
    "grid": (dict, "keys and their values, as {seed: [0, 1]}"),
    "zip": (list, "a list of {key: [values], key: [values]}"),
    "include": (list, "a list of {key: value}"),
    "exclude": (list, "a list of {key: value}"),
    "baseline": (dict, "keys and their values, as {precision: fp32}"),
}
_ITEMS = {"base": str, "zip": dict, "include": dict, "exclude": dict}
_NOT_EMPTY = ("zip", "exclude")  # an entry without keys would leave no point
_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9_]*)",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}


class _Loader(yaml.SafeLoader):
    """YAML without 1.1's surprises: ``1:30:00``, ``off`` and a date are text, a key stands once."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(
                f"'{twice}' is twice in the mapping at line {node.start_mark.line + 1}"
            )
        return node


for _kind, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), None
    )


def read_grid(path: Path) -> Grid:
    """The sweep that a YAML file describes.

    Raises:
        UserError: the file is missing, is not YAML, or has something else in it.
    """
    content = _content(path) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a sweep", "a sweep has `grid:` with keys and values")
    for key, value in content.items():
        _check_section(path, str(key), value)
    return Grid(**{key: value for key, value in content.items() if value is not None})


def _content(path: Path) -> Any:
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
        json.dumps(content, skipkeys=True, default=str)  # refuses what holds itself
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", "check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8", "save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}", "mend that file") from None
    except ValueError:
        raise UserError(f"{path} has a value inside itself", "mend its anchors") from None
    return content


def _check_section(path: Path, key: str, value: Any) -> None:
    if key not in _SHAPES:
        raise UserError(f"{path}: a sweep has no '{key}'", did_you_mean(key, list(_SHAPES)))
    kind, shape = _SHAPES[key]
    items = value if key in _ITEMS and isinstance(value, list) else []
    wrong = value is not None and not isinstance(value, kind)
    if wrong or not all(isinstance(item, _ITEMS[key]) for item in items):
        raise UserError(f"{path}: {key} is not {shape}", f"write {key} as {shape}")
    if key in _NOT_EMPTY and not all(items):
        raise UserError(f"{path}: {key} has an entry without a key", f"write {key} as {shape}")
