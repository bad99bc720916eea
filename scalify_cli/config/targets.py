"""``_target_`` names the class of a group's object; the class, not the YAML, says what is valid."""

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scalify_cli.config.catalogue import did_you_mean
from scalify_cli.errors import UserError

_TAKES = {
    "list": ("a list", "write [a,b]"),
    "int": ("an integer", "write digits only: 1000, not 1e3 or 1000.0"),
    "float": ("a number", "write it as 0.1 or 3e-4"),
    "bool": ("true or false", "write true or false"),
    "str": ("text", "quote it when it has signs in it"),
}


def build(node: Mapping[str, Any] | DictConfig, group: str = "") -> Any:
    """The object a group of the composed configuration stands for: its target, called.

    Args:
        node: the group's ``_target_`` and values.
        group: its name, for messages.

    Raises:
        UserError: the target does not exist or refuses the values.
    """
    values = {str(key): value for key, value in node.items()}
    target = locate(group, values.pop("_target_"))
    try:
        with redirect_stdout(sys.stderr):  # which a user's class may print to; stdout is for data
            return target(**values)
    except (TypeError, ValueError) as error:
        where = group or getattr(target, "__name__", "the target")
        raise UserError(f"{where}: {error}", f"see `scalify configs {group}`") from error


def locate(group: str, target: Any) -> Callable[..., Any]:
    """The callable at a dotted path, in an installed package or in the current folder.

    Raises:
        UserError: it cannot be imported, or is not callable.
    """
    module, _, name = str(target).rpartition(".")
    key = f"{group}._target_={target}"
    if not module:
        raise UserError(f"{key} is not a dotted path", "write it as my_package.MyModel")
    found = getattr(_imported(key, module), name, None)
    if found is None:
        public = [word for word in dir(import_module(module)) if not word.startswith("_")]
        raise UserError(f"{key}: {module} has no '{name}'", did_you_mean(name, public))
    if not callable(found):
        raise UserError(f"{key} is not a class", "name a class or a function")
    return found


def _imported(key: str, module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file of the user's hides no installed package
    try:
        with redirect_stdout(sys.stderr):
            return import_module(module)
    except (Exception, SystemExit) as error:  # a module of the user's own may raise anything
        raise UserError(
            f"{key} cannot be imported: {type(error).__name__}: {error}",
            f"`python -c 'import {module}'` has to work in this folder",
        ) from error


def checked(group: str, values: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """The group's values, typed and completed by its target, ``_target_`` first.

    Args:
        group: name of the group, for messages.
        values: plain resolved values, ``_target_`` among them.
        partial: let required values be missing, and do not try the object out.

    Raises:
        UserError: unknown or missing key, wrong type, or a value the dataclass refuses.
    """
    if "_target_" not in values:
        raise UserError(f"{group} has no _target_", "write `_target_: package.Class` in its file")
    given = {key: value for key, value in values.items() if key != "_target_"}
    target = locate(group, values["_target_"])
    if not is_dataclass(target):
        _check_arguments(group, target, given, partial)
        return {"_target_": values["_target_"], **given}
    given = typed(group, target, given, partial=partial)
    if not partial:
        build({"_target_": values["_target_"], **given}, group)
    return {"_target_": values["_target_"], **given}


def typed(
    group: str, target: Any, given: Mapping[str, Any], *, partial: bool = False
) -> dict[str, Any]:
    """The dataclass's fields with the given values put in, each converted to its field's type."""
    schema, types = OmegaConf.structured(target), get_type_hints(target)
    OmegaConf.set_readonly(schema, False)  # a frozen dataclass makes a read-only schema
    for key, value in given.items():
        if key not in types:
            _refuse_key(group, key, list(types))
        _assign(_path(group, key), schema, key, value, types[key])
    _require(group, [] if partial else sorted(OmegaConf.missing_keys(schema)))
    return OmegaConf.to_container(schema)  # pyright: ignore[reportReturnType]


def _assign(path: str, schema: DictConfig, key: str, value: Any, declared: Any) -> None:
    try:
        schema[key] = value
    except OmegaConfBaseException:
        kind = next((kind for kind in _TAKES if kind in str(declared)), "str")
        takes, hint = _TAKES[kind]
        shown = "null" if value is None else value
        raise UserError(f"{path}={shown} is not {takes}", hint) from None


def _check_arguments(
    group: str, target: Callable[..., Any], given: dict[str, Any], partial: bool
) -> None:
    named, required, open_ended = _parameters(target)
    for key in given:
        if key not in named and not open_ended:
            _refuse_key(group, key, named)
    missing = [key for key, value in given.items() if value == "???"]
    missing += [key for key in required if key not in given]
    _require(group, [] if partial else missing)


def _parameters(target: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """Names of the keywords, of those without a default, and whether any other will do."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # some builtins do not tell
        return [], [], True
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [parameter for parameter in parameters if parameter.kind in keywords]
    required = [parameter.name for parameter in named if parameter.default is parameter.empty]
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return [parameter.name for parameter in named], required, open_ended


def _refuse_key(group: str, key: str, known: list[str]) -> None:
    where = f"{group}.{key}: {group}" if group else "a run"
    raise UserError(f"{where} has no '{key}'", did_you_mean(key, known))


def _require(group: str, missing: list[str]) -> None:
    if missing:
        path = _path(group, missing[0])
        raise UserError(f"{path} is required", f"add {path}=VALUE")


def _path(group: str, key: str) -> str:
    return f"{group}.{key}" if group else key
