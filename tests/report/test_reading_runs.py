"""What a run directory says about itself, also when its process can no longer say it."""

import json
import os
import platform
import subprocess
import sys

import pytest

from scalify_cli.errors import UserError
from scalify_cli.report.runs import find_runs, read_metrics, read_run, resolve
from scalify_cli.report.sweeps import read_sweep
from scalify_cli.tracking import RunDirectory
from scalify_cli.tracking.files import take_lock
from scalify_cli.tracking.run_directory import LOCK


def write(path, **state):
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"state": "done", "step": 5, "steps": 5} | state))
    return path


@pytest.fixture
def gone():
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_is_read_as_it_was_written(tmp_path):
    with RunDirectory(tmp_path / "abcd1234") as run:
        run.start(config="seed: 3\nmodel:\n  layers: 4\n", overrides=["seed=3"], steps=9)
        run.record({"step": 4, "train/loss": 2.5, "perf/tokens_per_second": 100.0, "rms/x": 1.0})
        alive = read_run(run.path)
        run.finish("diverged", error="x is not finite")
    found = read_run(tmp_path / "abcd1234")
    assert alive.state == "running" and alive.error is None
    assert (found.id, found.state, found.step, found.steps) == ("abcd1234", "diverged", 4, 9)
    assert found.config == {"seed": 3, "model": {"layers": 4}}
    assert found.overrides == ["seed=3"]
    assert found.metrics == {"train/loss": 2.5, "perf/tokens_per_second": 100.0}
    assert found.error == "x is not finite"
    assert found.started <= found.updated


def test_a_running_run_whose_process_is_gone_has_failed(tmp_path, gone):
    run = read_run(write(tmp_path / "a", state="running", host=platform.node(), pid=gone))
    assert (run.state, run.error) == ("failed", f"process {gone} is gone")
    here = write(tmp_path / "b", state="running", host=platform.node(), pid=os.getpid())
    assert read_run(here).state == "running"


def test_a_process_that_was_given_the_id_of_the_runs_is_not_taken_for_it(tmp_path):
    old = "2020-01-01T00:00:00+00:00"
    facts = {"state": "running", "host": platform.node(), "pid": os.getpid(), "updated": old}
    path = write(tmp_path / "a", **facts)
    found = read_run(path)
    assert (found.state, (found.error or "").split(" for ")[0]) == (
        "failed",
        f"nothing heard from {platform.node()}",
    )
    with take_lock(path / LOCK):  # a process that was paused is still there
        assert read_run(path).state == "running"
    beginning = write(tmp_path / "b", **facts, started=None)  # and has yet to take the lock
    assert read_run(beginning).state == "running"


@pytest.mark.parametrize(
    ("updated", "state"),
    [("2020-01-01T00:00:00+00:00", "failed"), ("2999-01-01T00:00:00+00:00", "running")],
)
def test_a_run_elsewhere_lives_by_its_heartbeat(tmp_path, updated, state):
    facts = {"state": "running", "host": "elsewhere", "pid": 1, "updated": updated}
    assert read_run(write(tmp_path / "a", **facts)).state == state


def test_other_states_need_no_process(tmp_path, gone):
    run = read_run(write(tmp_path / "a", state="preempted", host=platform.node(), pid=gone))
    assert run.state == "preempted"


SPOILT = (
    *("", "{", "[]", "null", '{"updated": 3, "step": null}', '{"state": null, "steps": "y"}'),
    '{"metrics": [1], "error": 5, "pid": "x"}',
)


@pytest.mark.parametrize("text", SPOILT)
def test_a_spoilt_state_is_no_error(tmp_path, text):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "state.json").write_text(text)
    (tmp_path / "a" / "config.yaml").write_text("{")
    [run] = find_runs(tmp_path)
    assert (run.state, run.step, run.updated, run.config) == ("pending", 0, None, {})


def test_only_runs_are_found_the_last_updated_at_the_end(tmp_path):
    write(tmp_path / "aa", updated="2026-01-02T00:00:00+00:00")
    write(tmp_path / "bb", updated="2026-01-01T00:00:00+00:00")
    (tmp_path / "_sweeps").mkdir()
    (tmp_path / "note.txt").write_text("")
    assert [run.id for run in find_runs(tmp_path)] == ["bb", "aa"]
    assert find_runs(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("prefix", "id"),
    [("abc", "abcd"), ("abcd", "abcd"), ("ab00", "ab00"), ("@last", "ffff"), ("-1", "ffff")],
)
def test_a_unique_beginning_is_enough(tmp_path, prefix, id):
    for day, name in enumerate(("ab00", "ab001", "abcd", "ffff"), 1):
        write(tmp_path / name, updated=f"2026-01-0{day}T00:00:00+00:00")
    assert resolve(tmp_path, prefix).id == id


@pytest.mark.parametrize(
    ("prefix", "message", "hint"),
    [
        ("ab", "'ab' is the beginning of 2 runs", "type more of: ab00, abcd"),
        ("zz", "no run in {} begins with 'zz'", "`scalify ls` lists them"),
        ("", "no run in {} begins with ''", "`scalify ls` lists them"),
    ],
)
def test_what_is_not_one_run_is_refused(tmp_path, prefix, message, hint):
    for name in ("ab00", "abcd"):
        write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        resolve(tmp_path, prefix)
    assert (caught.value.message, caught.value.hint) == (message.format(tmp_path), hint)


def test_no_runs_at_all_has_its_own_hint(tmp_path):
    with pytest.raises(UserError, match="there are no runs") as caught:
        resolve(tmp_path, "@last")
    assert "scalify run" in caught.value.hint


def test_metrics_are_read_up_to_the_torn_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2.0}\n{"step": 2')
    assert list(read_metrics(tmp_path)) == [{"step": 1, "a": 2.0}]


def test_a_quantity_that_is_no_number_is_left_out(tmp_path):
    lines = ('{"step": 1, "val/loss": "x", "train/loss": 2}', '{"step": "y"}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert list(read_metrics(tmp_path)) == [{"step": 1, "train/loss": 2}]


def test_a_spoilt_point_of_a_sweep_is_left_out(tmp_path):
    lines = ('{"words": []}', "3", '{"id": "abc", "words": ["seed=1"]}')
    (tmp_path / "points.jsonl").write_text("\n".join(lines))
    assert [point.id for point in read_sweep(tmp_path).points] == ["abc"]


def test_reading_runs_starts_neither_jax_nor_wandb():
    code = "import sys, scalify_cli.report.runs; print({'jax', 'wandb', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
