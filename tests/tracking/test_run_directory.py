"""A run directory is written by one process, and readable whatever happens to it."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from scalify_cli.errors import UserError
from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking import run_directory as module
from scalify_cli.tracking.provenance import PATCH_LIMIT, environment, patch

FILES = {"config.yaml", "overrides.txt", "state.json", "env.json", "git.patch"}
STATE_KEYS = {
    "state",
    "step",
    "steps",
    "host",
    "pid",
    "slurm_job_id",
    "started",
    "updated",
    "error",
}


def start(run, **facts):
    run.start(config="seed: 0\n", overrides=["seed=0"], steps=10, **facts)


def state(path):
    return json.loads((path / "state.json").read_text())


def test_a_started_run_has_its_files_and_every_key_of_its_state(tmp_path):
    with RunDirectory(tmp_path / "runs" / "abcd1234") as run:
        start(run, devices=["cpu:0"], argv=["/usr/bin/scalify", "run", "seed=0"])
        assert {file.name for file in run.path.iterdir()} >= FILES
        assert state(run.path).keys() >= STATE_KEYS
        assert state(run.path)["state"] == "running"
        assert state(run.path)["pid"] == os.getpid()
        assert (run.path / "overrides.txt").read_text() == "seed=0\n"
        facts = json.loads((run.path / "env.json").read_text())
        assert facts["command"] == ["scalify", "run", "seed=0"]
        assert facts["devices"] == ["cpu:0"]
        run.finish("done")
    assert state(tmp_path / "runs" / "abcd1234")["state"] == "done"


def test_environment_values_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "the-secret-value")
    with RunDirectory(tmp_path / "run") as run:
        start(run)
    texts = [file.read_text() for file in (tmp_path / "run").iterdir() if file.is_file()]
    assert texts and not any("the-secret-value" in text for text in texts)


def test_a_second_writer_is_refused(tmp_path):
    with (
        RunDirectory(tmp_path / "abcd1234"),
        pytest.raises(UserError, match="already being written by process") as caught,
        RunDirectory(tmp_path / "abcd1234"),
    ):
        pass
    assert "scalify logs abcd1234 -f" in caught.value.hint


def test_the_lock_dies_with_its_process(tmp_path):
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from scalify_cli.tracking import RunDirectory
        run = RunDirectory(Path(sys.argv[1])).__enter__()
        run.start(config="", overrides=[], steps=10)
        print("started", flush=True)
        time.sleep(60)
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        with pytest.raises(UserError), RunDirectory(tmp_path / "run"):
            pass
        process.send_signal(signal.SIGKILL)
    with RunDirectory(tmp_path / "run") as run:
        assert run.status["state"] == "running"
        assert run.attempt == 1
        start(run)
        assert run.attempt == 2


def test_an_exception_ends_the_run_as_failed(tmp_path):
    with pytest.raises(ValueError), RunDirectory(tmp_path / "run") as run:
        start(run)
        raise ValueError("the shapes differ\nby much")
    assert state(tmp_path / "run")["state"] == "failed"
    assert state(tmp_path / "run")["error"] == "ValueError: the shapes differ"


def test_an_interrupt_ends_the_run_as_preempted(tmp_path):
    with pytest.raises(KeyboardInterrupt), RunDirectory(tmp_path / "run") as run:
        start(run)
        raise KeyboardInterrupt
    assert state(tmp_path / "run")["state"] == "preempted"


def test_the_heartbeat_refreshes_the_state(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    with RunDirectory(tmp_path / "run") as run:
        start(run)
        first, changes = state(run.path)["updated"], []
        while not changes and run._heart.is_alive():
            changes = [now for now in [state(run.path)["updated"]] if now != first]
    assert changes and not run._heart.is_alive()


def test_the_newest_metrics_are_in_the_state(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        start(run)
        run.record({"step": 1, "train/loss": 3.0, "val/loss": 2.5, "rms/x": 1.0})
        run.record({"step": 2, "train/loss": float("nan")})
        run.finish("done", peak_memory=7)
    assert state(tmp_path / "run")["step"] == 2
    assert state(tmp_path / "run")["metrics"] == {"train/loss": None, "val/loss": 2.5}
    assert state(tmp_path / "run")["peak_memory"] == 7


def test_the_pace_is_that_of_this_processs_own_steps(tmp_path, monkeypatch):
    clock, paces = SimpleNamespace(now=100.0), []
    clock.monotonic = lambda: clock.now
    with RunDirectory(tmp_path / "run") as run:
        start(run)
        monkeypatch.setattr("scalify_cli.tracking.run_directory.time", clock)
        run.record({"step": 5})  # where it resumed
        for step, clock.now in ((6, 160.0), (7, 163.0), (9, 169.0)):
            run.record({"step": step, "train/loss": 2.0})
            paces.append(run.status["step_seconds"])
    assert paces == [None, 3.0, 3.0]


def test_clearing_forgets_everything(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        start(run)
        run.log("a line")
        (run.path / "checkpoints" / "00000001").mkdir(parents=True)
        run.clear()
        assert {file.name for file in run.path.iterdir()} == {".lock", "log.txt"}
        assert (run.path / "log.txt").read_text() == ""
        assert run.attempt == 0


def test_an_unknown_state_is_refused(tmp_path):
    with RunDirectory(tmp_path / "run") as run, pytest.raises(ValueError, match="finished"):
        run.finish("finished")


def test_the_log_is_appended_to(tmp_path):
    for line in ("one", "two"):
        with RunDirectory(tmp_path / "run") as run:
            run.log(line)
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["one", "two"]


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("old\n")
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path


def test_the_patch_is_the_difference_to_the_revision(repository):
    assert patch(repository) == b""
    assert environment([], [], repository)["git"]["dirty"] is False
    (repository / "file").write_text("new\n")
    assert b"+new" in patch(repository)
    assert environment([], [], repository)["git"]["dirty"] is True


def test_a_huge_patch_is_left_out(repository):
    (repository / "file").write_text("x" * (PATCH_LIMIT + 1))
    assert patch(repository).startswith(b"# left out")


def test_there_may_be_no_repository(tmp_path):
    assert patch(tmp_path) == b""
    assert environment([], [], tmp_path)["git"] is None
