"""The records of a run: complete, in order, and the same however often it was interrupted."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from quadratic import TRAINER, Data, Quadratic, records

from scalify_cli.errors import UserError
from scalify_cli.report.runs import read_run
from scalify_cli.tracking import read_records
from scalify_cli.training.trainer import Trainer

PROGRAM = [sys.executable, str(Path(__file__).with_name("quadratic.py"))]


def metrics(found):
    """The metrics records without the figures that a clock makes."""
    return [
        {key: value for key, value in record.items() if not key.startswith("perf/")}
        for record in found
        if "event" not in record
    ]


def events(found, kind):
    return [record for record in found if record.get("event") == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return list(records(tmp_path_factory.mktemp("whole")))


def test_every_update_has_one_record(whole):
    assert [record["step"] for record in metrics(whole)] == list(range(21))
    assert all("train/loss" in record for record in metrics(whole)[1:])
    assert metrics(whole)[0].keys() >= {"step", "tokens", "val/loss", "rms/weights"}


def test_a_record_has_the_agreed_keys(whole):
    [record] = [record for record in whole if record["step"] == 7]
    assert set(record) == {
        "step",
        "tokens",
        "train/loss",
        "train/grad_norm",
        "optimizer/learning_rate",
        "perf/step_seconds",
        "perf/tokens_per_second",
    }
    assert record["tokens"] == 7 * 4 * 3


def test_the_periods_are_kept(whole):
    def steps(key):
        return [record["step"] for record in metrics(whole) if key in record]

    assert steps("val/loss") == [0, 5, 10, 15, 20]
    assert steps("snr_db/weights") == [0, 10, 20]
    assert [event["step"] for event in events(whole, "histograms")] == [0, 10, 20]
    assert [event["step"] for event in events(whole, "checkpoint")] == [4, 8, 12, 16, 20]
    assert whole[-1]["event"] == "end" and whole[-1]["state"] == "done"


def test_the_end_is_looked_at_whatever_the_periods(tmp_path):
    trainer = Trainer(3, 4, 3, validate_every=0, observe_every=0, checkpoint_every=0)
    found = list(records(tmp_path, trainer))
    assert [record["step"] for record in metrics(found)] == [1, 2, 3]
    assert "val/loss" in metrics(found)[-1] and "rms/weights" in metrics(found)[-1]
    assert [event["step"] for event in events(found, "checkpoint")] == [3]


def test_the_loss_is_that_of_the_batch_and_falls(whole):
    batch = Data().batch(1, 0, 4, 3)
    assert metrics(whole)[1]["train/loss"] == pytest.approx(0.5 * np.mean(np.square(batch)))
    assert metrics(whole)[-1]["val/loss"] < 0.7 * metrics(whole)[0]["val/loss"]


def test_raw_statistics_are_on_the_host(whole):
    [event] = [event for event in events(whole, "histograms") if event["step"] == 10]
    assert list(event["statistics"]) == ["input", "weights"]
    assert isinstance(event["statistics"]["input"]["counts"], np.ndarray)
    assert event["statistics"]["input"]["counts"].sum() == 16


@pytest.mark.parametrize("at", [1, 4, 5, 10, 19])
def test_a_run_stopped_and_resumed_yields_the_same_records(tmp_path, whole, at):
    calls = iter(range(1, 100))
    stopped = list(records(tmp_path, stop=lambda: "SIGTERM" if next(calls) == at else None))
    assert stopped[-1] == {
        "event": "end",
        "state": "preempted",
        "step": at,
        "message": f"stopped by SIGTERM after step {at}",
    }
    assert stopped[-2]["event"] == "checkpoint"
    resumed = list(records(tmp_path))
    assert metrics(stopped) + metrics(resumed) == metrics(whole)
    assert resumed[-1]["state"] == "done"


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    list(records(tmp_path))
    assert [record["event"] for record in records(tmp_path)] == ["end"]


def test_a_stop_after_the_last_update_is_too_late(tmp_path):
    calls = iter(range(1, 100))
    found = list(records(tmp_path, stop=lambda: "SIGINT" if next(calls) >= 20 else None))
    assert found[-1]["state"] == "done"


class Poisoned(Data):
    """The batch of the eighth update holds what no loss survives."""

    def batch(self, seed, step, batch_size, sequence_length, split="train"):
        batch = super().batch(seed, step, batch_size, sequence_length)
        return np.where(step == 7, np.float32("inf"), batch).astype(np.float32)

    def evaluation_batches(self, split, batch_size, sequence_length, count):
        return Data().evaluation_batches(split, batch_size, sequence_length, count)


def test_divergence_ends_the_run_and_names_the_first_bad_tensor(tmp_path):
    found = list(records(tmp_path, data=Poisoned()))
    assert found[-1] == {
        "event": "end",
        "state": "diverged",
        "step": 8,
        "message": "input is not finite at step 8",
        "tensor": "input",
    }
    assert metrics(found)[-1]["step"] == 8
    assert metrics(found)[-1]["train/loss"] == np.inf


def test_the_state_looked_at_is_the_one_before_the_divergence(tmp_path):
    seen = []

    class Watched(Quadratic):
        def observe(self, state, batch):
            seen.append((int(state["step"]), np.isfinite(batch).all()))
            return super().observe(state, batch)

    list(records(tmp_path, step=Watched(), data=Poisoned()))
    assert seen == [(0, True), (7, False)]


def test_divergence_that_no_tensor_shows_is_named_after_its_metric(tmp_path):
    class Blind(Quadratic):
        def observe(self, state, batch):
            return {}

    found = list(records(tmp_path, step=Blind(), data=Poisoned()))
    assert found[-1]["tensor"] == "train/loss"


def test_validation_averages_in_double_precision(tmp_path):
    class Constant(Quadratic):
        values = (jnp.float32(1.0), jnp.float32(2.0**-24))

        def evaluate(self, state, batch):
            return self.values[int(batch[0, 0] != Data().batch(10**6, 0, 4, 3)[0, 0])]

    batches = list(Data().evaluation_batches("validation", 4, 3, 2))
    assert batches[0][0, 0] != batches[1][0, 0]
    first = next(records(tmp_path, step=Constant()))
    assert first["val/loss"] == (1.0 + 2.0**-24) / 2


def test_other_data_is_refused(tmp_path):
    list(records(tmp_path))
    other = Data()
    other.fingerprint = "something else"
    with pytest.raises(UserError, match="data has changed") as caught:
        list(records(tmp_path, data=other))
    assert "--force" in caught.value.hint


def test_a_run_whose_checkpoints_are_all_damaged_starts_afresh(tmp_path, whole):
    list(records(tmp_path))
    for folder in tmp_path.iterdir():
        (folder / "meta.json").write_text("{")
    assert metrics(records(tmp_path)) == metrics(whole)


def test_a_killed_run_resumes_to_the_same_file(tmp_path, whole):
    """Killed three times at random steps, then left alone."""
    draw = random.Random(0)
    for kill in sorted(draw.sample(range(1, 20), 3)):
        with subprocess.Popen([*PROGRAM, str(tmp_path)], stdout=subprocess.PIPE) as process:
            for line in process.stdout:
                if int(line) >= kill:
                    process.send_signal(signal.SIGKILL)
        assert read_run(tmp_path).state == "failed"
    subprocess.run([*PROGRAM, str(tmp_path)], check=True, capture_output=True)
    written = metrics(read_records(tmp_path / "metrics.jsonl"))
    assert written == json.loads(json.dumps(metrics(whole)))
    assert read_run(tmp_path).state == "done"
    assert [file.stem for file in sorted((tmp_path / "histograms").iterdir())] == [
        f"{step:08d}" for step in (0, 10, 20)
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"validate_every": -1},
        {"accumulate": 3},
        {"keep_checkpoints": 0},
    ],
)
def test_counts_are_checked(wrong):
    given = {"steps": 1, "batch_size": 4, "sequence_length": 3} | wrong
    with pytest.raises(UserError, match=f"trainer.{next(iter(wrong))}"):
        Trainer(**given)


def test_tokens_of_a_step():
    assert TRAINER.tokens_per_step == 12
