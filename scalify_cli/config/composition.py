"""Hydra composes, dataclasses validate, and nothing unresolved leaves this file."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from scalify_cli.config.catalogue import GROUPS, SCALARS, did_you_mean, folders
from scalify_cli.config.overrides import normalise
from scalify_cli.config.targets import checked, typed
from scalify_cli.errors import UserError

_before: ContextVar[tuple[Path, ...]] = ContextVar("folders searched before the shipped one")


class _Folders(SearchPathPlugin):
    """Puts the user's folders before the shipped one; idle outside ``compose``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in _before.get(()):
            search_path.prepend("scalify", f"file://{folder}", anchor="main")


@dataclass
class Scalars:
    """The keys outside every group."""

    seed: int = 0
    name: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed={self.seed} is out of range", "use 0 <= seed < 2147483648")


def compose(overrides: Sequence[str] = (), config_dir: Path | None = None) -> DictConfig:
    """The configuration of one run: resolved, typed, complete, validated.

    Args:
        overrides: ``group=option`` and ``group.key=value`` words, in Hydra's grammar.
        config_dir: a folder of the user's own options, searched first.

    Returns:
        The groups of ``conf/`` (each with its ``_target_``), ``seed``, ``name`` and ``tags``.

    Raises:
        UserError: with the word at fault and what to write instead.
    """
    config = validated(raw(overrides, config_dir))
    _check_lengths(config)
    result = OmegaConf.create(config)
    OmegaConf.set_struct(result, True)
    return result


def raw(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """What Hydra makes of the overrides, resolved but not yet typed or validated."""
    words = normalise(overrides, config_dir)
    return _retargeted(_resolved(_composed(words, config_dir)), words, config_dir)


def validated(values: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """Every group checked against its target, then the scalars; ``partial`` as in ``checked``."""
    for key in values:
        if key not in (*GROUPS, *SCALARS):
            raise UserError(f"there is no '{key}'", did_you_mean(key, (*GROUPS, *SCALARS)))
    groups = {
        group: checked(group, _as_group(group, values[group]), partial=partial) for group in GROUPS
    }
    scalars = typed("", Scalars, {key: values[key] for key in SCALARS})
    Scalars(**scalars)
    return {**groups, **scalars}


def _composed(words: list[str], config_dir: Path | None) -> DictConfig:
    with _searching(folders(config_dir)):
        try:
            return hydra.compose("config", overrides=words)
        except YAMLError as error:
            where = " ".join(str(error).split())
            raise UserError(
                f"a configuration file is not YAML: {where}", "mend that file"
            ) from None
        except (HydraException, OmegaConfBaseException, ValueError, AttributeError) as error:
            raise UserError(
                _first_line(error), "see `scalify configs` for what there is"
            ) from error


def _retargeted(
    values: dict[str, Any], words: list[str], config_dir: Path | None
) -> dict[str, Any]:
    """With another ``_target_`` than its option's, a group has the values that were given only."""
    keys = {word: word.lstrip("+").partition("=")[0].split(".") for word in words}
    given = {
        group: {key[1] for key in keys.values() if key[0] == group and len(key) > 1}
        for group in GROUPS
    }
    groups = [group for group in GROUPS if "_target_" in given[group]]
    if not groups:
        return values
    options = _composed([word for word in words if keys[word][-1] != "_target_"], config_dir)
    for group in groups:
        if options[group]._target_ != values[group]["_target_"]:
            values[group] = {k: v for k, v in values[group].items() if k in given[group]}
    return values


@contextmanager
def _searching(where: list[Path]) -> Iterator[None]:
    Plugins.instance().register(_Folders)
    version = {"version_base": "1.3"} if hydra.__version__ < "1.4" else {}
    token = _before.set(tuple(reversed(where[:-1])))
    try:
        with hydra.initialize_config_dir(str(where[-1]), **version):
            yield
    finally:
        _before.reset(token)


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportReturnType]
    except InterpolationResolutionError as error:
        key = error.full_key or "a value"
        raise UserError(
            f"{key}: {_first_line(error)}", "${...} takes the full path of a key, as ${model.width}"
        ) from None


def _as_group(group: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{group}={value} is not an option", f"see `scalify configs {group}`")
    return value


def _check_lengths(config: dict[str, dict[str, Any]]) -> None:
    length = config["trainer"].get("sequence_length")
    context = config["model"].get("context")
    if isinstance(length, int) and isinstance(context, int) and length > context:
        raise UserError(
            f"trainer.sequence_length={length} is longer than model.context={context}",
            f"use trainer.sequence_length={context} or model.context={length}",
        )


def _first_line(error: Exception) -> str:
    return re.split(r"\s*\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__
