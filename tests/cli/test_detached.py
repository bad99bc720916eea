"""``scalify run`` handed to SLURM, or to the background."""

import json
from pathlib import Path

import pytest

from scalify_cli.config import compose, signature

WORDS = ["launcher=slurm", "launcher.poll_seconds=0.0", "seed=3"]
ID = signature(compose(["seed=3"]))


@pytest.fixture(autouse=True)
def queue(slurm, monkeypatch):
    monkeypatch.delenv("SCALIFY_SUBMISSION", raising=False)
    slurm.answers("sbatch", "7\n")
    return slurm


def written(**facts) -> None:
    path = Path("runs") / ID
    path.mkdir(parents=True, exist_ok=True)
    (path / "state.json").write_text(json.dumps(facts))


def submissions(slurm) -> list[str]:
    return [call for call in slurm.calls if call.startswith("sbatch")]


def test_a_run_is_submitted_and_left_alone(scalify, queue):
    queue.answers("squeue", "7_0|PENDING|Priority|\n")
    result = scalify("run", *WORDS, "-d", "--json")
    assert result.code == 0
    assert json.loads(result.out)["state"] == "pending"
    [command] = Path(f"runs/jobs/{ID}/slurm-1/tasks").read_text().splitlines()
    assert command.endswith(f"-m scalify_cli run seed=3 --runs-dir {Path.cwd()}/runs --quiet")
    assert Path(f"runs/jobs/{ID}/overrides.txt").read_text().splitlines() == WORDS
    status = json.loads(Path(f"runs/{ID}/state.json").read_text())
    assert (status["state"], status["slurm_job_id"]) == ("pending", "7_0")


def test_what_is_queued_already_is_not_submitted_again(scalify, queue):
    queue.answers("squeue", "7_0|PENDING|Priority|\n")
    scalify("run", *WORDS, "-d")
    assert scalify("run", *WORDS, "-d").out.startswith(f"pending {ID}")
    assert len(submissions(queue)) == 1


def test_without_d_the_end_is_waited_for(scalify, queue):
    queue.answers("squeue", "7_0|RUNNING|None|n1\n", "7_0|FAILED|NonZeroExitCode|n1\n")
    result = scalify("run", *WORDS)
    assert result.code == 1
    assert "submitted as job 7_0" in result.err
    assert result.out.startswith(f"failed {ID}")


def test_the_same_command_waits_for_what_was_left_alone(scalify, queue):
    written(state="pending", slurm_job_id="7_0")
    queue.answers("squeue", "7_0|PENDING|None|\n", "7_0|CANCELLED|None|\n")
    assert scalify("run", *WORDS).code == 75
    assert submissions(queue) == []


def test_what_is_done_is_not_submitted(scalify, queue):
    written(state="done")
    assert scalify("run", *WORDS).out.startswith(f"already done {ID}")
    written(state="diverged")
    again = scalify("run", *WORDS, "--fail-on-diverge")
    assert again.code == 1
    assert again.out.startswith(f"already diverged {ID}")
    assert queue.calls == []


def test_inside_its_job_a_run_is_not_submitted_once_more(scalify, queue, experiment, monkeypatch):
    monkeypatch.setenv("SCALIFY_SUBMISSION", "/somewhere")
    assert scalify("run", *WORDS).code == 0
    assert len(experiment.calls) == 1 and queue.calls == []


@pytest.mark.parametrize(("restarts", "forced"), [("", True), ("0", True), ("1", False)])
def test_force_forgets_once_and_not_at_every_requeue(
    scalify, experiment, monkeypatch, restarts, forced
):
    monkeypatch.setenv("SCALIFY_SUBMISSION", "/somewhere")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    scalify("run", *WORDS, "--force")
    assert experiment.calls[0]["force"] is forced


def test_a_refusal_is_an_error_with_a_hint(scalify, queue):
    (queue.folder / "sbatch.answer00").write_text("error: sbatch: error: invalid account")
    result = scalify("run", *WORDS, "-d")
    assert result.code == 1
    assert "error: the job was not taken" in result.err and "job.sbatch" in result.err


def test_a_run_goes_on_in_the_background(scalify, monkeypatch):
    started = []

    class Process:
        pid = 2**22 + 1  # higher than Linux gives

        def __init__(self, command, **options):
            started.append((command, options["start_new_session"]))

    monkeypatch.setattr("subprocess.Popen", Process)
    result = scalify("run", "seed=3", "-d")
    assert result.code == 1 and result.out.startswith(f"failed {ID}")  # this process is not there
    [(command, own_session)] = started
    assert own_session and list(command[3:5]) == ["run", "seed=3"]
    written = json.loads(Path(f"runs/{ID}/state.json").read_text())
    assert (written["pid"], written["started"]) == (Process.pid, None)
