"""The grid language: from a sweep's file, or words with several values, to the words of points.

Every value is the right-hand side of a word in Hydra's grammar, so each point is a list of words
that ``scalify run`` takes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from scalify_cli.config.catalogue import did_you_mean, folders, is_group
from scalify_cli.config.composition import searching
from scalify_cli.config.identity import override as write
from scalify_cli.config.overrides import check_option, parse
from scalify_cli.errors import UserError


@dataclass(frozen=True)
class Grid:
    """A sweep as it is written.

    Args:
        description: a sentence.
        base: words that every point has.
        grid: the values of each key; points are their product.
        zip: groups of keys whose values go together, one group beside the others.
        include: further points, made of ``base`` and these values.
        exclude: points of the product that have all of these values are left out.
        baseline: the values of the points that the others are compared with.
    """

    description: str = ""
    base: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    zip: list[dict[str, Any]] = field(default_factory=list)
    include: list[dict[str, Any]] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GridPoint:
    """The words of one point, and its values on the axes that vary."""

    words: tuple[str, ...]
    values: dict[str, Any]


@dataclass(frozen=True)
class _Word:
    """One key with one value: as Hydra reads it, and as it is written."""

    key: str
    value: Any
    text: str


_Words = tuple[_Word, ...]
_MOST = 100_000  # points, or values of a key
_FEWER = "give its axes fewer values"


def adjusted(grid: Grid, words: Sequence[str]) -> Grid:
    """The grid with words from the command line in place of what it says about their keys.

    A word holds for every point, those of ``include`` too.

    Raises:
        UserError: a word is malformed, or its key is linked with others by ``zip``.
    """
    for word in words:
        override = parse(word)
        key, text = override.key_or_group, word.partition("=")[2]
        _check_not_linked(grid, key)
        base = [other for other in grid.base if _key(other) != key]
        axes, added = dict(grid.grid), grid.include
        if override.is_sweep_override():
            axes = {**axes, key: text} if axes or grid.zip or not added else {}
            added = [{**entry, key: text} for entry in added]
        else:
            axes.pop(key, None)
            base.append(word)
            added = [{**entry, key: text} if key in entry else entry for entry in added]
        grid = replace(grid, base=base, grid=axes, include=added)
    return grid


def expand(grid: Grid, config_dir: Path | None = None) -> list[GridPoint]:
    """The points of a grid, in the order in which it is written, none twice.

    Raises:
        UserError: a value cannot be read, there is none, linked values differ in number, or
            ``exclude`` or ``baseline`` speak of a key that the sweep does not set, a key has two
            axes, or there is no point.
    """
    _check_axes(grid)
    with searching(folders(config_dir)):
        base = tuple(word for text in grid.base for word in _one(text))
        chosen = list(_product(grid)) if grid.grid or grid.zip or not grid.include else []
        added = [words for entry in grid.include for words in _entries(entry)]
        known = {word.key for words in [base, *chosen, *added] for word in words}
        _check_conditions(grid, known, config_dir)
        excluded = [_condition(entry) for entry in grid.exclude]
    kept = [words for words in chosen if not any(_meets(base + words, it) for it in excluded)]
    if not kept and not added:
        raise UserError("the sweep's `exclude` leaves no point", "exclude less")
    return _points(base, [*kept, *added])


def definition(grid: Grid, config_dir: Path | None = None) -> dict[str, Any]:
    """The sections that say something, as a sweep's file has them; a baseline's values as read."""
    with searching(folders(config_dir)):
        baseline = {key: _words(key, value)[0].value for key, value in grid.baseline.items()}
    written = {item.name: getattr(grid, item.name) for item in fields(grid)}
    return {key: value for key, value in {**written, "baseline": baseline}.items() if value}


def axes(points: Iterable[GridPoint]) -> list[str]:
    """The keys that vary, in the order of the points' values."""
    return list(dict.fromkeys(key for point in points for key in point.values))


def _product(grid: Grid) -> Iterator[_Words]:
    linked = [list(_linked(group)) for group in grid.zip]
    free = [[(word,) for word in _words(key, value)] for key, value in grid.grid.items()]
    if (count := prod(map(len, [*linked, *free]))) > _MOST:
        raise UserError(f"the sweep has {count:,} points; {_MOST:,} are the most", _FEWER)
    return (sum(parts, ()) for parts in product(*linked, *free))


