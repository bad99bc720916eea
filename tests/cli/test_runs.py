"""``ls`` on run directories written by hand."""

import json


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
