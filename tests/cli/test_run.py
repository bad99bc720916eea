"""``scalify run`` parses, hands over, and prints what it is given."""

import io
import json

import pytest

from scalify_cli.cli.live import Lines, LiveLine, live_line, plain_line
from scalify_cli.config import compose, difference, signature
from scalify_cli.launch import processes

RECORDS = [{"step": step, "train/loss": 3.0} for step in range(1, 31)]


def test_the_request_reaches_the_experiment(scalify, experiment, tmp_path):
    folder = tmp_path / "elsewhere"
    scalify("run", "seed=1", "--force", "--runs-dir", str(folder), "--wandb", "off")
    assert experiment.calls == [
        {"overrides": ["seed=1"], "runs_dir": folder, "force": True, "wandb": "off"}
    ]


def test_the_environment_names_the_runs_folder(scalify, experiment, monkeypatch, tmp_path):
    monkeypatch.setenv("SCALIFY_RUNS", str(tmp_path / "env"))
    scalify("run", "-q")
    assert experiment.calls[0]["runs_dir"] == tmp_path / "env"


def test_plain_lines_and_the_closing_table(scalify, experiment):
    result = scalify("run", "trainer.log_every=1")
    lines = result.out.splitlines()
    assert lines[:5] == [
        "tokens are cached",
        "step=0 val_loss=9.0000",
        "step=1 loss=8.5000 tokens/s=1000",
        "step=2 loss=8.0000 tokens/s=2000",
        "step=3 loss=7.5000 val_loss=7.2500 tokens/s=3000",
    ]
    identity = signature(compose(["trainer.log_every=1"]))
    assert lines[5] == f"done {identity}"
    assert "  validation loss  7.2500" in lines
    assert "  overflow         25 % on average, 50 % in b" in lines
    assert "  underflow        0 %" in lines
    worst = [line.split("worst SNR")[1].strip() for line in lines if "worst SNR" in line]
    assert worst == ["10.0 dB in b", "20.0 dB in c", "30.0 dB in a"]
    assert f"  details          scalify show {identity}" in lines
    assert result.err == ""


def test_json_is_one_object_and_chatter_goes_to_stderr(scalify, experiment):
    experiment.changes = {"summary": {"val/loss": float("nan")}}
    result = scalify("run", "--json")
    found = json.loads(result.out)
    assert found["id"] == signature(compose())
    assert (found["state"], found["exit_code"], found["train_loss"]) == ("done", 0, 7.5)
    assert found["val_loss"] is None
    assert found["worst_snr"][0] == {"tensor": "b", "snr_db": 10.0}
    assert found["peak_memory_bytes"] > 0
    assert "step=3 loss=7.5000" in result.err


def test_quiet_says_nothing(scalify, experiment):
    result = scalify("run", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_already_done_is_no_failure(scalify, experiment):
    experiment.records = []
    experiment.changes = {"already_done": True, "summary": {"train/loss": 1.0}}
    result = scalify("run")
    assert result.code == 0
    assert result.out.startswith("already done ")
    assert "--force" in result.out.splitlines()[0]


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--fail-on-diverge"], 1)])
def test_divergence_fails_only_on_request(scalify, experiment, flags, code):
    experiment.changes = {"state": "diverged"}
    assert scalify("run", "-q", *flags).code == code


def test_the_exit_code_is_the_outcome_s(scalify, experiment):
    experiment.changes = {"state": "preempted", "exit_code": 75}
    assert scalify("run", "-q").code == 75


def test_a_word_given_twice_is_noted(scalify, experiment):
    result = scalify("run", "-q", "seed=1", "seed=2")
    assert result.err == "note: seed is given twice; the last one counts\n"


def test_a_dry_run_runs_nothing(scalify, experiment, tmp_path):
    result = scalify("run", "-n", "model=gpt_nano", "name='a b'", "trainer.steps=10")
    assert experiment.calls == []
    assert not (tmp_path / "runs").exists()
    identity = signature(compose(["model=gpt_nano", "trainer.steps=10"]))
    assert f"runs/{identity} (new)" in result.out
    assert """scalify run model=gpt_nano trainer.steps=10 'name="a b"'""" in result.out


def test_a_dry_run_in_json(scalify):
    found = json.loads(scalify("run", "-n", "--json", "seed=4", "trainer.steps=10").out)
    trainer = compose().trainer
    assert found["overrides"] == ["trainer.steps=10", "seed=4"]
    assert found["tokens"] == 10 * trainer.batch_size * trainer.sequence_length


def test_cfg_prints_what_differs_all_or_json(scalify):
    words = ["scaling=none", "seed=2"]
    assert scalify("run", "--cfg", "diff", *words).out.split() == words
    assert scalify("run", "--cfg", "full", *words).out.startswith("precision:\n")
    found = json.loads(scalify("run", "--cfg", "json", *words).out)
    assert difference(found) == words


def test_lines_come_at_the_first_the_due_and_the_last_step():
    stream = io.StringIO()
    lines = Lines(stream, every=20, steps=30)
    for record in RECORDS:
        lines.show(record)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == [
        "step=1",
        "step=20",
        "step=30",
    ]


def test_records_of_tensors_alone_are_not_lines():
    stream = io.StringIO()
    Lines(stream, every=1, steps=3).show({"step": 2, "snr_db/a": 3.0})
    assert stream.getvalue() == ""


def test_a_line_of_a_loss_that_is_not_finite():
    assert plain_line({"step": 2, "train/loss": float("nan")}) == "step=2 loss=nan"


def test_the_live_line_shows_step_losses_speed_and_time_left():
    latest = {"step": 50, "train/loss": 3.21, "val/loss": 3.5, "perf/step_seconds": 2.0}
    assert live_line(latest, 100) == ("step 50/100  loss 3.2100  val 3.5000  - tokens/s  ETA 100 s")


def test_the_live_line_rewrites_itself_and_prints_events_above():
    from rich.console import Console
    from rich.live import Live

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, highlight=False)
    with Live("preparing", console=console, auto_refresh=False) as live:
        shown = LiveLine(live, steps=30)
        shown.show({"event": "resumed", "message": "resumed at step 12"})
        shown.show(RECORDS[-1])
        live.refresh()
    assert "resumed at step 12" in stream.getvalue()
    assert "step 30/30  loss 3.0000" in stream.getvalue()


def test_what_all_processes_refuse_is_said_by_the_first_alone(scalify, monkeypatch):
    lost = processes.Lost(1, killed=False, message="process 1 of 2 exited with 2", said="error: x")
    monkeypatch.setattr(processes, "run_together", lambda command, count: (2, lost))
    result = scalify("run", "launcher.processes=2")
    assert (result.code, result.err) == (2, "")
