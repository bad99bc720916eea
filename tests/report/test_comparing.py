"""Means over seeds and gaps paired by seed, computed from directories written by hand."""

import json
from math import sqrt

import pytest

from scalify_cli.errors import UserError
from scalify_cli.report.axes import canonical, settings, varying
from scalify_cli.report.compare import compare, outcome, step_seconds
from scalify_cli.report.runs import read_run

BASE = {"precision": "fp32"}


@pytest.fixture
def run(tmp_path):
    """``run("fp8", 0, loss=2.0)``: a run directory, and what is read from it."""

    def write(precision, seed, *, state="done", loss=2.0, seconds=(0.5,), more=()):
        path = tmp_path / f"{precision}-{seed}-{'-'.join(more)}"
        path.mkdir()
        words = [f"precision={precision}", f"seed={seed}", *more]
        (path / "overrides.txt").write_text("".join(f"{word}\n" for word in words))
        (path / "config.yaml").write_text("trainer:\n  steps: 7\n")
        metrics = {"val/loss": loss, "train/loss": 1.0}
        alive = {"host": "elsewhere", "updated": "2999-01-01T00:00:00+00:00"}
        status = {"state": state, "metrics": metrics, **alive}
        (path / "state.json").write_text(json.dumps(status))
        records = [{"step": n, "perf/step_seconds": each} for n, each in enumerate(seconds)]
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        return read_run(path)

    return write


def test_gaps_are_paired_by_seed(run):
    runs = [run("fp32", 0, loss=2.0), run("fp32", 1, loss=4.0)]
    runs += [run("fp8", 0, loss=2.1), run("fp8", 1, loss=4.4)]
    base, row = compare(runs, baseline=BASE).rows
    assert (base.is_baseline, base.gap, base.loss) == (True, 0.0, 3.0)
    assert row.values == {"precision": "fp8"}
    assert (row.loss, row.spread) == pytest.approx((3.25, sqrt(2 * 1.15**2)))
    assert (row.gap, row.gap_spread) == pytest.approx((0.075, sqrt(2 * 0.025**2)))
    assert row.pairs == 2


def test_what_has_no_loss_is_counted(run):
    states = ["done", "diverged", "failed", "running", "pending", "preempted", "cancelled"]
    runs = [run("fp32", 0)] + [run("fp8", seed, state=s) for seed, s in enumerate(states)]
    row = compare(runs, baseline=BASE).rows[1]
    assert row.counts == {"done": 1, "diverged": 1, "failed": 1, "unfinished": 4}
    assert (row.pairs, row.spread) == (1, None)


def test_a_row_without_any_loss_stays(run):
    rows = compare([run("fp32", 0), run("fp8", 0, state="diverged")], baseline=BASE).rows
    assert [row.loss for row in rows] == [2.0, None]
    assert (rows[1].gap, rows[1].pairs, rows[1].step_ratio) == (None, 0, None)


def test_a_baseline_that_diverged_leaves_its_seed_unpaired(run):
    runs = [run("fp32", 0), run("fp32", 1, state="diverged"), run("fp8", 0), run("fp8", 1)]
    row = compare(runs, baseline=BASE).rows[1]
    assert (row.counts["done"], row.pairs) == (2, 1)


def test_a_loss_that_is_no_number_has_diverged(run):
    assert outcome(run("fp8", 0, loss=None)) == "diverged"


def test_step_times_are_medians_and_their_ratio_geometric(run):
    runs = [run("fp32", seed, seconds=(9.0, 0.5, 0.5)) for seed in (0, 1)]
    runs += [run("fp8", 0, seconds=(9.0, 1.0, 1.0)), run("fp8", 1, seconds=(9.0, 4.0, 4.0))]
    row = compare(runs, baseline=BASE).rows[1]
    assert row.step_seconds == 2.5
    assert row.step_ratio == pytest.approx(4.0)
    assert step_seconds(runs[0]) == 0.5


def test_rows_by_one_axis_keep_pairs_of_the_others(run):
    wide = ("model.width=8",)
    runs = [run("fp32", 0, loss=1.0), run("fp32", 0, loss=2.0, more=wide)]
    runs += [run("fp8", 0, loss=1.1), run("fp8", 0, loss=2.2, more=wide)]
    rows = compare(runs, by=["precision"], baseline=BASE).rows
    assert [row.values["precision"] for row in rows] == ["fp32", "fp8"]
    assert (rows[1].gap, rows[1].pairs) == (pytest.approx(0.1), 2)


def test_fields_of_an_option_are_compared_with_the_baselines_option(run):
    nearest, stochastic = (f"precision.rounding={name}" for name in ("nearest", "stochastic"))
    runs = [run("fp32", 0, loss=1.0)]
    runs += [run("fp8", 0, loss=1.2, more=(nearest,)), run("fp8", 0, loss=1.1, more=(stochastic,))]
    gaps = [row.gap for row in compare(runs, baseline=BASE).rows]
    assert gaps == pytest.approx([0.0, 0.2, 0.1])


def test_rows_may_be_by_what_only_the_configuration_says(run):
    [row] = compare([run("fp8", 0), run("fp8", 1)], by=["trainer.steps"]).rows
    assert row.values == {"trainer.steps": "7"}


def test_a_baseline_that_no_run_is_leaves_gaps_out(run):
    found = compare([run("bf16", 0), run("fp8", 0)], baseline=BASE)
    assert found.baseline == {}
    assert [(row.gap, row.is_baseline) for row in found.rows] == [(None, False)] * 2


def test_a_key_that_no_run_has_is_refused(run):
    with pytest.raises(UserError, match="no run has a value for 'widht'") as caught:
        compare([run("fp8", 0), run("fp16", 0)], by=["widht"])
    assert caught.value.hint == "these vary: precision"


def test_what_is_not_mentioned_has_its_usual_value(run):
    runs = [run("fp8", 0), run("fp8", 1, more=("scaling=none",))]
    rows = compare(runs, usual={"scaling": "scalify"}).rows
    assert [row.values["scaling"] for row in rows] == ["scalify", "none"]


def test_only_what_differs_is_an_axis(run):
    runs = [run("fp8", 0, more=("name=a", "data=sotu")), run("fp8", 1, more=("name=b",))]
    assert varying([settings(run) for run in runs], {"data": "sotu"}) == ["seed"]


@pytest.mark.parametrize(
    ("written", "text"),
    [("1e-3", "0.001"), ("3.0", "3"), (3, "3"), (True, "true"), ("nan", "nan"), ("fp8", "fp8")],
)
def test_one_text_for_all_ways_to_write_a_value(written, text):
    assert canonical(written) == text
