"""The code that runs is compared with the code that was submitted; a job waits for its run."""

import subprocess
import threading

import pytest

from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking.run_directory import mark
from scalify_cli.tracking.submission import code_change, record_code


def git(folder, *words):
    subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)


def commit(folder):
    git(folder, "add", "-A")
    name = ["-c", "user.name=n", "-c", "user.email=e"]
    git(folder, *name, "commit", "-m", "x")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    git(folder, "init")
    (folder / "model.py").write_text("width = 1\n")
    commit(folder)
    (folder / "model.py").write_text("width = 2\n")
    return folder


@pytest.fixture
def job(source, tmp_path, monkeypatch):
    """A job submitted with a changed file, in which this process is a task."""
    place = tmp_path / "slurm-1"
    place.mkdir()
    record_code(place, source)
    monkeypatch.setenv("SCALIFY_SUBMISSION", str(place))
    return place


def test_the_same_code_is_no_change(job, source):
    assert code_change(source) == ""
    assert "+width = 2" in (job / "git.patch").read_text()
    assert len((job / "git.sha").read_text().strip()) == 40


def test_another_edit_is_told(job, source):
    (source / "model.py").write_text("width = 3\n")
    assert code_change(source).startswith("the code has changed since it was submitted")


def test_another_commit_is_told(job, source):
    commit(source)
    before = (job / "git.sha").read_text()[:10]
    assert code_change(source).endswith(f"; submitted was {before}")


def test_outside_a_job_nothing_is_compared(job, source, monkeypatch):
    commit(source)
    monkeypatch.delenv("SCALIFY_SUBMISSION")
    assert code_change(source) == ""


def test_code_outside_a_repository_is_not_compared(tmp_path, monkeypatch):
    record_code(tmp_path, tmp_path)
    monkeypatch.setenv("SCALIFY_SUBMISSION", str(tmp_path))
    assert code_change(tmp_path) == ""


def test_a_job_waits_until_the_process_of_its_first_start_has_let_go(job, tmp_path, monkeypatch):
    monkeypatch.setattr("scalify_cli.tracking.run_directory._LOCK_SECONDS", 0.01)
    path, entered = tmp_path / "runs" / "aaaa1111", []

    def enter_second():
        with RunDirectory(path):
            entered.append("second")

    with RunDirectory(path):
        assert not mark(path, "pending")
        second = threading.Thread(target=enter_second)
        second.start()
        second.join(0.2)
        entered.append("first")
    second.join()
    assert entered == ["first", "second"]


def test_an_arrays_task_goes_by_a_name_that_it_keeps(tmp_path, monkeypatch):
    for name, value in {"JOB_ID": "9", "ARRAY_JOB_ID": "7", "ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with RunDirectory(tmp_path / "aaaa1111") as directory:
        directory.start(config="", overrides=[], steps=1)
        assert directory.status["slurm_job_id"] == "7_2"
