"""Whole runs through the installed command, each in a process of its own that may be killed."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from scalify_cli.tracking.cancelling import request_cancel

SCALIFY = Path(sys.executable).with_name("scalify")
WANDB = Path(sys.executable).with_name("wandb")
STEPS = 24
WORDS = [
    "precision=fp8",
    "model=gpt_nano",
    "data.tokenizer=bytes",
    f"trainer.steps={STEPS}",
    "trainer.batch_size=4",
    "trainer.sequence_length=64",
    "trainer.validate_every=8",
    "trainer.validation_batches=2",
    "trainer.observe_every=12",
    "trainer.checkpoint_every=5",
    "trainer.log_every=1",
]
SECONDS = 400  # for one process, compilation included


def start(runs_dir: Path, *words: str) -> subprocess.Popen:
    """``scalify run`` in a process; ``--wandb off`` unless the words say otherwise."""
    mode = [] if "--wandb" in words else ["--wandb", "off"]
    command = [SCALIFY, "run", *WORDS, *words, *mode, "--runs-dir", runs_dir]
    pipe, folder = subprocess.PIPE, runs_dir.parent
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def interrupt(process: subprocess.Popen, step: int, number: signal.Signals) -> int:
    """Send the signal once the process has printed ``step``; its exit code."""
    return at_step(process, step, lambda: process.send_signal(number))


def at_step(process: subprocess.Popen, step: int, action: Callable[[], object]) -> int:
    """Do something to the process once it has printed ``step``; its exit code."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step={step} "):
            action()
            break
    code, _, err = finish(process)
    assert "Traceback" not in err
    return code


def run_directory(runs_dir: Path) -> Path:
    [path] = [entry for entry in runs_dir.iterdir() if (entry / "state.json").is_file()]
    return path


def status(path: Path) -> dict:
    return json.loads((path / "state.json").read_text())


def records(path: Path) -> list[dict]:
    """What ``metrics.jsonl`` says, but for how fast it went."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def histograms(path: Path) -> dict[str, list]:
    files = sorted((path / "histograms").iterdir())
    return {file.name: np.load(file)["counts"].tolist() for file in files}


@pytest.fixture(scope="session")
def whole(shared_folder) -> Path:
    """The directory of a run that nobody interrupted; made once for all workers."""
    runs_dir = shared_folder / "whole" / "runs"
    with FileLock(shared_folder / "whole.lock"):
        if not runs_dir.exists():
            runs_dir.parent.mkdir()
            code, out, err = finish(start(runs_dir, "--wandb", "offline"))
            assert code == 0, f"{out}\n{err}"
    return run_directory(runs_dir)


def test_the_run_directory_is_complete(whole):
    names = {entry.name for entry in whole.iterdir()}
    files = {"config.yaml", "overrides.txt", "state.json", "metrics.jsonl", "env.json", "log.txt"}
    assert files | {"git.patch", "histograms", "checkpoints", "wandb"} <= names
    state = status(whole)
    assert (state["state"], state["step"], state["steps"]) == ("done", STEPS, STEPS)
    assert (whole / "overrides.txt").read_text().split() == WORDS
    assert sorted(entry.name for entry in (whole / "checkpoints").iterdir()) == [
        "00000020",
        "00000024",
    ]
    assert list(histograms(whole)) == ["00000000.npz", "00000012.npz", "00000024.npz"]


def test_the_loss_of_every_update_is_written_and_falls(whole):
    lines = records(whole)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    losses = [line["train/loss"] for line in lines[1:]]
    assert abs(losses[0] - np.log(384)) < 0.3  # 257 bytes and a pad, padded to 384
    assert losses[-1] < losses[0] - 0.5
    assert [line["step"] for line in lines if "val/loss" in line] == [0, 8, 16, 24]
    assert lines[-1]["val/loss"] < lines[0]["val/loss"] - 0.5


def test_tensors_are_named_after_what_they_are(whole):
    last = records(whole)[-1]
    for quantity in ("scale", "rms", "amax", "underflow", "overflow", "snr_db"):
        assert f"{quantity}/block/mlp/up.activation" in last
        assert f"{quantity}/block/attention/qkv.cotangent" in last


def test_the_same_point_again_is_already_done(whole):
    before = (whole / "metrics.jsonl").stat()
    code, out, err = finish(start(whole.parent, "tags=[again]"))
    assert code == 0, err
    assert out.startswith(f"already done {whole.name}")
    assert "validation loss" in out
    assert (whole / "metrics.jsonl").stat() == before


def test_wandb_reads_the_offline_run(whole):
    [file] = (whole / "wandb").glob("offline-run-*/*.wandb")
    command = [WANDB, "leet", "inspect", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert "train/loss" in done.stdout
    assert "histogram/block/mlp/up.activation" in done.stdout
    assert "scale_histogram/block/mlp/up.activation" in done.stdout


def test_a_run_killed_at_any_step_gives_the_same_losses(whole, tmp_path):
    runs_dir = tmp_path / "runs"
    generator = random.Random(os.getpid())
    kills = sorted(generator.sample(range(1, STEPS), 5))
    for step in kills:
        assert interrupt(start(runs_dir), step, signal.SIGKILL) == -signal.SIGKILL
    code, _, err = finish(start(runs_dir))
    path = run_directory(runs_dir)
    assert (code, status(path)["state"]) == (0, "done"), err
    assert status(path)["attempt"] == len(kills) + 1
    assert records(path) == records(whole), f"killed at {kills}"
    assert histograms(path) == histograms(whole), f"killed at {kills}"


def test_a_run_asked_to_stop_saves_and_goes_on(whole, tmp_path):
    runs_dir = tmp_path / "runs"
    assert interrupt(start(runs_dir), 3, signal.SIGTERM) == 75
    path = run_directory(runs_dir)
    stopped = status(path)
    assert stopped["state"] == "preempted"
    assert [int(entry.name) for entry in (path / "checkpoints").iterdir()] == [stopped["step"]]
    assert interrupt(start(runs_dir), 13, signal.SIGINT) == 130
    assert status(path)["state"] == "preempted"
    process = start(runs_dir)
    ask = [lambda: request_cancel(path), process.terminate]  # as `scalify cancel` does
    assert at_step(process, 18, lambda: [step() for step in ask]) == 75
    assert status(path)["state"] == "cancelled"
    code, out, err = finish(start(runs_dir))
    assert code == 0, err
    assert "resumed at step" in out
    assert records(path) == records(whole)


def test_divergence_names_the_step_and_the_tensor(tmp_path):
    runs_dir = tmp_path / "runs"
    words = ["scaling=none", "optimizer.learning_rate=1e4", "optimizer.clip=0"]
    code, out, err = finish(start(runs_dir, *words))
    path = run_directory(runs_dir)
    state = status(path)
    assert (code, state["state"]) == (0, "diverged"), err
    assert state["error"] == f"{state['tensor']} is not finite at step {state['step']}"
    assert state["error"] in out
    assert records(path)[-1]["step"] == state["step"]
    code, out, _ = finish(start(runs_dir, *words, "--fail-on-diverge"))
    assert code == 1
    assert out.startswith("already diverged")
