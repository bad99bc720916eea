"""What a run wrote, what the queue says, what accounting remembers: one truth out of three."""

import json
import time
from datetime import UTC, datetime

import pytest

from scalify_cli.cli.recording import recorded, settled
from scalify_cli.cli.selection import chosen
from scalify_cli.cli.states import true_states
from scalify_cli.errors import UserError
from scalify_cli.launch import Slurm
from scalify_cli.launch.task import Event, Queue, Task
from scalify_cli.report.runs import read_run

GONE = "error: Invalid job id specified"


@pytest.fixture
def run(tmp_path):
    """A run on another machine, in a state that it wrote some seconds ago."""

    def make(state, *, age=5.0, job="7_0", name="aaaa1111", **facts):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True, exist_ok=True)
        updated = datetime.fromtimestamp(time.time() - age, UTC).isoformat()
        status = {"state": state, "slurm_job_id": job, "updated": updated, "host": "far", **facts}
        (path / "state.json").write_text(json.dumps(status))
        return read_run(path)

    return make


def truth(run) -> str:
    return true_states([run])[0].state


@pytest.mark.parametrize(
    ("written", "queue", "state"),
    [
        ("pending", "PENDING|Priority", "pending"),
        ("pending", "RUNNING|None", "running"),
        ("pending", "CANCELLED|None", "cancelled"),
        ("pending", "FAILED|NonZeroExitCode", "failed"),
        ("pending", "COMPLETED|None", "failed"),
        ("running", "RUNNING|None", "running"),
        ("running", "COMPLETING|None", "running"),
        ("running", "PENDING|BeginTime", "pending"),
        ("running", "SUSPENDED|None", "running"),
        ("running", "NODE_FAIL|None", "failed"),
        ("running", "OUT_OF_MEMORY|None", "failed"),
        ("running", "TIMEOUT|TimeLimit", "failed"),
        ("running", "CANCELLED|None", "cancelled"),
        ("running", "PREEMPTED|None", "preempted"),
        ("preempted", "PENDING|BeginTime", "pending"),
        ("preempted", "RUNNING|None", "running"),
        ("preempted", "COMPLETING|None", "preempted"),
        ("preempted", "FAILED|NonZeroExitCode", "preempted"),
        ("preempted", "CANCELLED|None", "cancelled"),
        ("failed", "PENDING|BeginTime", "pending"),
        ("failed", "FAILED|NonZeroExitCode", "failed"),
        ("failed", "COMPLETING|None", "failed"),
    ],
)
def test_the_queue_knows_better(slurm, run, written, queue, state):
    slurm.answers("squeue", f"7_0|{queue}|node1\n")
    assert truth(run(written)) == state
    assert truth(run(written, age=1e5)) == state


@pytest.mark.parametrize("state", ["done", "diverged", "cancelled"])
def test_what_is_over_is_not_asked_about(slurm, run, state):
    assert truth(run(state)) == state
    assert truth(run("failed", job=None)) == "failed"
    assert slurm.calls == []


def test_one_question_of_each_kind_for_all_runs(slurm, run):
    slurm.answers("squeue", "7_0|RUNNING|None|n1\n")
    slurm.answers("sacct", "7_1|CANCELLED by 0|0:0|n1\n8|OUT_OF_MEMORY|0:125|n1\n")
    runs = [run("running", job=job, name=job) for job in ("7_0", "7_1", "8")]
    assert [one.state for one in true_states(runs)] == ["running", "cancelled", "failed"]
    assert [call.split()[0] for call in slurm.calls] == ["squeue", "sacct"]


@pytest.mark.parametrize(
    ("written", "age", "began", "state"),
    [
        ("pending", 5, False, "cancelled"),
        ("pending", 5, True, "failed"),
        ("running", 5, True, "running"),
        ("running", 60, True, "failed"),
        ("preempted", 60, True, "preempted"),
    ],
)
def test_what_nobody_remembers_is_told_by_its_silence(
    slurm, run, tmp_path, written, age, began, state
):
    slurm.answers("squeue", GONE)
    slurm.answers("sacct", "error: Slurm accounting storage is disabled")
    log = tmp_path / "0.log"
    if began:
        log.touch()
    found = true_states([run(written, age=age, slurm_log=str(log))])[0]
    assert found.state == state
    assert state != "failed" or str(log) in (found.error or "")


