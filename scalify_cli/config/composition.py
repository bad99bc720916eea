"""Hydra composes, dataclasses validate, and nothing unresolved leaves this file."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
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

from scalify_cli.config.catalogue import (
    GROUPS,
    SCALARS,
    check_times,
    did_you_mean,
    folders,
    stands_alone,
)
from scalify_cli.config.overrides import normalise, parse
from scalify_cli.config.targets import build, checked, typed
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
    return Composer(config_dir).compose(overrides)


def raw(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """What Hydra makes of the overrides, resolved but not yet typed or validated."""
    return Composer(config_dir).raw(overrides)


class Composer:
    """Composes many configurations: asks Hydra once for each choice of groups, and checks once.

    Args:
        config_dir: a folder of the user's own options, searched first.
        apart: ask Hydra for an option that stands alone once, not beside every other choice.
    """

    def __init__(self, config_dir: Path | None = None, *, apart: bool = False):
        self._where = folders(config_dir)
        for folder in self._where[:-1]:
            check_times(folder)
        self._apart = cache(lambda word: apart and _stands_alone(word, config_dir))
        self._words = cache(lambda word: normalise([word], config_dir)[0])
        self._override = cache(parse)
        self._chosen = cache(self._choose)
        self._known: dict[str, dict[str, Any]] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """As the function of that name."""
        result = OmegaConf.create(self.values(overrides))
        OmegaConf.set_struct(result, True)
        return result

    def values(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The same configuration as plain dicts, lists and scalars."""
        config = validated(self.raw(overrides), check=self._checked)
        _check_lengths(config)
        _check_processes(config)
        return config

    def raw(self, overrides: Sequence[str]) -> dict[str, Any]:
        """As the function of that name."""
        words = [self._words(word) for word in overrides]
        return self._retargeted(_resolved(self._composed(words)), words)

    def _composed(self, words: list[str]) -> DictConfig:
        """Options come from Hydra, values are put on top as it does: one by one, in their order."""
        values = [word for word in words if word.startswith("++")]
        options = [word for word in words if not word.startswith("++")]
        config = deepcopy(self._chosen(tuple(word for word in options if not self._apart(word))))
        for word in filter(self._apart, options):
            group = word.partition("=")[0]
            config[group] = deepcopy(self._chosen((word,))[group])
        with _explained():
            for override in map(self._override, values):
                key, value = override.key_or_group, override.value()
                OmegaConf.update(config, key, value, merge=True, force_add=True)
        return config

    def _choose(self, options: tuple[str, ...]) -> DictConfig:
        with searching(self._where), _explained():
            return hydra.compose("config", overrides=list(options))

    def _retargeted(self, values: dict[str, Any], words: list[str]) -> dict[str, Any]:
        """With another ``_target_`` than its option's, a group has the given values only."""
        keys = {word: word.lstrip("+").partition("=")[0].split(".") for word in words}
        given = {
            group: {key[1] for key in keys.values() if key[0] == group and len(key) > 1}
            for group in GROUPS
        }
        groups = [group for group in GROUPS if "_target_" in given[group]]
        if not groups:
            return values
        options = self._composed([word for word in words if keys[word][-1] != "_target_"])
        for group in groups:
            if options[group]._target_ != values[group]["_target_"]:
                values[group] = {k: v for k, v in values[group].items() if k in given[group]}
        return values

    def _checked(self, group: str, values: Mapping[str, Any]) -> dict[str, Any]:
        key = f"{group} {json.dumps(values, sort_keys=True, default=repr)}"
        if key not in self._known:
            self._known[key] = checked(group, values)
        return self._known[key]


def validated(
    values: dict[str, Any], check: Callable[[str, Mapping[str, Any]], dict[str, Any]] = checked
) -> dict[str, Any]:
    """Every group checked against its target by ``check``, then the scalars."""
    for key in values:
        if key not in (*GROUPS, *SCALARS):
            raise UserError(f"there is no '{key}'", did_you_mean(key, (*GROUPS, *SCALARS)))
    groups = {group: check(group, _as_group(group, values[group])) for group in GROUPS}
    scalars = typed("", Scalars, {key: values[key] for key in SCALARS})
    Scalars(**scalars)
    return {**groups, **scalars}


def _stands_alone(word: str, config_dir: Path | None) -> bool:
    group, _, option = word.partition("=")
    return stands_alone(group, option, config_dir)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"a configuration file is not YAML: {where}", "mend that file") from None
    except (HydraException, OmegaConfBaseException, ValueError, AttributeError) as error:
        raise UserError(_first_line(error), "see `scalify configs` for what there is") from error


@contextmanager
def searching(where: list[Path]) -> Iterator[None]:
    """Inside, Hydra looks for options in these folders, the first one first."""
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


def _check_processes(config: dict[str, dict[str, Any]]) -> None:
    count = getattr(build(config["launcher"], "launcher"), "processes", 1)
    if count > 1:
        build(config["trainer"], "trainer").require_split(count)


def _first_line(error: Exception) -> str:
    return re.split(r"\s*\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__
