"""``cancel``, ``retry`` and ``rm``."""

import json
import os
import signal
import subprocess
import sys

import pytest

from scalify_cli.cli import cancel, rm, sweeping
from scalify_cli.config import compose, signature
from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking.cancelling import is_cancelled
from scalify_cli.tracking.sweep_directory import SweepDirectory

CODE = """
import signal, sys, time
from pathlib import Path
from scalify_cli.tracking import RunDirectory

signal.signal(signal.SIGTERM, lambda *ignored: sys.exit(75))
with RunDirectory(Path(sys.argv[1])) as run:
    run.start(config="", overrides=[], steps=9)
    print("started", flush=True)
    while True:  # not one long sleep: another thread may be the one that gets the signal
        time.sleep(0.02)
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


def test_a_sweep_is_being_run_while_its_lock_is_held(scalify, grid, change_state):
    change_state(grid / "c0000005", state="done")
    with SweepDirectory(grid / "sweeps" / "grid"):
        result = scalify("rm", "grid", "-y")
        assert result.code == 2 and "error: sweep grid is being run\n" in result.err
    lock = grid / "sweeps" / "grid" / "lock"
    assert lock.read_text().startswith(f"process {os.getpid()} ")  # which lives on
    assert scalify("rm", "grid", "-y").code == 0 and not lock.exists()


def test_a_run_that_starts_meanwhile_is_not_removed(scalify, runs_dir):
    with RunDirectory(runs_dir / "aaaa1111"):
        result = scalify("rm", "aaaa1", "-y")
    assert result.err.startswith("error: run aaaa1111 has just started\n")
    assert (runs_dir / "aaaa1111" / "state.json").is_file()


POINTS = {
    "failed": "seed=1",
    "diverged": "seed=2",
    "cancelled": "seed=3",
    "preempted": "seed=4",
    "done": "seed=5",
}


@pytest.fixture
def ended(tmp_path):
    """A run for every way to end, the first three in the sweep ``night``; their ids by state."""
    folder, ids = tmp_path / "runs", {}
    for end, word in POINTS.items():
        ids[end] = signature(compose(["model=gpt_nano", word]))
        (folder / ids[end]).mkdir(parents=True)
        (folder / ids[end] / "state.json").write_text(json.dumps({"state": end}))
        (folder / ids[end] / "overrides.txt").write_text(f"model=gpt_nano\n{word}\n")
    sweep = folder / "sweeps" / "night"
    sweep.mkdir(parents=True)
    lines = [
        {"id": ids[end], "words": ["model=gpt_nano", POINTS[end]], "values": {}}
        for end in ("failed", "diverged", "cancelled")
    ]
    (sweep / "points.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ids


@pytest.fixture
def launched(monkeypatch):
    """What would be launched: the folder's name and the commands, nothing of which is run."""
    calls = []

    def launch(planned, folder, request):
        calls.append((folder.name, sweeping._tasks(planned, request)))
        return 0

    monkeypatch.setattr(sweeping, "launch", launch)
    return calls


def test_retry_starts_what_ended_badly_where_it_belongs(scalify, ended, launched):
    result = scalify("retry", *ended.values())
    assert [folder for folder, _ in launched] == ["night", ".alone"]
    tasks = [task for _, part in launched for task in part]
    assert [task.id for task in tasks] == [*ended.values()][:4]
    assert tasks[3].command[3:6] == ("run", "model=gpt_nano", "seed=4")
    assert ["--force" in task.command for task in tasks] == [False, True, False, False]
    assert result.err == "again: 1 failed, 1 diverged, 1 cancelled, 1 preempted\n"


def test_retry_of_some_states_only(scalify, ended, launched):
    scalify("retry", *ended.values(), "--failed", "--preempted")
    ids = [task.id for _, part in launched for task in part]
    assert ids == [ended["failed"], ended["preempted"]]


def test_retry_of_a_job_uses_the_launcher_it_was_submitted_with(
    scalify, ended, launched, tmp_path, change_state, monkeypatch
):
    monkeypatch.setattr("scalify_cli.cli.states.true_states", list)
    run = ended["preempted"]
    change_state(tmp_path / "runs" / run, slurm_job_id="12_0")
    job = tmp_path / "runs" / "jobs" / run
    job.mkdir(parents=True)
    (job / "overrides.txt").write_text("model=gpt_nano\nseed=4\nlauncher=slurm\n")
    seen = []
    monkeypatch.setattr(sweeping, "launch", lambda planned, *rest: seen.extend(planned.wanted) or 0)
    scalify("retry", run)
    assert [cell.launcher["_target_"] for cell in seen] == ["scalify_cli.launch.Slurm"]
    assert "SLURM chooses" in scalify("retry", run, "--gpus", "0").err
    assert len(seen) == 1


def test_nothing_to_retry(scalify, ended, launched):
    result = scalify("retry", ended["done"])
    assert (result.code, result.err, launched) == (0, "nothing to retry: 1 run: 1 done\n", [])


def test_words_that_make_another_run_now_are_refused(scalify, ended, tmp_path):
    (tmp_path / "runs" / ended["preempted"] / "overrides.txt").write_text("seed=9\n")
    result = scalify("retry", ended["preempted"])
    assert result.code == 2
    assert result.err.startswith(f"error: the words of run {ended['preempted']} make another run")


def test_what_fails_again_is_told(scalify, tmp_path):
    words = ["model=gpt_nano", "data=text", f"data.path={tmp_path}/absent.txt"]
    path = tmp_path / "runs" / signature(compose(words))
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"state": "failed"}))
    (path / "overrides.txt").write_text("".join(f"{word}\n" for word in words))
    result = scalify("retry", path.name)
    assert (result.code, result.out) == (1, "1 run: 1 failed\n")
    assert "absent.txt" in (path / "log.txt").read_text()
