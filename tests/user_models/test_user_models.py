"""``scalify run`` trains the models beside this file, and says what is wrong with worse ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCALIFY = Path(sys.executable).with_name("scalify")
FOLDER = Path(__file__).parent
SMALL = [
    *("data=text", "data.tokenizer=bytes", "trainer.steps=12", "optimizer.learning_rate=1e-2"),
    *("trainer.batch_size=4", "trainer.sequence_length=16", "trainer.validation_batches=1"),
    *("trainer.validate_every=0", "trainer.observe_every=0", "trainer.checkpoint_every=0"),
]
MODELS = {
    "flax_gpt.FlaxGPT": ("precision=fp16", "model.layers=1", "model.width=16"),
    "equinox_mlp.mlp": ("precision=fp8", "model.depth=1", "model.width=16"),
}
SECONDS = 600  # for one process, compilation included


@pytest.fixture
def scalify(tmp_path):
    """``scalify("run", …)`` in the folder of this file, on a small text."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    sooner = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

    def run(target: str, *words: str) -> subprocess.CompletedProcess:
        command = [SCALIFY, "run", f"model._target_={target}", *SMALL, f"data.path={text}", *words]
        return subprocess.run(
            [*command, "--runs-dir", tmp_path / "runs", "--wandb", "off"],
            env=os.environ | {"XLA_FLAGS": sooner},
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    return run


@pytest.mark.parametrize("target", MODELS)
def test_a_framework_s_model_trains(scalify, target):
    done = scalify(target, *MODELS[target], "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    lines = (Path(outcome["path"]) / "metrics.jsonl").read_text().splitlines()
    losses = [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]
    assert outcome["state"] == "done" and len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    assert any(name.startswith("snr_db/") for name in outcome["summary"])


@pytest.mark.parametrize(
    ("target", "problem", "hint"),
    [
        ("absent.Model", "cannot be imported: ModuleNotFoundError", "has to work in this folder"),
        ("flax_gpt.FlaxGPTs", "flax_gpt has no 'FlaxGPTs'", "did you mean 'FlaxGPT'?"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint(scalify, target, problem, hint):
    done = scalify(target)
    error, advice = done.stderr.splitlines()[-2:]
    assert (done.returncode, error[:7], advice[:6]) == (2, "error: ", "hint: ")
    assert problem in error and hint in advice
