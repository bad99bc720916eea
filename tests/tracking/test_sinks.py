"""The files of a run: whole lines, the same bins everywhere, nothing beyond the resumed step."""

import json

import numpy as np

from scalify_cli.tracking import Fanout, Histograms, Jsonl, Null, read_records
from scalify_cli.tracking.sinks import BINS, SPECIALS, scale_counts


def statistics(exponent=0):
    counts = np.zeros(SPECIALS + BINS, np.int32)
    counts[SPECIALS + 64] = 5
    return {"block/qkv": {"counts": counts, "scale_exponent": np.int32(exponent)}}


def test_a_record_is_in_the_file_before_the_call_returns(tmp_path):
    sink = Jsonl(tmp_path / "metrics.jsonl")
    sink.record({"step": 1, "train/loss": 0.1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.1}\n'


def test_lines_are_strict_json(tmp_path):
    sink = Jsonl(tmp_path / "metrics.jsonl")
    sink.record({"step": 1, "a": float("nan"), "b": float("-inf"), "c": 1.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: 1 / 0) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 1.5,
    }


def test_every_float_comes_back_as_it_was(tmp_path):
    losses = np.random.default_rng(0).normal(size=100).astype(np.float32).tolist()
    sink = Jsonl(tmp_path / "metrics.jsonl")
    for step, loss in enumerate(losses):
        sink.record({"step": step, "train/loss": loss})
    assert [record["train/loss"] for record in read_records(tmp_path / "metrics.jsonl")] == losses


def test_resuming_drops_later_records_and_the_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step"')
    sink = Jsonl(path, resumed_step=2)
    sink.record({"step": 3, "again": True})
    assert list(read_records(path)) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_starting_afresh_drops_everything(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    Jsonl(path).finish("done")
    assert path.read_text() == ""


def test_reading_passes_over_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\n[1]\n{"step": 2}\n{"step": 3}')
    assert [record["step"] for record in read_records(path)] == [1, 2]
    assert list(read_records(tmp_path / "missing")) == []


def test_a_histogram_file_holds_every_tensor(tmp_path):
    Histograms(tmp_path / "h").histograms(100, statistics(-3) | {"b": statistics()["block/qkv"]})
    with np.load(tmp_path / "h" / "00000100.npz") as file:
        assert file["tensors"].tolist() == ["block/qkv", "b"]
        assert file["counts"].shape == (2, SPECIALS + BINS)
        assert file["counts"][0, SPECIALS + 64] == 5
        assert file["scale_counts"].argmax(axis=1).tolist() == [SPECIALS + 61, SPECIALS + 64]


def test_a_histogram_file_may_hold_no_tensor(tmp_path):
    Histograms(tmp_path / "h").histograms(0, {})
    with np.load(tmp_path / "h" / "00000000.npz") as file:
        assert file["counts"].shape == (0, SPECIALS + BINS)


def test_resuming_drops_later_histograms(tmp_path):
    sink = Histograms(tmp_path / "h")
    for step in (0, 10, 20):
        sink.histograms(step, statistics())
    (tmp_path / "h" / ".00000030.tmp").write_bytes(b"torn")
    Histograms(tmp_path / "h", resumed_step=10)
    assert sorted(file.name for file in (tmp_path / "h").iterdir()) == [
        "00000000.npz",
        "00000010.npz",
    ]


def test_scales_beyond_the_bins_are_in_the_outermost(tmp_path):
    counts = scale_counts(np.array([[-126, -64], [63, 127]]))
    assert counts[SPECIALS] == 2 and counts[-1] == 2 and counts.sum() == 4


def test_fanout_hands_everything_to_everyone(tmp_path):
    first, second = (Jsonl(tmp_path / name) for name in ("a", "b"))
    fanout = Fanout([first, Null(), second])
    fanout.record({"step": 1})
    fanout.histograms(1, statistics())
    fanout.finish("done")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == '{"step": 1}\n'
    assert first._file.closed and second._file.closed
