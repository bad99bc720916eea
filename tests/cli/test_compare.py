"""``compare`` as a table, as CSV and as JSON."""

import csv
import json


def test_a_row_for_every_cell(scalify, grid):
    result = scalify("compare", "grid")
    head, *rows = result.out.splitlines()
    assert head.split()[:6] == ["PRECISION", "RUNS", "DONE", "DIVERGED", "FAILED", "UNFINISHED"]
    assert rows[0].split() == (
        ["fp32", "2", "2", "0", "0", "0", "4.5000", "0.7071", "baseline", "-", "2", "-", "-"]
    )
    assert rows[1].split()[:9] == ["fp8", "2", "1", "1", "0", "0", "4.4000", "-", "+10.00"]
    assert rows[2].split()[:7] == ["bf16", "2", "0", "0", "0", "2", "-"]
    assert rows[-1] == "gaps and ratios are to precision=fp32, seed by seed"
    assert (result.code, result.err) == (0, "")


def test_csv(scalify, grid):
    rows = list(csv.DictReader(scalify("compare", "grid", "-o", "csv").out.splitlines()))
    assert [row["precision"] for row in rows] == ["fp32", "fp8", "bf16"]
    assert [row["val_loss"] for row in rows] == ["4.5", "4.4", ""]
    assert (rows[1]["diverged"], rows[1]["pairs"], round(float(rows[1]["gap"]), 6)) == (
        "1",
        "1",
        0.1,
    )


def test_json_has_every_run(scalify, grid):
    found = json.loads(scalify("compare", "grid", "--json").out)
    assert found == json.loads(scalify("compare", "grid", "-o", "json").out)
    assert (found["axes"], found["baseline"]) == (["precision"], {"precision": "fp32"})
    assert [run["outcome"] for run in found["runs"]] == (
        ["done", "done", "done", "diverged", "unfinished", "unfinished"]
    )


def test_rows_by_another_key(scalify, grid):
    rows = json.loads(scalify("compare", "grid", "--by", "seed", "--json").out)["rows"]
    assert [(row["seed"], row["runs"], row["pairs"]) for row in rows] == [("0", 3, 2), ("1", 3, 1)]


def test_another_baseline(scalify, grid):
    result = scalify("compare", "grid", "--baseline", "precision=fp8", "--json")
    rows = json.loads(result.out)["rows"]
    assert round(rows[0]["gap"], 6) == round(4 / 4.4 - 1, 6) and rows[0]["pairs"] == 1


def test_runs_alone_have_no_baseline(scalify, grid):
    result = scalify("compare", "c0000001", "c0000003")
    assert "+" not in result.out
    assert result.err == "note: gaps need a baseline, as --baseline precision=fp32\n"


def test_a_baseline_that_is_not_there(scalify, grid):
    result = scalify("compare", "grid", "--baseline", "precision=fp16")
    assert result.code == 2
    assert result.err.startswith("error: none of these runs is the baseline precision=fp16\n")
    (grid / "sweeps" / "grid" / "sweep.yaml").write_text("baseline: {precision: fp16}\n")
    result = scalify("compare", "grid")
    assert result.code == 0
    assert result.err.startswith("note: no run is the baseline precision=fp16")


def test_a_baseline_needs_a_value(scalify, grid):
    result = scalify("compare", "grid", "--baseline", "precision")
    assert result.code == 2
    assert result.err.splitlines()[1] == "hint: write --baseline precision=fp32"
