"""Validation loss of a recipe against fp32, over seeds: ``python -m benchmarks.gap``.

Trains every cell through ``scalify run`` (a run that is done is not run again) and prints the mean
validation loss, and the mean gap to fp32 paired by seed. A run that diverged has no gap, and is
counted.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from scalify_cli.report.compare import compare
from scalify_cli.report.runs import RunInfo, read_run

AXES = ("precision", "scaling", "precision.weight_rounding")
CELLS = {
    "fp32": ["precision=fp32", "scaling=none"],
    "fp8 + scalify, nearest": [
        "precision=fp8",
        "scaling=scalify",
        "precision.weight_rounding=nearest",
    ],
    "fp8 + scalify, stochastic": [
        "precision=fp8",
        "scaling=scalify",
        "precision.weight_rounding=stochastic",
    ],
    "fp8 + none": ["precision=fp8", "scaling=none"],
}


def train(words: list[str], runs: Path) -> RunInfo:
    """One run, from its start or its end."""
    command = [sys.executable, "-m", "scalify_cli", "run", *words]
    command += ["--json", "--runs-dir", str(runs), "--wandb", "off"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return read_run(Path(json.loads(done.stdout)["path"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt_micro")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--cell", choices=CELLS, action="append")
    parser.add_argument("words", nargs="*", help="further overrides, for every cell")
    options = parser.parse_args()
    runs, cells = [], options.cell or list(CELLS)
    for cell in cells:
        common = [*CELLS[cell], f"model={options.model}", *options.words]
        ours = [train([*common, f"seed={s}"], options.runs_dir) for s in range(options.seeds)]
        losses = [(run.metrics.get("val/loss"), f"{run.state} at step {run.step}") for run in ours]
        print(f"{cell:26s} {losses}", flush=True)
        runs += ours
    baseline = dict(word.split("=") for word in CELLS["fp32"])
    rows = compare(runs, by=AXES, baseline=baseline).rows
    for cell, row in zip(cells, rows, strict=True):
        mean = "-" if row.loss is None else f"{row.loss:.4f}"
        gap = "-" if row.gap is None else f"{100 * row.gap:+.2f} %"
        print(f"{cell:26s} mean {mean}  mean gap {gap}  {dict(row.counts)}")


if __name__ == "__main__":
    main()
