"""Word that a run is to end: what it changes for whoever stops it and whoever starts it."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking.cancelling import forget_cancel, is_cancelled, request_cancel
from scalify_cli.tracking.run_directory import holder, mark, read_status, remove

START = {"config": "", "overrides": [], "steps": 3}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "abcd1234"


def test_a_run_that_is_stopped_after_the_word_is_cancelled(path):
    with pytest.raises(KeyboardInterrupt), RunDirectory(path) as run:
        run.start(**START)
        request_cancel(path)
        raise KeyboardInterrupt
    assert read_status(path)["state"] == "cancelled"


@pytest.mark.parametrize("state", ["done", "diverged", "failed"])
def test_a_run_that_ends_by_itself_is_not(path, state):
    with RunDirectory(path) as run:
        run.start(**START)
        request_cancel(path)
        run.finish(state)
    assert read_status(path)["state"] == state


def test_starting_takes_the_word_back(path):
    request_cancel(path)
    with pytest.raises(KeyboardInterrupt), RunDirectory(path) as run:
        run.start(**START)
        raise KeyboardInterrupt
    assert read_status(path)["state"] == "preempted"


def test_the_word_has_a_time(path):
    assert not is_cancelled(path)
    request_cancel(path)
    written = (path / "cancel").stat().st_mtime
    assert is_cancelled(path, since=written) and not is_cancelled(path, since=written + 1)
    forget_cancel(path)
    forget_cancel(path)
    assert not is_cancelled(path)


def test_what_a_process_holds_is_neither_marked_nor_removed(path, process_of_another):
    with process_of_another(path) as pid:
        assert holder(path) == pid
        assert not mark(path, "cancelled") and not remove(path)
    assert holder(path) is None
    assert mark(path, "cancelled") and read_status(path)["state"] == "cancelled"
    assert remove(path) and not path.exists()


@pytest.fixture
def process_of_another():
    """``with process_of_another(path) as pid``: a process that holds the run."""
    code = (
        "import sys; from pathlib import Path; from scalify_cli.tracking import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )

    @contextmanager
    def hold(path):
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
            process.stdout.readline()
            yield process.pid
            process.stdin.close()

    return hold
