"""``cancel``, ``retry`` and ``rm``."""

import json
import signal
import subprocess
import sys

import pytest

from scalify_cli.cli import cancel, rm
from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking.cancelling import is_cancelled

CODE = """
import signal, sys, time
from pathlib import Path
from scalify_cli.tracking import RunDirectory

signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(75))
with RunDirectory(Path(sys.argv[1])) as run:
    run.start(config="", overrides=[], steps=9)
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def running(tmp_path):
    """The process of the run ``dddd4444``, which does nothing until it is stopped."""
    path = tmp_path / "runs" / "dddd4444"
    command = [sys.executable, "-c", CODE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        yield process
        process.kill()


def state(path) -> str:
    return json.loads((path / "state.json").read_text())["state"]


def test_a_running_run_is_asked_to_stop(scalify, tmp_path, running):
    result = scalify("cancel", "dddd")
    assert (result.code, result.out, result.err) == (0, "cancelled dddd4444\n", "")
    assert running.wait() == 75
    assert state(tmp_path / "runs" / "dddd4444") == "cancelled"


def test_a_run_that_takes_its_time_is_not_waited_for(scalify, tmp_path, running, monkeypatch):
    monkeypatch.setattr(cancel, "_SECONDS_TO_STOP", 0.0)
    running.send_signal(signal.SIGSTOP)
    result = scalify("cancel", "dddd")
    assert (result.code, result.out) == (0, "cancelling dddd4444\n")
    assert result.err.startswith("note: some have yet to write a checkpoint")
    running.send_signal(signal.SIGCONT)
    assert running.wait() == 75
    assert state(tmp_path / "runs" / "dddd4444") == "cancelled"


def test_a_point_that_has_not_started_never_does(scalify, grid):
    assert scalify("cancel", "c0000006").out == "cancelled c0000006\n"
    assert state(grid / "c0000006") == "cancelled" and is_cancelled(grid / "c0000006")


def test_a_sweep_is_cancelled_as_far_as_it_can_be(scalify, grid, change_state):
    change_state(grid / "c0000005", state="done")
    assert scalify("cancel", "grid").out == "cancelled c0000006\n"
    assert state(grid / "c0000001") == "done" and not is_cancelled(grid / "c0000001")


def test_a_run_elsewhere_is_out_of_reach(scalify, grid):
    result = scalify("cancel", "grid")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: run c0000005 runs on elsewhere\nhint: cancel it there\n"
    assert not is_cancelled(grid / "c0000006")


def test_what_has_ended_is_not_cancelled(scalify, runs_dir):
    result = scalify("cancel", "aaaa1")
    assert (result.code, result.out) == (0, "")
    assert result.err == "nothing to cancel: 1 of 1 have ended\n"


def test_jobs_are_cancelled_in_one_call(scalify, grid, change_state, monkeypatch):
    calls = []
    monkeypatch.setattr("scalify_cli.launch.slurm.cancel", lambda *ids: calls.append(ids))
    monkeypatch.setattr("scalify_cli.cli.states.true_states", list)
    for name in ("c0000004", "c0000005"):
        change_state(grid / name, state="running", slurm_job_id=f"7_{name[-1]}")
    assert scalify("cancel", "c0000004", "c0000005").code == 0
    assert calls == [("7_4", "7_5")]


def test_rm_needs_a_terminal_to_ask_on(scalify, runs_dir, monkeypatch):
    result = scalify("rm", "aaaa1")
    assert result.code == 2 and "1 run (" in result.err
    assert result.err.endswith("hint: --yes removes without asking\n")
    assert (runs_dir / "aaaa1111").is_dir()


@pytest.mark.parametrize(("answer", "code", "left"), [(True, 0, False), (False, 1, True)])
def test_rm_asks(scalify, runs_dir, monkeypatch, answer, code, left):
    monkeypatch.setattr(rm.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(rm.typer, "confirm", lambda question, err: answer)
    assert scalify("rm", "aaaa1").code == code
    assert (runs_dir / "aaaa1111").is_dir() is left


def test_rm_removes(scalify, runs_dir):
    result = scalify("rm", "aaaa1", "aaaa2", "-y")
    assert result.code == 0 and result.out.startswith("removed 2 runs (")
    assert [path.name for path in runs_dir.iterdir()] == ["bbbb3333"]


def test_rm_of_a_sweep_leaves_what_other_sweeps_have(scalify, grid, change_state):
    change_state(grid / "c0000005", state="done")
    other = grid / "sweeps" / "other"
    other.mkdir()
    point = {"id": "c0000001", "words": ["seed=0"], "values": {"seed": 0}}
    (other / "points.jsonl").write_text(json.dumps(point) + "\n")
    result = scalify("rm", "grid", "-y")
    assert result.out.startswith("removed 4 runs (") and result.out.endswith(") and sweep grid\n")
    assert result.err == "note: 1 run of other sweeps too, kept\n"
    assert sorted(path.name for path in grid.iterdir()) == ["c0000001", "sweeps"]
    assert [path.name for path in (grid / "sweeps").iterdir()] == ["other"]


def test_what_runs_is_not_removed(scalify, grid):
    result = scalify("rm", "grid", "-y")
    assert result.code == 2
    assert result.err == ("error: run c0000005 is running\nhint: `scalify cancel c0000005` first\n")
    assert len(list(grid.glob("c*"))) == 5


def test_a_run_that_starts_meanwhile_is_not_removed(scalify, runs_dir):
    with RunDirectory(runs_dir / "aaaa1111"):
        result = scalify("rm", "aaaa1", "-y")
    assert result.err.startswith("error: run aaaa1111 has just started\n")
    assert (runs_dir / "aaaa1111" / "state.json").is_file()
