"""What a run says when it has ended, as text and as one JSON object."""

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalify_cli.cli.text import columns, number, percent, size, thousands

if TYPE_CHECKING:
    from scalify_cli.report.runs import RunInfo


def results(latest: Mapping[str, Any]) -> dict[str, Any]:
    """Losses, speed, memory, rates and the three worst tensors of the latest values by key.

    Rates are those of the worst tensor; ``snr_db`` that is not finite is left out.
    """
    return {
        "step": latest.get("step"),
        "train_loss": latest.get("train/loss"),
        "val_loss": latest.get("val/loss"),
        "tokens_per_second": latest.get("perf/tokens_per_second"),
        "peak_memory_bytes": latest.get("peak_memory_bytes"),
        "overflow": _worst_rate(latest, "overflow/"),
        "underflow": _worst_rate(latest, "underflow/"),
        "worst_snr": _worst_snr(latest),
    }


def latest(run: "RunInfo") -> dict[str, Any]:
    """The newest value of every key of a run's records, and its state's facts."""
    from scalify_cli.report.runs import read_metrics

    found: dict[str, Any] = {}
    for record in read_metrics(run.path):
        found.update(record)
    return {**found, **run.metrics, **run.status}


def peak_memory() -> int:
    """The most memory this process has had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def result_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The results as rows of a name and a text."""
    worst = [(f"{row['snr_db']:.1f} dB", row["tensor"]) for row in found["worst_snr"]]
    return [
        ("train loss", number(found["train_loss"])),
        ("validation loss", number(found["val_loss"])),
        ("tokens/s", thousands(found["tokens_per_second"])),
        ("peak memory", size(found["peak_memory_bytes"])),
        ("overflow", _rate_text(found["overflow"])),
        ("underflow", _rate_text(found["underflow"])),
        *(("worst SNR", f"{ratio} in {tensor}") for ratio, tensor in worst),
    ]


def closing_lines(head: str, found: Mapping[str, Any], identity: str, path: Path) -> list[str]:
    """The closing table: what came out, where the files are, how to open them."""
    rows = [
        *result_rows(found),
        ("files", str(path)),
        ("details", f"scalify show {identity}"),
    ]
    if (path / "wandb").is_dir():
        rows.append(("charts", f"wandb leet {path / 'wandb'}"))
    return [head, *(f"  {line}" for line in columns(rows))]


def _tensors(latest: Mapping[str, Any], prefix: str) -> dict[str, float]:
    found = {key.removeprefix(prefix): latest[key] for key in latest if key.startswith(prefix)}
    return {name: rate for name, rate in found.items() if rate is not None and math.isfinite(rate)}


def _worst_rate(latest: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    rates = _tensors(latest, prefix)
    if not rates:
        return None
    name = max(rates, key=lambda tensor: rates[tensor])
    return {"rate": rates[name], "tensor": name, "mean": sum(rates.values()) / len(rates)}


def _worst_snr(latest: Mapping[str, Any]) -> list[dict[str, Any]]:
    ratios = sorted(_tensors(latest, "snr_db/").items(), key=lambda item: item[1])
    return [{"tensor": name, "snr_db": ratio} for name, ratio in ratios[:3]]


def _rate_text(worst: Mapping[str, Any] | None) -> str:
    if worst is None:
        return "-"
    if worst["rate"] == 0:
        return "0 %"
    return f"{percent(worst['mean'])} on average, {percent(worst['rate'])} in {worst['tensor']}"
