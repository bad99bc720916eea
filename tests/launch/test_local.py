"""The local queue: places, isolation, signals. The processes are shells, not runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scalify_cli.errors import UserError
from scalify_cli.launch import Local, places
from scalify_cli.launch.task import Queue, Task

SPAN = "date +%s.%N > begin; sleep 0.2; date +%s.%N > end"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs" / "sweeps" / "mine"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def driver(tmp_path, monkeypatch) -> None:
    """One of two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, GPU-aaaa\\n1, GPU-bbbb\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def shell(folder: Path, name: str, script: str) -> Task:
    """A task that runs a script in its own directory."""
    path = folder.parent.parent / name
    return Task(name, ("sh", "-c", f"cd {path} && {{ {script}\n}}"), path)


def launch(folder: Path, tasks: list[Task], **options):
    return list(Local().launch(tasks, folder, Queue(**options)))


def codes(events) -> dict[str, int | None]:
    return {event.task.id: event.code for event in events if event.kind == "ended"}


def spans(tasks: list[Task]) -> list[tuple[float, float]]:
    def read(task: Task, name: str) -> float:
        return float((task.path / name).read_text())

    return sorted((read(task, "begin"), read(task, "end")) for task in tasks)


def test_every_task_is_started_once_and_its_end_is_told(folder):
    tasks = [shell(folder, name, "echo once >> count") for name in "abc"]
    events = launch(folder, tasks, jobs=2)
    assert codes(events) == {"a": 0, "b": 0, "c": 0}
    assert [event.task.id for event in events if event.kind == "started"] == ["a", "b", "c"]
    assert all((task.path / "count").read_text() == "once\n" for task in tasks)


def test_no_more_run_at_a_time_than_were_asked_for(folder):
    tasks = [shell(folder, name, SPAN) for name in "abcde"]
    launch(folder, tasks, jobs=2)
    runs = spans(tasks)
    most = max(sum(other[0] <= begin < other[1] for other in runs) for begin, _ in runs)
    assert most == 2


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("exit 3", 3, "exit code 3"),
        ("kill -KILL $$", -9, "killed by SIGKILL, perhaps out of memory"),
        ("kill -SEGV $$", -11, "killed by SIGSEGV"),
    ],
)
def test_a_run_that_dies_touches_no_other(folder, script, code, told):
    tasks = [
        shell(folder, "long", "sleep 0.5; touch finished"),
        shell(folder, "bad", script),
        shell(folder, "next", "touch finished"),
    ]
    events = launch(folder, tasks, jobs=2)
    assert codes(events) == {"long": 0, "bad": code, "next": 0}
    assert [e.message for e in events if e.kind == "ended" and e.task.id == "bad"] == [told]
    assert (tasks[0].path / "finished").exists()
    assert (tasks[2].path / "finished").exists()


def test_a_command_that_cannot_be_started_is_a_failed_run(folder):
    missing = Task("missing", ("/no/such/program",), folder.parent.parent / "missing")
    events = launch(folder, [missing, shell(folder, "next", "true")], jobs=1)
    assert codes(events) == {"missing": 1, "next": 0}


def test_what_a_run_prints_is_kept_after_what_was_there(folder):
    task = shell(folder, "a", "echo out; echo err >&2")
    task.path.mkdir()
    (task.path / "log.txt").write_text("before\n")
    launch(folder, [task])
    assert (task.path / "log.txt").read_text() == "before\nout\nerr\n"


def test_after_a_failure_nothing_more_is_started_if_so_asked(folder):
    tasks = [shell(folder, name, "touch began; exit 1") for name in "abc"]
    events = launch(folder, tasks, jobs=1, fail_fast=True)
    assert codes(events) == {"a": 1}
    assert [event.kind for event in events] == ["started", "ended", "stopping"]
    assert not tasks[1].path.exists()


@pytest.mark.parametrize("code", [75, 130])
def test_a_run_that_was_stopped_has_not_failed(folder, code):
    tasks = [shell(folder, "a", f"exit {code}"), shell(folder, "b", "true")]
    assert codes(launch(folder, tasks, jobs=1, fail_fast=True)) == {"a": code, "b": 0}


