"""Validation loss of a recipe against fp32, over seeds: ``python -m benchmarks.gap``.

Trains every cell through ``scalify run`` (a run that is done is not run again) and prints the mean
validation loss, and the mean gap to fp32 paired by seed. A run that diverged has no gap.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

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


def train(words: list[str], runs: Path) -> dict:
    """One run's closing record."""
    command = [sys.executable, "-m", "scalify_cli", "run", *words]
    command += ["--json", "--runs-dir", str(runs), "--wandb", "off"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def validation_loss(run: dict) -> float:
    """The last validation loss; infinite where the run diverged."""
    if run["state"] != "done":
        return float("inf")
    lines = (Path(run["path"]) / "metrics.jsonl").read_text().splitlines()
    losses = [record["val/loss"] for record in map(json.loads, lines) if "val/loss" in record]
    return losses[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt_micro")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--cell", choices=CELLS, action="append")
    parser.add_argument("words", nargs="*", help="further overrides, for every cell")
    options = parser.parse_args()
    losses = {}
    for cell in options.cell or CELLS:
        common = [*CELLS[cell], f"model={options.model}", *options.words]
        runs = [train([*common, f"seed={s}"], options.runs_dir) for s in range(options.seeds)]
        losses[cell] = [validation_loss(run) for run in runs]
        steps = [f"{run['state']} at step {run.get('step', '?')}" for run in runs]
        print(f"{cell:26s} {[round(x, 4) for x in losses[cell]]} {steps}", flush=True)
    base = losses.get("fp32")
    for cell, values in losses.items():
        mean = sum(values) / len(values)
        gaps = [100 * (x / b - 1) for x, b in zip(values, base or values, strict=True)]
        print(f"{cell:26s} mean {mean:.4f}  mean gap {sum(gaps) / len(gaps):+.2f} %")


if __name__ == "__main__":
    main()
