"""The README's picture, drawn from run directories: ``make figures``.

Expects the runs of ``python -m benchmarks.gap`` under ``runs/``; draws the first seed of each.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import yaml

STYLES = {
    ("fp32", "NoScaling"): ("fp32", "#444444", "-"),
    ("fp8", "Scalify"): ("fp8, scaling=scalify", "#0b7a75", "-"),
    ("fp8", "NoScaling"): ("fp8, scaling=none", "#c8553d", "-"),
}
OUTPUT = Path(__file__).with_name("loss_curves.svg")


def curves(runs: Path, model: str) -> dict:
    """Steps and losses of the runs of a model with seed 0, by precision and scaling."""
    found = {}
    for config in sorted(runs.glob("*/config.yaml")):
        settings = yaml.safe_load(config.read_text())
        name = (settings["precision"]["name"], settings["scaling"]["_target_"].split(".")[-1])
        rounding = settings["precision"]["weight_rounding"]
        chosen = settings["seed"] == 0 and rounding == "nearest"
        if chosen and settings["model"]["width"] == WIDTHS[model]:
            found[name] = config.with_name("metrics.jsonl")
    return found


WIDTHS = {"gpt_nano": 96, "gpt_micro": 320, "gpt_small": 768}


def points(path: Path, key: str) -> tuple[list[int], list[float]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    finite = [(step, loss) for step, loss in pairs if math.isfinite(loss)]
    return [step for step, _ in finite], [loss for _, loss in finite]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--model", choices=WIDTHS, default="gpt_micro")
    options = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "scalify"
    figure, axes = plt.subplots(figsize=(7, 3.4))
    for name, path in curves(options.runs_dir, options.model).items():
        label, color, line = STYLES[name]
        axes.plot(*points(path, "train/loss"), line, color=color, alpha=0.35, linewidth=0.8)
        axes.plot(*points(path, "val/loss"), "o-", color=color, label=label, markersize=3)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=f"{options.model} on sotu")
    axes.set_ylim(5, 12)
    axes.legend(title="validation (dots), training (thin)", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUTPUT, metadata={"Date": None})
    print(f"wrote {OUTPUT}")


if __name__ == "__main__":
    main()