def test_what_was_cancelled_stays_so_when_nobody_remembers(slurm, run, tmp_path):
    slurm.answers("squeue", GONE)
    log = tmp_path / "0.log"
    stopped = run("preempted", slurm_log=str(log))
    assert truth(stopped) == "preempted"
    (tmp_path / "0.cancelled").touch()
    assert truth(stopped) == "cancelled"


def test_a_controller_that_is_down_changes_nothing(slurm, run, capsys):
    slurm.answers("squeue", "error: Unable to contact the controller of this test")
    assert [truth(run("pending")), truth(run("running"))] == ["pending", "running"]
    told = capsys.readouterr().err
    assert told.count("Unable to contact the controller of this test") == 1


def test_a_job_that_will_never_start_says_why(slurm, run):
    slurm.answers("squeue", "7_0|PENDING|JobHeldUser|\n")
    assert true_states([run("pending")])[0].error == "job 7_0 waits: JobHeldUser"


def test_how_a_run_ended_is_written_where_it_could_not(slurm, run):
    slurm.answers("squeue", "7_0|OUT_OF_MEMORY|None|n1\n")
    path = run("running").path
    task = Task(path.name, ("x",), path)
    assert [e.kind for e in recorded([Event("ended", task, job_id="7_0")])] == ["ended"]
    status = json.loads((path / "state.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "job 7_0 was OUT_OF_MEMORY")


def test_a_point_that_nobody_started_is_left_alone(slurm, tmp_path):
    settled([read_run(tmp_path / "runs" / "bbbb2222")])
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def submit(run):
    """Begin to submit a new run and one that has failed, up to where ``sbatch`` is called."""
    path = run("failed", job="6_0", error="before").path
    tasks = [Task(each.name, ("x",), each) for each in (path, path.with_name("bbbb2222"))]
    events = recorded(Slurm().launch(tasks, path.parent / "sweeps" / "s", Queue(detach=True)))
    assert next(events).kind == "submitting"
    return tasks, events


def test_a_submitted_run_is_pending_until_it_says_more(slurm, run, submit):
    slurm.answers("sbatch", "7\n")
    (task, _), events = submit
    next(events)
    status = json.loads((task.path / "state.json").read_text())
    assert status | {"updated": 0, "host": 0} == {
        "state": "pending",
        "slurm_job_id": "7_0",
        "slurm_log": f"{task.path.parent}/sweeps/s/slurm-1/0.log",
        "error": None,
        "updated": 0,
        "host": 0,
    }
    run("done", job="7_0")
    list(events)
    assert json.loads((task.path / "state.json").read_text())["state"] == "done"


def test_a_job_is_known_though_who_submitted_it_was_killed(slurm, submit):
    slurm.answers("squeue", "7_0|PENDING|Priority|\n7_1|RUNNING|None|n1\n")
    (failed, new), _ = submit
    runs_dir = failed.path.parent
    states = lambda: [run.state for run in chosen(runs_dir, [failed.id])]  # noqa: E731
    assert states() == ["failed"]
    (runs_dir / "sweeps/s/slurm-1/job").write_text("7\n")  # sbatch goes on by itself
    assert [run.state for run in chosen(runs_dir, [failed.id, new.id])] == ["pending", "running"]
    assert read_run(new.path).status["slurm_job_id"] == "7_1"
    assert list((runs_dir / "sweeps/.submitting").iterdir()) == []


def test_a_refused_job_changes_no_run(slurm, submit):
    slurm.answers("sbatch", "error: invalid partition")
    (failed, new), events = submit
    with pytest.raises(UserError, match="invalid partition"):
        next(events)
    assert [truth(read_run(failed.path)), new.path.exists()] == ["failed", False]
    assert list((failed.path.parent / "sweeps/.submitting").iterdir()) == []