def test_a_task_that_somebody_cancels_is_not_started(folder):
    later = shell(folder, "later", "touch began")
    word = later.path / "cancel"
    first = shell(folder, "first", f"mkdir -p {later.path}; touch {word}")
    events = launch(folder, [first, later], jobs=1)
    assert [(event.kind, event.task.id) for event in events if event.task] == [
        ("started", "first"),
        ("ended", "first"),
        ("skipped", "later"),
    ]
    assert not (later.path / "began").exists()


def test_the_word_of_a_file_system_whose_clock_is_behind_counts(folder):
    later = shell(folder, "later", "touch began")
    word = later.path / "cancel"
    first = shell(folder, "first", f"mkdir -p {later.path}; touch -t 200001010000 {word}")
    assert codes(launch(folder, [first, later], jobs=1)) == {"first": 0}


def test_an_old_word_of_cancelling_does_not_count(folder):
    task = shell(folder, "a", "true")
    task.path.mkdir()
    (task.path / "cancel").write_text("")
    os.utime(task.path / "cancel", (1.0, 1.0))
    assert codes(launch(folder, [task])) == {"a": 0}


def test_each_run_sees_its_own_gpu(folder):
    tasks = [shell(folder, name, f"echo $CUDA_VISIBLE_DEVICES > gpu; {SPAN}") for name in "abcd"]
    launch(folder, tasks, gpus=("3", "5"))
    seen = {task.id: (task.path / "gpu").read_text().strip() for task in tasks}
    assert sorted(seen.values()) == ["3", "3", "5", "5"]
    for gpu in ("3", "5"):
        first, second = spans([task for task in tasks if seen[task.id] == gpu])
        assert first[1] <= second[0]


def test_no_gpu_is_given_to_two_runs_whoever_gives_it(tmp_path, driver):
    options = Queue(gpus=("0", "1"), locks=tmp_path)
    [both] = places.places(options, 1, tmp_path / "runs", processes=2)
    one, other = places.places(replace(options, jobs=1), 1, tmp_path / "others")
    [named] = places.places(replace(options, gpus=("GPU-b",)), 1, tmp_path)
    with both.taken() as locks, one.taken() as first, other.taken() as second:
        assert (len(locks or ()), first, second) == (2, None, None)
    with other.taken() as second, both.taken() as locks, named.taken() as same:
        assert (len(second or ()), locks, same) == (1, None, None)
        with one.taken() as first:  # which the attempt to take both has not kept
            assert first


def test_more_runs_at_a_time_than_gpus_are_refused(folder):
    with pytest.raises(UserError, match="3 processes at a time need 3 GPUs, and there are 2: 0, 1"):
        launch(folder, [], jobs=3, gpus=("0", "1"))


@pytest.mark.parametrize(
    ("cores", "options", "count", "threads"),
    [
        (8, Queue(), 3, ["2", "2", "2"]),
        (8, Queue(points=8), 3, ["1"] * 8),
        (8, Queue(jobs=2), 30, ["4", "4"]),
        (2, Queue(jobs=4), 30, ["1"] * 4),
        (4, Queue(), 0, ["4"]),
    ],
)
def test_cores_are_shared_out(tmp_path, monkeypatch, cores, options, count, threads):
    monkeypatch.setattr(places, "cores", lambda: cores)
    monkeypatch.delenv("NPROC", raising=False)
    found = places.places(options, count, tmp_path)
    assert [place.environment["NPROC"] for place in found] == threads
    assert len({place.locks for place in found}) == len(found)


def test_a_run_of_several_processes_has_several_gpus_or_cores(tmp_path, monkeypatch):
    found = places.places(Queue(gpus=("0", "1", "2", "3", "4")), 9, tmp_path, processes=2)
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in found] == ["0,1", "2,3"]
    with pytest.raises(UserError, match="2 processes at a time need 2 GPUs, and there are 1: 0"):
        places.places(Queue(gpus=("0",)), 9, tmp_path, processes=2)
    monkeypatch.setattr(places, "cores", lambda: 8)
    monkeypatch.delenv("NPROC", raising=False)
    found = places.places(Queue(), 3, tmp_path, processes=2)
    assert [place.environment["NPROC"] for place in found] == ["2", "2", "2"]


