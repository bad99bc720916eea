"""A command line called in this process, and an experiment that trains nothing."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import scalify_cli
from scalify_cli.cli.app import execute
from scalify_cli.config import signature


@dataclass
class Result:
    """What a command line did."""

    code: int
    out: str
    err: str


@dataclass
class Outcome:
    """As ``experiment.run`` returns it."""

    id: str
    path: Path
    state: str = "done"
    already_done: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0


RECORDS = [
    {"event": "note", "message": "tokens are cached"},
    {"step": 0, "val/loss": 9.0},
    {"step": 1, "train/loss": 8.5, "perf/tokens_per_second": 1000.0, "perf/step_seconds": 0.1},
    {"step": 2, "train/loss": 8.0, "perf/tokens_per_second": 2000.0, "perf/step_seconds": 0.1},
    {
        "step": 3,
        "train/loss": 7.5,
        "val/loss": 7.25,
        "perf/tokens_per_second": 3000.0,
        "snr_db/a": 30.0,
        "snr_db/b": 10.0,
        "snr_db/c": 20.0,
        "snr_db/d": 40.0,
        "snr_db/e": float("inf"),
        "overflow/a": 0.0,
        "overflow/b": 0.5,
        "underflow/a": 0.0,
    },
]


class Experiment(ModuleType):
    """Stands in for ``scalify_cli.experiment``; ``fail`` and ``changes`` steer it."""

    def __init__(self):
        super().__init__("scalify_cli.experiment")
        self.calls: list[dict[str, Any]] = []
        self.fail: BaseException | None = None
        self.records = RECORDS
        self.changes: dict[str, Any] = {}

    def run(self, config, overrides, runs_dir, **options):
        on_record = options.pop("on_record")
        self.calls.append({"overrides": overrides, "runs_dir": runs_dir, **options})
        for record in self.records:
            on_record(record)
        if self.fail is not None:
            raise self.fail
        identity = signature(config)
        return Outcome(**{"id": identity, "path": runs_dir / identity, **self.changes})


@pytest.fixture
def experiment(monkeypatch):
    fake = Experiment()
    monkeypatch.setitem(sys.modules, "scalify_cli.experiment", fake)
    monkeypatch.setattr(scalify_cli, "experiment", fake, raising=False)
    return fake


@pytest.fixture
def scalify(capsys, monkeypatch, tmp_path):
    """``scalify("run", "seed=1")`` in an empty folder, with no variables of the user's."""
    for name in ("SCALIFY_RUNS", "SCALIFY_CONF", "SCALIFY_DEBUG", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        code = execute(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def runs_dir(tmp_path):
    """Two finished runs and one whose process is gone."""
    folder = tmp_path / "runs"
    _write_run(folder / "aaaa1111", "done", 3, "2024-05-01T10:00:00+00:00", ["precision=fp16"])
    _write_run(folder / "aaaa2222", "diverged", 2, "2024-05-02T10:00:00+00:00", ["seed=1"])
    _write_run(folder / "bbbb3333", "running", 1, "2024-05-03T10:00:00+00:00", [])
    return folder


GRID = [
    ("c0000001", "fp32", 0, {"state": "done", "loss": 4.0}),
    ("c0000002", "fp32", 1, {"state": "done", "loss": 5.0}),
    ("c0000003", "fp8", 0, {"state": "done", "loss": 4.4}),
    ("c0000004", "fp8", 1, {"state": "diverged", "loss": 5.0}),
    ("c0000005", "bf16", 0, {"state": "running", "loss": 5.0}),
    ("c0000006", "bf16", 1, None),
]


@pytest.fixture
def grid(tmp_path):
    """The sweep ``grid`` over precision and seed: one run is under way, one has not started."""
    folder = tmp_path / "runs"
    points = []
    for identity, precision, seed, end in GRID:
        words = [f"precision={precision}", "model=gpt_nano", f"seed={seed}"]
        values = {"precision": precision, "seed": seed}
        points.append({"id": identity, "words": words, "values": values})
        if end:
            _write_run(folder / identity, end["state"], 3, "2999-05-01T10:00:00+00:00", words)
            _change_state(folder / identity, steps=13, loss=end["loss"])
    sweep = folder / "sweeps" / "grid"
    sweep.mkdir(parents=True)
    (sweep / "points.jsonl").write_text("".join(f"{json.dumps(point)}\n" for point in points))
    (sweep / "sweep.yaml").write_text("description: two of each\nbaseline: {precision: fp32}\n")
    return folder


@pytest.fixture
def change_state():
    """``change_state(path, state="done")``: write other facts into a run's ``state.json``."""
    return _change_state


def _change_state(path: Path, *, loss: float | None = None, **facts: Any) -> None:
    status = json.loads((path / "state.json").read_text())
    if loss is not None:
        status["metrics"] |= {"train/loss": loss, "val/loss": loss}
        status["step_seconds"] = 60.0
    (path / "state.json").write_text(json.dumps(status | facts))


def _write_run(path: Path, state: str, step: int, updated: str, overrides: list[str]) -> None:
    path.mkdir(parents=True)
    metrics = {"train/loss": 7.5, "val/loss": 7.25, "perf/tokens_per_second": 3000.0}
    status = {"state": state, "step": step, "steps": 3, "updated": updated, "host": "elsewhere"}
    (path / "state.json").write_text(json.dumps({**status, "pid": 1, "metrics": metrics}))
    (path / "config.yaml").write_text("seed: 0\n")
    (path / "overrides.txt").write_text("".join(f"{word}\n" for word in overrides))
    (path / "env.json").write_text(json.dumps({"git_sha": "cafe", "versions": {"jax": "1"}}))
    (path / "log.txt").write_text("".join(f"line {index}\n" for index in range(100)))
    (path / "metrics.jsonl").write_text(json.dumps({"step": 3, "snr_db/a": 12.0}) + "\n")
