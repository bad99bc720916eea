"""``logs`` of one run and of several, and what is added while one looks."""

import json

import pytest

from scalify_cli.cli import logs


def test_logs_prints_the_end(scalify, runs_dir):
    assert scalify("logs", "bbbb", "-n", "2").out == "line 98\nline 99\n"
    assert len(scalify("logs", "bbbb").out.splitlines()) == 50
    assert json.loads(scalify("logs", "bbbb", "-n", "1", "--json").out) == ["line 99"]
    assert scalify("logs", "bbbb", "-n", "0").out == ""


def test_lines_of_several_runs_begin_with_their_ids(scalify, runs_dir):
    found = scalify("logs", "aaaa1", "bbbb", "-n", "1")
    assert found.out == "aaaa1111  line 99\nbbbb3333  line 99\n"
    found = json.loads(scalify("logs", "aaaa1", "bbbb", "-n", "1", "--json").out)
    assert found == {"aaaa1111": ["line 99"], "bbbb3333": ["line 99"]}


def test_logs_of_a_sweep_leave_out_what_has_not_started(scalify, grid):
    lines = scalify("logs", "grid", "-n", "1").out.splitlines()
    assert lines == [f"c000000{number}  line 99" for number in range(1, 6)]


def test_logs_of_a_finished_run_do_not_wait(scalify, runs_dir):
    assert scalify("logs", "aaaa1", "-f", "-n", "1").out == "line 99\n"


def test_following_prints_what_comes_until_all_have_ended(scalify, grid, change_state, monkeypatch):
    folder, late = grid / "c0000005", grid / "c0000006"
    steps = iter(
        [
            lambda: (folder / "log.txt").open("a").write("more\npart"),
            lambda: (late.mkdir(), (late / "log.txt").write_text("first\n")),
            lambda: (folder / "log.txt").open("a").write("ly"),
            lambda: change_state(folder, state="done"),
        ]
    )
    monkeypatch.setattr(logs.time, "sleep", lambda seconds: next(steps, int)())
    out = scalify("logs", "c0000005", "c0000006", "-f", "-n", "0").out
    assert out.splitlines() == ["c0000005  more", "c0000006  first", "c0000005  partly"]


def test_following_a_run_that_never_begins_prints_what_its_job_did(
    scalify, runs_dir, slurm, change_state, monkeypatch
):
    folder, job = runs_dir / "bbbb3333", runs_dir / "0.log"
    change_state(folder, state="pending", slurm_job_id="7_0", slurm_log=str(job))
    (folder / "log.txt").unlink()
    slurm.answers("squeue", *["7_0|RUNNING|None|n1\n"] * 2, "7_0|FAILED|NonZeroExitCode|n1\n")
    monkeypatch.setattr(logs.time, "sleep", lambda seconds: job.write_text("no such file\n"))
    assert scalify("logs", "bbbb", "-f").out == "no such file\n"


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("one\ntwo\n")
    tail = logs.Tail("aaaa1111", path, named=False)
    assert tail.last(1, partial=False) == ["two"]
    path.write_text("new\n")
    assert tail.more() == ["new"]


@pytest.mark.parametrize(("names", "message"), [(["aaaa1"], "run aaaa1111 has no log yet")])
def test_a_run_without_a_log(scalify, runs_dir, names, message):
    (runs_dir / "aaaa1111" / "log.txt").unlink()
    result = scalify("logs", *names)
    assert result.code == 2
    assert result.err.startswith(f"error: {message}\n")