def _linked(group: Mapping[str, Any]) -> Iterator[_Words]:
    columns = {key: _words(key, value) for key, value in group.items()}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{key} has {len(column)}" for key, column in columns.items())
        raise UserError(f"zip: linked values differ in number: {counts}", "give as many of each")
    return zip(*columns.values(), strict=True)


def _entries(entry: Mapping[str, Any]) -> Iterator[_Words]:
    return product(*(_words(key, value) for key, value in entry.items()))


def _points(base: _Words, rows: list[_Words]) -> list[GridPoint]:
    keys = dict.fromkeys(word.key for words in rows for word in words)
    seen = {key: {_text(words, key) for words in rows} for key in keys}
    varying = [key for key in keys if len(seen[key]) > 1]
    points: dict[tuple[str, ...], GridPoint] = {}
    for words in rows:
        own = {word.key: word.value for word in words}
        kept = [word for word in base if word.key not in own]
        texts = tuple(word.text for word in (*kept, *words))
        points.setdefault(texts, GridPoint(texts, {k: own[k] for k in varying if k in own}))
    return list(points.values())


def _text(words: _Words, key: str) -> str | None:
    return next((word.text for word in words if word.key == key), None)


def _condition(entry: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [word.value for word in _words(key, value)] for key, value in entry.items()}


def _meets(words: _Words, condition: Mapping[str, list[Any]]) -> bool:
    values = {word.key: word.value for word in words}
    return all(key in values and values[key] in wanted for key, wanted in condition.items())


def _words(key: str, value: Any) -> list[_Word]:
    """The key's words: one for each value that is written, or that a function stands for."""
    items = value if isinstance(value, list) else [value]
    texts = [f"{key}={item}" if isinstance(item, str) else write(key, item) for item in items]
    words = [word for text in texts for word in _one(text)]
    if not words:
        raise UserError(f"{key}={_shown(value)} names no value", "give it at least one")
    return words


def _one(text: str) -> Iterator[_Word]:
    override = _parsed(text)
    if not override.is_sweep_override():
        yield _Word(override.key_or_group, override.value(), text.lstrip("+"))
        return
    try:
        values = list(islice(override.sweep_string_iterator(), _MOST + 1))
    except (HydraException, ArithmeticError, ValueError):  # an interval, a step of 0, a NaN
        hint = "write range(START,STOP,STEP) or a,b,c"
        raise UserError(f"'{text}' has no list of values", hint) from None
    if len(values) > _MOST:
        raise UserError(f"'{text}' has more than {_MOST:,} values", _FEWER)
    for value in values:
        yield from _one(f"{override.key_or_group}={value}")


def _parsed(text: str) -> Override:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        return parser.parse_overrides([text])[0]
    except HydraException:
        return parse(text)  # which says what is wrong


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _check_not_linked(grid: Grid, key: str) -> None:
    for group in grid.zip:
        if key in group:
            others = ", ".join(other for other in group if other != key)
            raise UserError(
                f"{key} goes together with {others} in this sweep, and cannot be set apart",
                "copy the sweep's file, and change its `zip:`",
            )


def _check_axes(grid: Grid) -> None:
    if not (grid.base or grid.grid or grid.zip or grid.include):
        hint = "write KEY=VALUE,VALUE or the name of a sweep, as smoke"
        raise UserError("this sweep names no key and no value", hint)
    counts = Counter([*grid.grid, *(key for group in grid.zip for key in group)])
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"{twice} has two axes in `grid:` and `zip:`", "keep one of them")


def _check_conditions(grid: Grid, known: set[str], config_dir: Path | None) -> None:
    entries = [("baseline", grid.baseline), *(("exclude", entry) for entry in grid.exclude)]
    for section, entry in entries:
        for key, value in entry.items():
            if key not in known:
                hint = did_you_mean(str(key), sorted(known))
                raise UserError(f"{section}: no axis or word of the sweep sets '{key}'", hint)
            if is_group(key, config_dir):
                for word in _words(key, value):
                    check_option(f"{section}: {word.text}", key, word.value, config_dir)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
