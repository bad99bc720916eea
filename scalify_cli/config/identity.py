"""What makes two runs the same point, and the shortest words that say how one differs."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scalify_cli.config.catalogue import GROUPS, defaults, option_path, options
from scalify_cli.config.composition import raw, validated
from scalify_cli.config.targets import checked

NOT_IDENTITY = ("launcher", "tracking", "name", "tags", "paths")
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_WORDS = ("null", "true", "false", "nan", "inf")


def signature(config: DictConfig | Mapping[str, Any]) -> str:
    """The run's id: 8 hex digits of the SHA-256 of everything that can change its numbers.

    Where tokens are cached (``data.cache``) is left out with the groups in ``NOT_IDENTITY``.
    """
    content = {key: value for key, value in plain(config).items() if key not in NOT_IDENTITY}
    if isinstance(content.get("data"), dict):
        content["data"] = {k: v for k, v in content["data"].items() if k != "cache"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def plain(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Dicts, lists and scalars only, everything resolved."""
    if not isinstance(config, DictConfig):
        return dict(config)
    return OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportReturnType]


def to_yaml(config: DictConfig | Mapping[str, Any]) -> str:
    """The whole configuration as YAML, in the order of the groups."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


def difference(config: DictConfig | Mapping[str, Any], config_dir: Path | None = None) -> list[str]:
    """The overrides that make this configuration out of the defaults, as few as there are.

    Groups are matched to their options by content, so a run directory's own config will do.
    """
    values = plain(config)
    choices = _choices(values, config_dir)
    usual = defaults(config_dir)
    words = _words(choices, usual)
    implied = _choices(_base(words, config_dir), config_dir)  # trainer=paper brings its optimizer
    words = _words(choices, {g: usual[g] if implied[g] == choices[g] else "" for g in GROUPS})
    base = flatten(_base(words, config_dir))
    own = {g for g in GROUPS if base.get(f"{g}._target_") != values[g].get("_target_")}
    changed = {
        key: value
        for key, value in flatten(values).items()
        if key.partition(".")[0] in own or base.get(key, ...) != value
    }
    return words + [override(key, value) for key, value in changed.items()]


def _words(choices: dict[str, str], usual: dict[str, str]) -> list[str]:
    return [f"{group}={choices[group]}" for group in GROUPS if choices[group] != usual[group]]


def _base(words: list[str], config_dir: Path | None) -> dict[str, Any]:
    return validated(raw(words, config_dir), partial(checked, partial=True))


def override(key: str, value: Any) -> str:
    """``key=value`` such that Hydra's grammar reads the same value back."""
    return f"{key}={_literal(value)}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model.width": 768, ...}``; lists stay whole."""
    return dict(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return repr(value)
    return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _quoted(value)


def _quoted(text: str) -> str:
    escaped = re.sub(r'(\\*)"', lambda match: match[1] * 2 + '\\"', text)
    return '"' + re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped) + '"'


def _choices(values: dict[str, Any], config_dir: Path | None) -> dict[str, str]:
    usual, chosen = defaults(config_dir), {}
    for group in GROUPS:
        known = sorted(options(group, config_dir), key=lambda option: option != usual[group])
        scores = [_distance(values, group, option, chosen, config_dir) for option in known]
        chosen[group] = known[scores.index(min(scores))]
    return chosen


def _distance(
    values: dict[str, Any], group: str, option: str, chosen: dict[str, str], config_dir: Path | None
) -> tuple[bool, int]:
    ours = values.get(group, {})
    written = _written(group, option, config_dir)
    sized = f"{option}_{chosen.get('model')}"
    written |= _written(f"{group}/sized", sized, config_dir)
    other = written.get("_target_") != ours.get("_target_")
    return other, sum(ours.get(key) != value for key, value in written.items())


def _written(group: str, option: str, config_dir: Path | None) -> dict[str, Any]:
    path = option_path(group, option, config_dir)
    content = OmegaConf.to_container(OmegaConf.load(path)) if path else {}
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "defaults"}
