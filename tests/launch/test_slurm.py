"""Submitting tasks and following them, against commands that only pretend."""

import pytest

from scalify_cli.errors import UserError
from scalify_cli.launch import Slurm
from scalify_cli.launch.task import Queue, Task

FAST = Slurm(poll_seconds=0.0)


@pytest.fixture
def tasks(tmp_path):
    return [Task(f"run{i}", ("python", "run", f"seed={i}"), tmp_path / f"run{i}") for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweeps" / "s"


def told(events) -> list[tuple[str, str]]:
    return [(event.kind, event.task.id if event.task else "") for event in events]


def test_an_array_is_submitted_from_files_that_stay(slurm, tasks, folder):
    slurm.answers("sbatch", "7\n")
    events = list(FAST.launch(tasks, folder, Queue(jobs=2, detach=True)))
    assert told(events)[0] == ("submitting", "")
    assert [(e.kind, e.job_id, e.task) for e in events[1:]] == [
        ("submitted", f"7_{index}", task) for index, task in enumerate(tasks)
    ]
    place = folder / "slurm-1"
    assert events[0].message == str(place)
    assert (place / "tasks").read_text().splitlines()[2] == "python run seed=2"
    assert "#SBATCH --array=0-2%2\n" in (place / "job.sbatch").read_text()
    assert f"sbatch --parsable {place}/job.sbatch" in slurm.calls


def test_a_second_submission_leaves_the_first_ones_files_alone(slurm, tasks, folder):
    slurm.answers("sbatch", "7\n")
    for _ in range(2):
        list(FAST.launch(tasks[:1], folder, Queue(detach=True)))
    assert {path.name for path in folder.iterdir()} == {"slurm-1", "slurm-2"}


def test_no_array_is_larger_than_the_cluster_allows(slurm, tasks, folder):
    slurm.answers("scontrol", "MaxArraySize = 2\n")
    slurm.answers("sbatch", "7\n", "8\n")
    events = list(FAST.launch(tasks, folder, Queue(detach=True)))
    assert [event.job_id for event in events if event.task] == ["7_0", "7_1", "8_0"]
    assert not any("--dependency" in call for call in slurm.calls)


def test_arrays_of_which_only_some_tasks_may_run_follow_each_other(slurm, tasks, folder):
    slurm.answers("sbatch", "7\n", "8\n", "9\n")
    limited = Slurm(max_array_size=1, parallel=1)
    list(limited.launch(tasks, folder, Queue(detach=True)))
    submitted = [call.split()[2] for call in slurm.calls if call.startswith("sbatch")]
    assert submitted[1:] == ["--dependency=afterany:7", "--dependency=afterany:8"]


def test_a_refused_array_ends_the_submission(slurm, tasks, folder):
    slurm.answers("sbatch", "error: invalid account")
    with pytest.raises(UserError, match="invalid account"):
        list(FAST.launch(tasks, folder, Queue()))


def test_jobs_are_followed_to_their_ends(slurm, tasks, folder):
    slurm.answers("sbatch", "7\n")
    slurm.answers(
        "squeue",
        "7_0|RUNNING|None|n1\n7_1|PENDING|Resources|\n7_2|PENDING|Resources|\n",
        "error: Unable to contact slurm controller",
        "7_0|COMPLETED|None|n1\n7_1|RUNNING|None|n1\n7_2|CANCELLED|None|\n",
        "7_1|PENDING|BeginTime|\n",
        "7_1|RUNNING|None|n2\n",
        "error: Invalid job id specified",
    )
    events = list(FAST.launch(tasks, folder, Queue()))[4:]
    assert [(e.kind, e.job_id, e.message) for e in events if e.task] == [
        ("started", "7_0", "job 7_0 is RUNNING"),
        ("ended", "7_0", "job 7_0 is COMPLETED"),
        ("started", "7_1", "job 7_1 is RUNNING"),
        ("ended", "7_2", "job 7_2 is CANCELLED"),
        ("note", "7_1", "job 7_1 is PENDING (BeginTime)"),
        ("started", "7_1", "job 7_1 is RUNNING"),
        ("ended", "7_1", "job 7_1 is COMPLETED (the queue has forgotten it)"),
    ]
    assert "Unable to contact slurm controller" in [e.message for e in events if not e.task]


def test_after_a_failure_nothing_more_is_started_when_asked(slurm, tasks, folder):
    slurm.answers("sbatch", "7\n")
    slurm.answers(
        "squeue",
        "7_0|FAILED|NonZeroExitCode|n1\n7_1|RUNNING|None|n1\n7_2|PENDING|Resources|\n",
        "7_1|COMPLETED|None|n1\n7_2|CANCELLED|None|\n",
    )
    events = list(FAST.launch(tasks, folder, Queue(fail_fast=True)))
    assert ("stopping", "") in told(events)
    assert [call for call in slurm.calls if call.startswith("scancel")] == ["scancel --quiet 7_2"]
