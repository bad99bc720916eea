"""A sweep that outlives its terminal says so truly, and starts only where there is work for it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scalify_cli.cli import background
from scalify_cli.tracking.sweep_directory import SweepDirectory

GRID = ("precision=fp16,fp8", "seed=0,1", "model=gpt_nano")


@pytest.fixture
def apart(monkeypatch):
    """The command lines that would go on as process 123."""
    commands: list[list[str]] = []

    class Process:
        pid = 123

        def __init__(self, command, **_):
            commands.append(command[3:])

    monkeypatch.setattr(background, "subprocess", SimpleNamespace(Popen=Process, DEVNULL=None))
    return commands


def test_a_sweep_goes_on_in_the_background(scalify, apart):
    result = scalify("sweep", *GRID, "--name", "mine", "-d", "--only", "seed=0")
    assert (result.code, result.err) == (0, "2 points: 2 new\n")
    assert result.out.splitlines()[0] == "sweep mine goes on as process 123"
    options = ["--runs-dir", "runs", "--name", "mine", "--only", "seed=0", "--yes"]
    assert apart == [["sweep", *GRID, *options]]
    found = json.loads(scalify("sweep", *GRID, "--name", "mine", "-d", "--json").out)
    assert (found["name"], found["pid"], found["exit_code"]) == ("mine", 123, 0)
    assert [point["state"] for point in found["points"]] == ["pending"] * 4


def test_nothing_goes_on_where_nothing_is_to_start(scalify, apart):
    for point in json.loads(scalify("sweep", *GRID, "-n", "--json").out)["points"]:
        path = Path("runs", point["id"])
        path.mkdir(parents=True)
        (path / "state.json").write_text('{"state": "done"}')
    result = scalify("sweep", *GRID, "-d")
    assert (result.code, result.err) == (0, "4 points: 0 new, 4 done\n")
    assert result.out.splitlines()[0] == "4 runs: 4 done"
    assert apart == []


def test_a_sweep_that_is_being_run_does_not_go_on_twice(scalify, apart):
    with SweepDirectory(Path("runs/sweeps/mine")):
        result = scalify("sweep", *GRID, "--name", "mine", "-d")
    assert result.code == 2
    assert "error: sweep mine is already being run by process" in result.err
    assert apart == []
