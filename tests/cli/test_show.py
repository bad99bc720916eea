"""``show`` and ``diff`` on run directories written by hand."""

import json

import pytest


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


@pytest.mark.parametrize("command", ["show", "logs", "cancel"])
@pytest.mark.parametrize("run_id", ["aaaa", "cccc"])
def test_an_id_that_is_not_one_run(scalify, runs_dir, command, run_id):
    result = scalify(command, run_id)
    assert result.code == 2
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["error", "hint"]


def test_show_of_a_sweep_says_what_it_is(scalify, grid):
    out = scalify("show", "grid").out
    assert "state      6 runs: 1 running, 1 diverged, 1 pending, 3 done" in out
    assert "precision  fp32 fp8 bf16" in out and "baseline   precision=fp32" in out
    assert "  description: two of each" in out


def test_show_of_several_is_a_list(scalify, grid):
    run, waiting, sweep = json.loads(scalify("show", "c0000001", "c0000006", "grid", "--json").out)
    assert (run["state"], waiting["state"], waiting["files"]) == ("done", "pending", {})
    assert sweep["axes"] == {"precision": ["fp32", "fp8", "bf16"], "seed": [0, 1]}
    assert [point["state"] for point in sweep["points"]][3:] == ["diverged", "running", "pending"]


def test_diff_sets_two_runs_side_by_side(scalify, grid):
    (grid / "c0000001" / "config.yaml").write_text("seed: 0\nmodel: {width: 8}\n")
    (grid / "c0000003" / "config.yaml").write_text("seed: 0\nmodel: {width: 16}\n")
    (grid / "c0000003" / "env.json").write_text('{"git_sha": "babe", "versions": {"jax": "1"}}')
    lines = [line.split() for line in scalify("diff", "c0000001", "c0000003").out.splitlines()]
    assert lines[0] == ["c0000001", "c0000003", "B/A"]
    assert ["model.width", "8", "16"] in lines
    assert ["val", "loss", "4.0000", "4.4000", "+10.00", "%"] in lines
    assert ["git_sha", "cafe", "babe"] in lines
    assert not [line for line in lines if line[:1] in (["seed"], ["versions.jax"])]


def test_diff_json(scalify, grid):
    found = json.loads(scalify("diff", "c0000001", "c0000003", "--json").out)
    assert (found["a"]["id"], found["b"]["id"], found["config"]) == ("c0000001", "c0000003", {})
    assert (found["results"]["a"]["val_loss"], found["results"]["b"]["val_loss"]) == (4.0, 4.4)


def test_diff_of_the_same_configuration_says_so(scalify, grid):
    assert "(the same)" in scalify("diff", "c0000001", "c0000003").out


def test_diff_of_a_run_that_has_not_started_reads_its_words(scalify, grid):
    lines = scalify("diff", "c0000005", "c0000006").out.splitlines()
    assert ["seed", "0", "1"] in [line.split() for line in lines]


def test_diff_takes_two_runs(scalify, grid):
    result = scalify("diff", "grid", "c0000001")
    assert result.code == 2
    assert "'grid' stands for 6 runs" in result.err and "scalify compare grid" in result.err
