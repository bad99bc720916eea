"""``ls``, ``show`` and ``logs`` on run directories written by hand."""

import json

import pytest

from scalify_cli.cli.runs import _follow


def test_ls_is_a_table_without_boxes(scalify, runs_dir):
    lines = scalify("ls").out.splitlines()
    assert lines[0].split() == ["ID", "STATE", "STEP", "LOSS", "VAL", "AGE", "POINT"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["aaaa1111", "done", "3/3"],
        ["aaaa2222", "diverged", "2/3"],
        ["bbbb3333", "failed", "1/3"],
    ]
    assert lines[1].endswith("precision=fp16") and lines[3].endswith("(defaults)")


def test_ls_json_and_state(scalify, runs_dir):
    found = json.loads(scalify("ls", "--json", "--state", "diverged").out)
    assert [run["id"] for run in found] == ["aaaa2222"]
    assert found[0]["metrics"]["val/loss"] == 7.25


def test_ls_of_nothing_is_no_failure(scalify):
    result = scalify("ls", "--runs-dir", "absent")
    assert (result.code, result.out, result.err) == (0, "", "no runs in absent\n")
    assert json.loads(scalify("ls", "--json", "--runs-dir", "absent").out) == []


def test_show_says_what_a_run_is(scalify, runs_dir):
    out = scalify("show", "aaaa1").out
    for text in ("aaaa1111", "precision=fp16", "3 of 3", "7.2500", "12.0 dB in a", "cafe"):
        assert text in out
    assert "metrics.jsonl" in out and "  seed: 0" in out


def test_show_json(scalify, runs_dir):
    found = json.loads(scalify("show", "@last", "--json").out)
    assert (found["id"], found["state"]) == ("bbbb3333", "failed")
    assert found["config"] == {"seed": 0}
    assert found["env"]["git_sha"] == "cafe"
    assert found["results"]["worst_snr"] == [{"tensor": "a", "snr_db": 12.0}]
    assert found["files"]["config.yaml"] == len("seed: 0\n")


def test_logs_prints_the_end(scalify, runs_dir):
    assert scalify("logs", "bbbb", "-n", "2").out == "line 98\nline 99\n"
    assert len(scalify("logs", "bbbb").out.splitlines()) == 50
    assert json.loads(scalify("logs", "bbbb", "-n", "1", "--json").out) == ["line 99"]


def test_logs_of_a_finished_run_do_not_wait(scalify, runs_dir):
    assert scalify("logs", "aaaa1", "-f", "-n", "1").out == "line 99\n"


def test_following_prints_what_comes_until_the_run_ends(capsys, monkeypatch):
    monkeypatch.setattr("scalify_cli.cli.runs._SECONDS_BETWEEN_LOOKS", 0.0)
    states, pieces = iter([True, True, False]), iter(["a\n", "", "b\n"])
    _follow(lambda: next(pieces), lambda: next(states))
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize("command", ["show", "logs"])
@pytest.mark.parametrize("run_id", ["aaaa", "cccc"])
def test_an_id_that_is_not_one_run(scalify, runs_dir, command, run_id):
    result = scalify(command, run_id)
    assert result.code == 2
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]


def test_a_run_without_a_log(scalify, runs_dir):
    (runs_dir / "aaaa1111" / "log.txt").unlink()
    result = scalify("logs", "aaaa1")
    assert result.code == 2
    assert result.err.startswith("error: run aaaa1111 has no log yet\n")
