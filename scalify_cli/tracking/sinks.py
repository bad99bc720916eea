"""Sinks of records: one Protocol, a null object, and the files of the run directory.

A record is a flat ``dict`` with a ``step``. A sink never changes it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scalify_cli.tracking.files import json_line, write_atomically

LOWEST_EXPONENT = -64
BINS = 128
SPECIALS = 3  # zero, inf, nan: the counts before the bins

Statistics = Mapping[str, Mapping[str, Any]]


class Sink(Protocol):
    """Takes records until the run ends."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take one line of metrics; ``record["step"]`` says when."""
        ...

    def histograms(self, step: int, statistics: Statistics) -> None:
        """Take the statistics of every named tensor: ``counts`` int[131], ``scale_exponent``."""
        ...

    def finish(self, state: str) -> None:
        """The run ended in this state; nothing comes after."""
        ...


class Null:
    """Takes everything, keeps nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        pass

    def histograms(self, step: int, statistics: Statistics) -> None:
        pass

    def finish(self, state: str) -> None:
        pass


class Fanout:
    """Hands everything to each of several sinks, in order."""

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = tuple(sinks)

    def record(self, record: Mapping[str, Any]) -> None:
        for sink in self.sinks:
            sink.record(record)

    def histograms(self, step: int, statistics: Statistics) -> None:
        for sink in self.sinks:
            sink.histograms(step, statistics)

    def finish(self, state: str) -> None:
        for sink in self.sinks:
            sink.finish(state)


class Jsonl(Null):
    """``metrics.jsonl``: one object a line, in the kernel's hands before ``record`` returns.

    Numbers that are not finite are written as ``null``: a line is strict JSON.

    Args:
        path: the file.
        resumed_step: records after this step are dropped, as is a torn last line; None drops all.
    """

    def __init__(self, path: Path, resumed_step: int | None = None):
        kept = [] if resumed_step is None else _records_until(path, resumed_step)
        write_atomically(path, "".join(json_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def record(self, record: Mapping[str, Any]) -> None:
        self._file.write(json_line(record))
        self._file.flush()

    def finish(self, state: str) -> None:
        self._file.close()


class Histograms(Null):
    """``histograms/<step>.npz``: one file for each observed step.

    ``tensors`` [T] names; ``counts`` int64 [T, 131]: zeros, infinities, NaNs, then 128 bins of
    log2|value|, one for each binade from -64 to 63; ``scale_counts`` int64 [T, 131]: the same
    layout for the scales. Every file of every run has the same bins.

    Args:
        folder: the ``histograms`` folder.
        resumed_step: files after this step are removed; None removes all.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if _is_stale(file, resumed_step):
                file.unlink()

    def histograms(self, step: int, statistics: Statistics) -> None:
        temporary = self._folder / f".{step:08d}.tmp"
        with temporary.open("wb") as file:
            np.savez_compressed(file, **_columns(statistics))  # pyright: ignore[reportArgumentType]
        os.replace(temporary, self._folder / f"{step:08d}.npz")


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, oldest first; a torn line is passed over."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        record = _parse(line)
        if record is not None:
            yield record


def scale_counts(exponents: Any) -> np.ndarray:
    """Counts int64 [131] of power-of-two scales, given their exponents (any shape)."""
    bins = np.asarray(exponents, np.int64).ravel() - LOWEST_EXPONENT
    return np.bincount(SPECIALS + np.clip(bins, 0, BINS - 1), minlength=SPECIALS + BINS)


def _records_until(path: Path, step: int) -> list[dict[str, Any]]:
    return [record for record in read_records(path) if record["step"] <= step]


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _is_stale(file: Path, resumed_step: int | None) -> bool:
    return resumed_step is None or file.suffix != ".npz" or int(file.stem) > resumed_step


def _columns(statistics: Statistics) -> dict[str, np.ndarray]:
    shape = (len(statistics), SPECIALS + BINS)
    counts = [np.asarray(tensor["counts"]) for tensor in statistics.values()]
    scales = [scale_counts(tensor["scale_exponent"]) for tensor in statistics.values()]
    return {
        "tensors": np.array(list(statistics), dtype=str),
        "counts": np.array(counts, np.int64).reshape(shape),
        "scale_counts": np.array(scales, np.int64).reshape(shape),
    }
