"""What the launcher asks a cluster for, seen from inside jobs that do nothing else."""

import shlex
from pathlib import Path

import pytest
from daemons import happens

from scalify_cli.errors import UserError
from scalify_cli.launch import Slurm
from scalify_cli.launch.squeue import accounted, largest_array, poll
from scalify_cli.launch.task import Queue, Task


def tasks(folder: Path, count: int, script: str) -> list[Task]:
    """Tasks of bash; ``$out`` is a file of the task's own."""
    folder.mkdir()
    return [
        Task(f"t{i}", ("bash", "-c", f"out={shlex.quote(str(folder / str(i)))}; {script}"), folder)
        for i in range(count)
    ]


def ends(events) -> dict[str, str]:
    return {event.task.id: event.message for event in events if event.kind == "ended"}


def test_each_run_sees_the_gpus_that_are_its_own(cluster, tmp_path):
    found = tasks(tmp_path / "t", 4, "echo $CUDA_VISIBLE_DEVICES $SLURMD_NODENAME > $out; sleep 3")
    launcher = Slurm(gpus="1", max_array_size=3, poll_seconds=0.5, setup=["echo begun"])
    ended = ends(launcher.launch(found, tmp_path / "s", Queue()))
    assert {message.split()[-1] for message in ended.values()} == {"COMPLETED"}
    places = [(tmp_path / "t" / str(index)).read_text() for index in range(4)]
    assert len(set(places)) == 4
    assert [len(list((tmp_path / "s" / f"slurm-{n}").glob("*.log"))) for n in (1, 2)] == [3, 1]
    assert (tmp_path / "s/slurm-1/0.log").read_text() == "begun\n"


STOPPABLE = (
    "trap 'kill $!; exit 75' TERM; echo start $SLURM_RESTART_COUNT >> $out; "
    "[ $(wc -l < $out) -gt 1 ] && exit 0; sleep 300 & wait; exit 75"  # sleep may be signalled first
)


def test_a_job_near_its_time_limit_queues_again_and_goes_on(cluster, tmp_path):
    """Every task of an array by itself: the last one goes by the number of the whole array."""
    found = tasks(tmp_path / "t", 2, STOPPABLE)
    launcher = Slurm(time="1", signal_seconds=50, poll_seconds=0.5)
    ended = ends(launcher.launch(found, tmp_path / "s", Queue()))
    assert {message.split()[-1] for message in ended.values()} == {"COMPLETED"}
    for index in range(2):
        assert (tmp_path / "t" / str(index)).read_text() == "start\nstart 1\n"
        assert not (tmp_path / "s/slurm-1" / f"{index}.cancelled").exists()


def test_a_job_that_is_cancelled_does_not_queue_again(cluster, tmp_path):
    found = tasks(tmp_path / "t", 1, STOPPABLE)
    messages = []
    for event in Slurm(poll_seconds=0.5).launch(found, tmp_path / "s", Queue()):
        if event.kind == "waiting" and (tmp_path / "t/0").exists():
            cluster.client("scancel", "--me")
        messages.append(event.message)
    assert messages[-1].endswith("is CANCELLED")
    assert happens((tmp_path / "s/slurm-1/0.cancelled").exists, 60)  # by a script that still ends
    assert (tmp_path / "t/0").read_text() == "start\n"


def test_accounting_answers_only_where_there_is_some(cluster, tmp_path):
    found = tasks(tmp_path / "t", 1, "exit 3")
    *_, last = Slurm(poll_seconds=0.5).launch(found, tmp_path / "s", Queue())
    assert last.message.startswith(f"job {last.job_id} is FAILED")
    if cluster.accounting:  # which lags behind the queue by a moment
        told = lambda: [job.state for job in accounted([last.job_id]).values()]  # noqa: E731
        assert happens(lambda: told() == ["FAILED"], 30), told()
    else:
        assert accounted([last.job_id]) == {}


def test_the_cluster_tells_what_it_is(cluster):
    assert largest_array() == cluster.array_size
    assert poll(["999999_0"]) == {}


def test_a_refusal_comes_with_the_clusters_reason(cluster, tmp_path):
    found = tasks(tmp_path / "t", 1, "true")
    with pytest.raises(UserError, match="invalid partition"):
        list(Slurm(partition="nowhere").launch(found, tmp_path / "s", Queue()))
