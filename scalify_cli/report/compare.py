"""Which cell of a grid loses how much: means over seeds, and gaps to the baseline, run by run.

A run is compared with the run that differs from it in the baseline's keys alone, so the seed, and
every other axis, is the same on both sides. What has no loss is counted, never left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any

from scalify_cli.errors import UserError
from scalify_cli.report.axes import UNKNOWN, canonical, place, settings, varying
from scalify_cli.report.runs import RunInfo, read_metrics

OUTCOMES = ("done", "diverged", "failed", "unfinished")
_SEED = "seed"


@dataclass(frozen=True)
class Result:
    """One run of the comparison.

    ``values`` is where it stands; ``outcome`` one of ``OUTCOMES``; ``loss`` the last validation
    loss and ``step_seconds`` the median over the steps, of a run that is done. ``gap`` is the loss
    relative to the baseline's run, less one, and ``step_ratio`` the ratio of the step times; None
    where either has none.
    """

    run: RunInfo
    values: Mapping[str, str]
    outcome: str
    loss: float | None = None
    step_seconds: float | None = None
    gap: float | None = None
    step_ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """One cell: what its runs have in common, how they ended, and their means.

    ``spread`` is the sample standard deviation, None of fewer than two; ``pairs`` counts the runs
    that have a gap; ``step_seconds`` is a median, ``step_ratio`` a geometric mean.
    """

    values: Mapping[str, str]
    is_baseline: bool
    counts: Mapping[str, int]
    loss: float | None
    spread: float | None
    gap: float | None
    gap_spread: float | None
    pairs: int
    step_seconds: float | None
    step_ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """The rows, by the values of ``axes``; ``baseline`` is empty where no run is the baseline."""

    axes: Sequence[str]
    baseline: Mapping[str, str]
    rows: Sequence[Row]
    results: Sequence[Result]


def compare(
    runs: Sequence[RunInfo],
    *,
    by: Sequence[str] = (),
    baseline: Mapping[str, Any] | None = None,
    usual: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare runs.

    Args:
        runs: in any state, in the order in which their rows shall stand.
        by: the axes of the rows; none given: every key that varies, but the seed.
        baseline: the values that make a run the baseline.
        usual: the values of keys that a run's words do not mention.

    Raises:
        UserError: no run has such a key.
    """
    base = {key: canonical(value) for key, value in (baseline or {}).items()}
    usual = usual or {}
    axes = varying([settings(run) for run in runs], usual)
    keys = list(dict.fromkeys([*axes, *base, *by]))
    results = [_result(run, place(run, keys, usual)) for run in runs]
    _check(results, [*by, *base], axes)
    results = _paired(results, _pairing(axes, base), base)
    rows_by = list(by) or [key for key in axes if key != _SEED]
    known = base if any(_is_baseline(result, base) for result in results) else {}
    return Comparison(rows_by, known, _rows(results, rows_by, base), results)


def outcome(run: RunInfo) -> str:
    """How a run ended, as one of ``OUTCOMES``; a loss that is no number counts as diverged."""
    if run.state == "done":
        return "diverged" if _loss(run) is None and "val/loss" in run.metrics else "done"
    return run.state if run.state in OUTCOMES else "unfinished"


def step_seconds(run: RunInfo) -> float | None:
    """The median time of a step, which the slow first ones do not move."""
    seconds = [record.get("perf/step_seconds") for record in read_metrics(run.path)]
    known = [each for each in seconds if each]
    return median(known) if known else None


def _result(run: RunInfo, values: dict[str, str]) -> Result:
    ended = outcome(run)
    if ended != "done":
        return Result(run, values, ended)
    return Result(run, values, ended, _loss(run), step_seconds(run))


def _loss(run: RunInfo) -> float | None:
    loss = run.metrics.get("val/loss")
    return loss if loss is not None and math.isfinite(loss) else None


def _check(results: Sequence[Result], named: Sequence[str], axes: Sequence[str]) -> None:
    for key in named:
        if all(result.values[key] == UNKNOWN for result in results):
            known = f"these vary: {', '.join(axes)}" if axes else "the runs differ in no key"
            raise UserError(f"no run has a value for '{key}'", known)


def _pairing(axes: Sequence[str], base: Mapping[str, str]) -> list[str]:
    """The axes on which a run and its partner agree.

    Those that the baseline fixes are not, nor the fields of an option that it chooses: with
    ``precision=fp32`` in the baseline, ``precision.weight_rounding`` is part of what is compared.
    """
    return [key for key in axes if key not in base and key.partition(".")[0] not in base]


def _paired(
    results: Sequence[Result], keys: Sequence[str], base: Mapping[str, str]
) -> list[Result]:
    partners: dict[tuple[str, ...], Result] = {}
    for result in results:
        if _is_baseline(result, base):
            partners.setdefault(_cell(result.values, keys), result)
    return [_measured(result, partners.get(_cell(result.values, keys))) for result in results]


def _cell(values: Mapping[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(values[key] for key in keys)


def _measured(result: Result, partner: Result | None) -> Result:
    if partner is None:
        return result
    loss = _ratio(result.loss, partner.loss)
    gap = None if loss is None else loss - 1
    return replace(result, gap=gap, step_ratio=_ratio(result.step_seconds, partner.step_seconds))


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def _is_baseline(result: Result, base: Mapping[str, str]) -> bool:
    return bool(base) and all(result.values[key] == base[key] for key in base)


def _rows(results: Sequence[Result], by: Sequence[str], base: Mapping[str, str]) -> list[Row]:
    cells: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        cells.setdefault(_cell(result.values, by), []).append(result)
    return [
        _row(dict(zip(by, cell, strict=True)), members, base) for cell, members in cells.items()
    ]


def _row(values: dict[str, str], members: Sequence[Result], base: Mapping[str, str]) -> Row:
    losses, gaps = _known(m.loss for m in members), _known(m.gap for m in members)
    seconds = _known(m.step_seconds for m in members)
    ratios = _known(m.step_ratio for m in members)
    return Row(
        values=values,
        is_baseline=all(_is_baseline(member, base) for member in members),
        counts={name: sum(m.outcome == name for m in members) for name in OUTCOMES},
        loss=fmean(losses) if losses else None,
        spread=_spread(losses),
        gap=fmean(gaps) if gaps else None,
        gap_spread=_spread(gaps),
        pairs=len(gaps),
        step_seconds=median(seconds) if seconds else None,
        step_ratio=math.exp(fmean(map(math.log, ratios))) if ratios else None,
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None