def test_threads_that_the_user_has_chosen_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert places.places(Queue(jobs=1), 1, tmp_path)[0].environment["OMP_NUM_THREADS"] == "7"


def test_xla_takes_no_more_threads_than_its_place_has():
    """What ``places`` relies on: XLA counts the cores through NPROC."""
    code = (
        "import os, jax; jax.numpy.ones(3).block_until_ready();"
        "tasks = [open(f'/proc/self/task/{t}/comm').read() for t in os.listdir('/proc/self/task')];"
        "print(sum('XLAEigen' in name for name in tasks))"
    )
    counts = []
    for threads in ("1", "3"):
        environment = {**os.environ, "NPROC": threads, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert counts == [1, 3]


def test_gpus_are_those_that_cuda_shows(monkeypatch):
    monkeypatch.setattr(places, "find_spec", lambda name: object())
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert places.find_gpus() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert places.find_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert places.find_gpus() == []


def test_gpus_are_found_by_asking_the_driver(monkeypatch, driver):
    monkeypatch.setattr(places, "find_spec", lambda name: object())
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert places.find_gpus() == ["0", "1"]


QUEUE = """
import json, sys
from pathlib import Path
from scalify_cli.launch import Local
from scalify_cli.launch.task import Queue, Task
folder, tasks = Path(sys.argv[1]), json.loads(sys.argv[2])
tasks = [Task(name, tuple(command), Path(path)) for name, command, path in tasks]
for event in Local().launch(tasks, folder, Queue(jobs=int(sys.argv[3]))):
    print(event.kind, event.task.id if event.task else "-", event.code, flush=True)
"""
SAVES = "trap 'touch saved; exit 75' TERM; touch began; while :; do sleep 0.05; done"
DEAF = "trap '' TERM; touch began; while :; do sleep 0.05; done"


def queue(folder: Path, tasks: list[Task], jobs: int) -> subprocess.Popen:
    """A queue in a process of its own, as ``scalify sweep`` is."""
    described = json.dumps([[task.id, task.command, str(task.path)] for task in tasks])
    command = [sys.executable, "-c", QUEUE, str(folder), described, str(jobs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_first_signal_stops_the_starting_and_lets_runs_save(folder, number, code):
    tasks = [shell(folder, "a", SAVES), shell(folder, "b", "true")]
    process = queue(folder, tasks, 1)
    wait_until((tasks[0].path / "began").exists)
    process.send_signal(number)
    out = process.communicate()[0].split("\n")
    assert out == ["started a None", f"stopping - {code}", "ended a 75", ""]
    assert (tasks[0].path / "saved").exists()
    assert not tasks[1].path.exists()


def test_a_second_signal_kills(folder):
    task = shell(folder, "a", DEAF)
    process = queue(folder, [task], 1)
    assert process.stdout is not None
    wait_until((task.path / "began").exists)
    process.send_signal(signal.SIGINT)
    lines = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    lines += process.communicate()[0].splitlines(keepends=True)
    assert lines == ["started a None\n", "stopping - 130\n", "killed - None\n", "ended a -9\n"]


def test_runs_outlive_a_queue_that_is_killed_and_keep_their_places(folder):
    wait = "touch began; while [ ! -e go ]; do sleep 0.02; done; date +%s.%N > end"
    first = shell(folder, "first", wait)
    process = queue(folder, [first], 1)
    wait_until((first.path / "began").exists)
    process.kill()
    process.wait()
    second = shell(folder, "second", "date +%s.%N > begin")
    again = queue(folder, [second], 1)
    assert again.stdout is not None
    assert again.stdout.readline() == "note - None\n"
    assert not (second.path / "begin").exists()
    (first.path / "go").touch()
    assert again.communicate()[0] == "started second None\nended second 0\n"
    end, begin = (first.path / "end").read_text(), (second.path / "begin").read_text()
    assert float(end) <= float(begin)
