"""``status``: columns for what varies, live or not, and the exit code."""

import json
import re

import pytest

from scalify_cli.cli import status
from scalify_cli.cli.selection import chosen


@pytest.fixture
def no_waiting(monkeypatch):
    """``no_waiting(action)``: instead of sleeping, do that."""

    def instead(action):
        monkeypatch.setattr(status.time, "sleep", lambda seconds: action())

    return instead


def test_only_what_varies_has_a_column(scalify, grid):
    head, *rows = scalify("status", "grid").out.splitlines()
    assert head.split() == (
        ["ID", "PRECISION", "SEED", "STATE", "STEP", "LOSS", "VAL", "ETA", "WHERE", "AGE"]
    )
    assert rows[0].split()[:6] == ["c0000001", "fp32", "0", "done", "3/13", "4.0000"]
    assert re.search(r"bf16 +0 +running +3/13 +5\.0000 +5\.0000 +10 min +elsewhere", rows[4])
    assert rows[5].split() == ["c0000006", "bf16", "1", "pending", *"------"]
    assert rows[-1] == "6 runs: 1 running, 1 diverged, 1 pending, 3 done"


def test_without_names_everything_is_there(scalify, runs_dir, grid):
    assert scalify("status").out.splitlines()[-1].startswith("9 runs: ")
    found = scalify("status", "--state", "pending").out.splitlines()
    assert [line.split()[0] for line in found[1:2]] == ["c0000006"]


def test_what_went_wrong_is_a_last_column(scalify, runs_dir, change_state):
    change_state(runs_dir / "aaaa1111", state="failed", error="ValueError: " + "x" * 80)
    head, row, *_ = scalify("status", "aaaa1").out.splitlines()
    assert head.endswith("NOTE")
    assert row.endswith("  ValueError: " + "x" * 45 + "...")


def test_many_axes_are_written_out(scalify, runs_dir):
    words = "".join(f"trainer.k{number}=1\n" for number in range(7))
    (runs_dir / "aaaa1111" / "overrides.txt").write_text(words)
    head, row, *_ = scalify("status", "aaaa1", "bbbb").out.splitlines()
    assert head.split()[:3] == ["ID", "POINT", "STATE"]
    assert "trainer.k0=1 trainer.k1=1" in row


def test_json(scalify, grid):
    found = {run["id"]: run for run in json.loads(scalify("status", "grid", "--json").out)}
    assert next(iter(found)) == "c0000001" and len(found) == 6
    running = found["c0000005"]
    assert (running["state"], running["eta_seconds"], running["host"]) == (
        ("running", 600.0, "elsewhere")
    )
    assert running["values"] == {"precision": "bf16", "seed": 0}
    assert found["c0000006"]["overrides"] == ["precision=bf16", "model=gpt_nano", "seed=1"]


@pytest.mark.parametrize(
    ("names", "code"),
    [(["c0000001", "c0000004"], 0), (["grid"], 75), (["bbbb", "grid"], 1), (["c0000006"], 75)],
)
def test_the_exit_status_says_how_they_ended(scalify, runs_dir, grid, names, code):
    assert scalify("status", *names, "--exit-status").code == code
    assert scalify("status", *names).code == 0


def test_no_runs_is_no_failure(scalify):
    result = scalify("status")
    assert (result.code, result.out, result.err) == (0, "", "no runs in runs\n")


def test_watching_a_pipe_says_what_changes(scalify, grid, change_state, no_waiting):
    no_waiting(lambda: change_state(grid / "c0000005", state="done"))
    lines = scalify("status", "grid", "-w").out.splitlines()
    assert lines[0].startswith("ID ")
    assert re.fullmatch(r"\d\d:\d\d:\d\d c0000005 running -> done", lines[-2])
    assert lines[-1] == "6 runs: 1 diverged, 1 pending, 4 done"


def test_watching_as_json_waits_for_the_end(scalify, grid, change_state, no_waiting):
    no_waiting(lambda: change_state(grid / "c0000005", state="failed"))
    result = scalify("status", "grid", "-w", "--json", "--exit-status")
    assert json.loads(result.out)[4]["state"] == "failed"
    assert result.code == 1


def test_watching_a_terminal_rewrites_the_table(
    scalify, grid, change_state, no_waiting, monkeypatch
):
    monkeypatch.setattr(status.sys.stdout, "isatty", lambda: True, raising=False)
    no_waiting(lambda: change_state(grid / "c0000005", state="done"))
    out = scalify("status", "grid", "-w").out
    assert "c0000005" in out and "4 done" in out


def test_a_low_terminal_shows_the_most_interesting(scalify, grid):
    lines = status.screen(chosen(grid, ["grid"]), height=7)
    assert [line.split()[0] for line in lines[1:3]] == ["c0000005", "c0000004"]
    assert lines[3] == "... and 4 more"


def test_points_that_nobody_starts_are_not_waited_for(scalify, grid, no_waiting):
    no_waiting(pytest.fail)
    assert scalify("status", "c0000006", "-w").code == 0
