"""Numbers and columns as people read them. No boxes, so that pipes and logs stay clean."""

import time
from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with every column as wide as its widest cell, two spaces apart."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def number(value: float | int | None, digits: int = 4) -> str:
    """A float with the given digits after the point, ``-`` when there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def thousands(value: float | None) -> str:
    """``12,345``."""
    return "-" if value is None else f"{value:,.0f}"


def percent(rate: float | None) -> str:
    """A rate in [0, 1] as ``0.12 %``."""
    return "-" if rate is None else f"{100 * rate:.3g} %"


def size(count: float | None) -> str:
    """Bytes as ``1.2 GiB``."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float | None) -> str:
    """``45 s``, ``3 min``, ``2.5 h``, ``3.1 d``."""
    if seconds is None:
        return "-"
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def age(moment: float | None) -> str:
    """How long ago a moment, in seconds since 1970, was."""
    return duration(max(0.0, time.time() - moment)) if moment else "-"


def signed_percent(rate: float | None) -> str:
    """A change as ``+0.12 %``."""
    return "-" if rate is None else f"{100 * rate:+.2f} %"


def change(new: float | None, old: float | None) -> str:
    """How much more one number is than another, as ``+0.12 %``."""
    return signed_percent(new / old - 1) if new is not None and old else ""
