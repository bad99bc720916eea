"""W&B gets everything, and can do nothing to training."""

import json
import os
import pty
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from scalify_cli.errors import UserError
from scalify_cli.tracking import Tracking
from scalify_cli.tracking import wandb as module
from scalify_cli.tracking.sinks import BINS, SPECIALS
from scalify_cli.tracking.wandb import Wandb, WandbRun, find_credentials, require_credentials

PROGRAM = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from scalify_cli.tracking import Tracking

    counts = np.zeros(131, np.int32)
    counts[3 + 64] = 5
    sink = Tracking(init_timeout=1.0, group="study").open(
        Path(sys.argv[1]),
        run_id="abcd1234",
        resumed_step=1,
        attempt=2,
        config={"model": {"layers": 4}},
        tags=["tag"],
        notify=lambda message: print("notify:", message),
    )
    for step in range(2, 5):
        sink.record({"step": step, "tokens": 8 * step, "train/loss": 1 / step})
    sink.histograms(4, {"block/qkv": {"counts": counts, "scale_exponent": np.int32(-3)}})
    sink.record({"step": 5, "train/loss": float("nan")})
    sink.finish("done")
    """
)


@pytest.fixture
def environment(tmp_path):
    """No key, no network that W&B would find, a home of our own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc")}


def run(tmp_path, environment, **options):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "val/loss": 9.0}\n{"step": 9}\n')
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    return subprocess.run(command, env=environment, text=True, check=True, **options)


def inspect(tmp_path):
    """The records of the offline run, by type, as W&B's own reader prints them."""
    [path] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    return {kind: [r[kind] for r in records if r["type"] == kind] for kind in ("history", "run")}


def test_the_offline_run_holds_losses_histograms_and_config(tmp_path, environment):
    done = run(tmp_path, environment, capture_output=True)
    assert (done.stdout, done.stderr) == ("", "")
    records = inspect(tmp_path)
    text = json.dumps(records)
    for name in ("train/step", "train/loss", "histogram/block/qkv", "scale_histogram/block/qkv"):
        assert name in text
    [described] = records["run"]
    assert described["run_id"] == "abcd1234-2"
    assert described["config"]["update"]["model"] == {"layers": 4}
    assert described["tags"] == ["tag"] and described["run_group"] == "study"
    assert len(records["history"]) == 1 + 3 + 1 + 1  # what was kept, and what was added


def test_it_never_asks_on_a_terminal(tmp_path, environment):
    leader, follower = pty.openpty()
    try:
        run(tmp_path, environment, stdin=follower, stdout=follower, stderr=follower, timeout=120)
    finally:
        os.close(follower)
        os.close(leader)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1


def test_a_server_that_never_answers_is_given_up(tmp_path, environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        reachable = environment | {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url}
        done = run(tmp_path, reachable, capture_output=True, timeout=120)
    assert done.stdout.startswith("notify: W&B is out of reach")
    assert "train/loss" in json.dumps(inspect(tmp_path)["history"])


class Recorder:
    """A client that keeps what it is given."""

    def __init__(self, run, notify):
        self.records, self.state = [], None
        RECORDERS.append(self)

    def log(self, record):
        self.records.append(record)

    def finish(self, state):
        self.state = state


RECORDERS: list[Recorder] = []


def open_sink(tmp_path, client, **options):
    messages = []
    sink = Wandb(WandbRun(tmp_path, "id", "name"), notify=messages.append, client=client, **options)
    return sink, messages


def test_records_reach_the_client_in_order(tmp_path):
    sink, messages = open_sink(tmp_path, Recorder, history=[{"step": 0, "val/loss": None}])
    sink.record({"step": 1, "train/loss": 2.0})
    counts = np.arange(SPECIALS + BINS)
    sink.histograms(1, {"x": {"counts": counts, "scale_exponent": np.int32(0)}})
    sink.finish("done")
    first, second, third = RECORDERS[-1].records
    assert first == {"train/step": 0}
    assert second == {"train/step": 1, "train/loss": 2.0}
    assert third["histogram/x"].tolist() == counts[SPECIALS:].tolist()
    assert third["scale_histogram/x"].tolist() == [i == 64 for i in range(BINS)]
    assert RECORDERS[-1].state == "done" and messages == []


def test_a_client_that_cannot_open_is_reported_once(tmp_path):
    def absent(run, notify):
        raise ImportError("No module named 'wandb'")

    sink, messages = open_sink(tmp_path, absent)
    for step in range(3):
        sink.record({"step": step})
    sink.finish("done")
    assert messages == [
        "W&B stopped: No module named 'wandb'; metrics.jsonl has everything.",
    ]


def test_a_client_that_breaks_is_reported_once(tmp_path):
    class Breaking(Recorder):
        def log(self, record):
            raise RuntimeError("broken pipe\ndetails")

    sink, messages = open_sink(tmp_path, Breaking)
    for step in range(3):
        sink.record({"step": step})
    sink.finish("failed")
    assert messages == ["W&B stopped: broken pipe; metrics.jsonl has everything."]
    assert not sink._thread.is_alive()


def test_a_client_that_cannot_finish_is_reported_and_not_waited_for(tmp_path):
    class Cut(Recorder):
        def finish(self, state):
            raise ConnectionResetError("connection reset by peer")

    sink, messages = open_sink(tmp_path, Cut)
    sink.finish("preempted")
    assert messages == ["W&B stopped: connection reset by peer; metrics.jsonl has everything."]
    assert not sink._thread.is_alive()


def test_a_client_that_is_slow_to_open_still_gets_everything(tmp_path, monkeypatch):
    def slow(run, notify):
        time.sleep(0.5)
        return Recorder(run, notify)

    monkeypatch.setattr(module, "FINISH_SECONDS", 0.2)
    sink, messages = open_sink(tmp_path, slow)
    sink.record({"step": 1})
    sink.finish("done")
    assert RECORDERS[-1].records == [{"train/step": 1}] and RECORDERS[-1].state == "done"
    assert messages == []


def test_a_client_that_hangs_loses_records_but_holds_nobody_up(tmp_path, monkeypatch):
    release = threading.Event()

    class Hanging(Recorder):
        def log(self, record):
            release.wait()

    monkeypatch.setattr(module, "QUEUE", 4)
    monkeypatch.setattr(module, "FINISH_SECONDS", 0.05)
    sink, messages = open_sink(tmp_path, Hanging)
    for step in range(10):
        sink.record({"step": step})
    sink.finish("done")
    release.set()
    assert messages == [
        "W&B is too slow: some records are left out there, none in metrics.jsonl.",
        "W&B did not finish in time; `wandb sync` can send the rest later.",
    ]


@pytest.fixture
def keyless(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_online_without_a_key_is_refused(keyless):
    with pytest.raises(UserError, match="needs a W&B API key") as caught:
        require_credentials()
    assert "wandb login" in caught.value.hint


def test_a_key_is_found_where_wandb_keeps_it(keyless, tmp_path, monkeypatch):
    assert find_credentials() is None
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n login user\n password kkk\n")
    assert find_credentials() == {"api_key": "kkk"}
    monkeypatch.setenv("WANDB_API_KEY", "eee")
    assert find_credentials() == {"api_key": "eee"}


@pytest.mark.parametrize("options", [{"wandb": "maybe"}, {"init_timeout": 0.0}])
def test_settings_are_checked(options):
    with pytest.raises(UserError, match="tracking"):
        Tracking(**options)


def test_off_leaves_only_files(tmp_path):
    sink = Tracking(wandb="off").open(tmp_path, run_id="abcd1234")
    sink.record({"step": 0})
    sink.finish("done")
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", "histograms"}
