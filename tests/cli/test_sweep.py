"""``sweep`` from the words to the exit code. The runs are shells; at the end come two real ones."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scalify_cli.cli import follow, plan, sweeping
from scalify_cli.cli.app import execute
from scalify_cli.cli.folders import shared_locks
from scalify_cli.config import compose, signature
from scalify_cli.launch.places import places
from scalify_cli.launch.task import Event, Queue, Task
from scalify_cli.report.runs import read_run
from scalify_cli.report.sweeps import read_sweep, select
from scalify_cli.tracking.files import take_lock
from scalify_cli.tracking.run_directory import LOCK, mark

GRID = ("precision=fp16,fp8", "seed=0,1", "model=gpt_nano")
TINY = (
    "model=gpt_nano",
    "model.layers=1",
    "model.width=16",
    "model.heads=1",
    "trainer.steps=2",
    "trainer.batch_size=1",
    "trainer.sequence_length=8",
    "trainer.validation_batches=1",
)
DONE = (
    """echo '{"state": "done", "step": 3, "steps": 3, "metrics": {"val/loss": 4.5}}' > state.json"""
)
DIVERGED = """echo '{"state": "diverged", "error": "loss is not finite"}' > state.json"""
BEGUN = (
    f"""echo '{{"state": "running", "host": "{os.uname().nodename}", "pid": '$$'}}' > state.json"""
)


class Runs:
    """Scripts in place of ``scalify run``, chosen by the first key that is in a point's words."""

    def __init__(self):
        self.scripts: dict[str, str] = {}
        self.commands: list[tuple[str, ...]] = []

    def task(self, cell, runs_dir, **options) -> Task:
        real = plan.task(cell, runs_dir, **options)
        self.commands.append(real.command)
        found = [script for word, script in self.scripts.items() if word in cell.words]
        script = f"echo once >> count\n{(found or [DONE])[0]}"
        return Task(real.id, ("sh", "-c", f"cd {real.path} && {{ {script}\n}}"), real.path)


@pytest.fixture
def runs(monkeypatch):
    fake = Runs()
    monkeypatch.setattr(sweeping, "task", fake.task)
    return fake


def identity(*words: str) -> str:
    return signature(compose(["model=gpt_nano", *words]))


def counts(folder: Path = Path("runs")) -> list[int]:
    """How often each point that was started at all was started."""
    return sorted(len(file.read_text().split()) for file in folder.glob("*/count"))


def test_a_dry_run_prints_every_point_to_be_pasted(scalify, tmp_path):
    result = scalify("sweep", *GRID, "-n")
    assert result.code == 0
    assert result.out.splitlines() == [
        "scalify run model=gpt_nano precision=fp16 seed=0",
        "scalify run model=gpt_nano precision=fp16 seed=1",
        "scalify run model=gpt_nano precision=fp8 seed=0",
        "scalify run model=gpt_nano precision=fp8 seed=1",
    ]
    assert re.fullmatch(r"sweep precision-seed-\w{6}, 4 points: 4 new\n", result.err)
    assert not (tmp_path / "runs").exists()


def test_a_pasted_line_is_the_same_point(scalify):
    planned = json.loads(scalify("sweep", "name='a b',c", "seed=1,2", "-n", "--json").out)
    for point in planned["points"]:
        words = shlex.split(point["command"])
        assert words[:2] == ["scalify", "run"]
        assert signature(compose(words[2:])) == point["id"]


def test_a_dry_run_as_json_says_what_would_start(scalify, runs):
    scalify("sweep", *GRID, "--only", "precision=fp8")
    planned = json.loads(scalify("sweep", *GRID, "-n", "--json").out)
    assert planned["counts"] == {"new": 2, "done": 2}
    assert [(p["state"], p["start"]) for p in planned["points"]] == [
        ("new", True),
        ("new", True),
        ("done", False),
        ("done", False),
    ]
    assert planned["points"][0]["values"] == {"precision": "fp16", "seed": 0}


def test_a_sweep_runs_what_is_missing_and_says_so(scalify, runs):
    first = scalify("sweep", *GRID, "--name", "mine")
    assert first.code == 0
    assert first.err.startswith("4 points: 4 new\n")
    assert first.out.splitlines() == [
        "4 runs: 4 done",
        "details  scalify status mine",
        "results  scalify compare mine",
    ]
    again = scalify("sweep", "mine")
    assert (again.code, again.err) == (0, "4 points: 0 new, 4 done\n")
    assert counts() == [1, 1, 1, 1]


def test_what_is_started_could_have_been_typed(scalify, runs, tmp_path):
    scalify("sweep", *GRID, "--only", "precision=fp8 seed=1", "--wandb", "off")
    folder = str(tmp_path / "runs")
    words = ("model=gpt_nano", "precision=fp8", "seed=1")
    options = ("--runs-dir", folder, "--quiet", "--wandb", "off")
    assert runs.commands == [(sys.executable, "-m", "scalify_cli", "run", *words, *options)]


@pytest.mark.parametrize(("told", "group"), [(None, "mine"), ("other", "other")])
def test_the_runs_of_a_sweep_are_a_group_in_wandb(scalify, runs, monkeypatch, told, group):
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if told:
        monkeypatch.setenv("WANDB_RUN_GROUP", told)
    runs.scripts["seed=0"] = f'echo "$WANDB_RUN_GROUP" > group\n{DONE}'
    scalify("sweep", "seed=0", "model=gpt_nano", "--name", "mine")
    [found] = Path("runs").glob("*/group")
    assert found.read_text() == f"{group}\n"
    assert os.environ.get("WANDB_RUN_GROUP") == told


def test_points_that_are_the_same_run_are_run_once(scalify, runs):
    result = scalify("sweep", "tags=[a],[b]", "model=gpt_nano")
    assert result.err.splitlines()[:2] == [
        "note: 1 of the points are the same run as another",
        "1 point: 1 new",
    ]
    assert counts() == [1]


def test_a_sweep_leaves_its_definition_and_its_points(scalify, runs):
    scalify("sweep", "smoke", "--only", "seed=0 precision=fp32")
    sweep = read_sweep(Path("runs/sweeps/smoke"))
    assert len(sweep.points) == 12
    assert sweep.baseline == {"precision": "fp32", "scaling": "none"}
    assert sweep.axes == ["precision", "scaling", "seed"]
    states = [run.state for run in select(Path("runs"), ["smoke"])]
    assert states.count("done") == 1
    assert states.count("pending") == 11


def test_a_sweep_with_other_points_has_another_name(scalify, runs):
    scalify("sweep", "smoke", "--limit", "0", "tracking.wandb=off")
    scalify("sweep", "smoke", "--limit", "0", "seed=7")
    names = sorted(path.name for path in Path("runs/sweeps").iterdir() if path.is_dir())
    assert re.fullmatch(r"smoke smoke-\w{6}", " ".join(n for n in names if n[0] != "."))


def test_a_failed_run_is_counted_told_and_run_again_only_when_asked(scalify, runs):
    runs.scripts["precision=fp8"] = "echo 'error: no such thing' >&2; exit 2"
    first = scalify("sweep", *GRID)
    assert first.code == 1
    assert "4 runs: 2 failed, 2 done" in first.out
    assert f"failed {identity('seed=0')} precision=fp8 seed=0: no such thing" in first.err
    again = scalify("sweep", *GRID)
    assert again.code == 1
    told = "4 points: 0 new, 2 done, 2 failed (--retry-failed to run those again)\n"
    assert again.err == told
    runs.scripts.clear()
    last = scalify("sweep", *GRID, "--retry-failed")
    assert (last.code, counts()) == (0, [1, 1, 2, 2])


def test_a_run_that_is_killed_ends_as_failed(scalify, runs):
    runs.scripts["precision=fp8"] = f"{BEGUN}; kill -KILL $$"
    result = scalify("sweep", *GRID, "-j", "1")
    assert result.code == 1
    status = json.loads(Path(f"runs/{identity('seed=0')}/state.json").read_text())
    assert status["state"] == "failed"
    assert status["error"] == "killed by SIGKILL, perhaps out of memory"
    assert counts() == [1, 1, 1, 1]


def test_a_diverged_run_is_a_result_and_starts_over_when_asked(scalify, runs):
    runs.scripts["precision=fp8"] = DIVERGED
    first = scalify("sweep", *GRID)
    assert first.code == 0
    assert "4 runs: 2 diverged, 2 done" in first.out
    scalify("sweep", *GRID)
    assert counts() == [1, 1, 1, 1]
    runs.commands.clear()
    scalify("sweep", *GRID, "--retry-diverged")
    assert counts() == [1, 1, 2, 2]
    assert all("--force" in command for command in runs.commands)


def test_what_was_stopped_goes_on_and_exits_resumable(scalify, runs):
    runs.scripts["seed=1"] = """echo '{"state": "preempted"}' > state.json; exit 75"""
    assert scalify("sweep", *GRID).code == 75
    again = scalify("sweep", *GRID)
    assert again.err.startswith("4 points: 0 new, 2 done, 2 preempted; 2 to start\n")
    assert counts() == [1, 1, 2, 2]


def test_what_was_cancelled_stays_cancelled_until_asked(scalify, runs):
    runs.scripts["seed=1"] = """echo '{"state": "cancelled"}' > state.json; exit 75"""
    assert scalify("sweep", *GRID).code == 0
    scalify("sweep", *GRID)
    assert counts() == [1, 1, 1, 1]
    scalify("sweep", *GRID, "--retry-cancelled")
    assert counts() == [1, 1, 2, 2]


def test_force_runs_all_of_it_again(scalify, runs):
    scalify("sweep", *GRID)
    scalify("sweep", *GRID, "--force")
    assert counts() == [2, 2, 2, 2]
    assert sum("--force" in command for command in runs.commands) == 4


def test_the_first_seed_of_everything_comes_first(scalify, runs):
    scalify("sweep", *GRID, "--limit", "2")
    assert [command[4:7] for command in runs.commands] == [
        ("model=gpt_nano", "precision=fp16", "seed=0"),
        ("model=gpt_nano", "precision=fp8", "seed=0"),
    ]


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("precision=fp8", 2), ("precision=fp*", 4), ("precision=fp8 seed=0", 1), ("!seed=0", 2)],
)
def test_only_the_points_that_fit_a_pattern(scalify, pattern, count):
    assert len(scalify("sweep", *GRID, "-n", "--only", pattern).out.splitlines()) == count


def test_only_takes_ids_too(scalify):
    planned = json.loads(scalify("sweep", *GRID, "-n", "--json").out)["points"]
    out = scalify("sweep", *GRID, "-n", "--only", planned[2]["id"][:6]).out
    assert out == planned[2]["command"] + "\n"


def test_after_a_failure_nothing_more_is_started_if_so_asked(scalify, runs):
    runs.scripts["precision=fp16"] = "exit 1"
    assert scalify("sweep", *GRID, "-j", "1", "--fail-fast").code == 1
    assert counts() == [1]


def test_points_that_cannot_run_are_listed_with_reasons(scalify, runs):
    words = ("precision=fp8", "trainer.sequence_length=64,300,400", "model=gpt_nano")
    result = scalify("sweep", *words)
    assert result.code == 2
    assert result.err.splitlines() == [
        "not possible: trainer.sequence_length=300 is longer than model.context=256",
        "  precision=fp8 model=gpt_nano trainer.sequence_length=300",
        "not possible: trainer.sequence_length=400 is longer than model.context=256",
        "  precision=fp8 model=gpt_nano trainer.sequence_length=400",
        "error: 2 points cannot be run",
        "hint: see the reasons above; --skip-invalid leaves them out",
    ]
    assert counts() == []
    assert scalify("sweep", *words, "--skip-invalid").code == 0
    assert counts() == [1]


def test_a_recipe_that_refuses_its_scaling_is_not_possible(scalify, monkeypatch):
    from scalify_cli import precision
    from scalify_cli.errors import UserError

    def refuse(precision, scaling):
        if precision.name == "fp8" and not scaling.propagates:
            raise UserError("fp8 needs scales", "use scaling=scalify")

    monkeypatch.setattr(precision, "Policy", refuse)
    result = scalify("sweep", "precision=fp16,fp8", "scaling=none,scalify", "-n")
    assert result.code == 2
    assert len(result.out.splitlines()) == 3
    assert result.err.splitlines()[1:] == [
        "not possible: fp8 needs scales",
        "  precision=fp8 scaling=none",
        "error: 1 point cannot be run",
        "hint: use scaling=scalify; --skip-invalid leaves them out",
    ]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["smok"], "there is no sweep 'smok'", "did you mean 'smoke'?"),
        (["./mine.yaml"], "mine.yaml cannot be read: No such file", "check the path"),
        (["seed=0,1", "--name", "a/b"], "'a/b' is no name for a sweep", "use letters"),
        (["seed=0,1", "--gpus", "0,0"], "--gpus 0,0 names no GPU, or one twice", "--gpus 0,1"),
        (["seed=0,1", "launcher=slurm", "--gpus", "0"], "SLURM chooses", "launcher.gpus=1"),
        (["seed=0,1", "launcher=slurm", "--gpus", "0", "-n"], "SLURM chooses", "launcher.gpus=1"),
        (["precison=fp8,fp16"], "2 points cannot be run", "see the reasons above"),
        (
            ["precison=fp8", "--skip-invalid"],
            "1 point cannot be run, and there is no other",
            "did you mean 'precision'?",
        ),
        ([], "this sweep names no key and no value", "or the name of a sweep"),
        ([*GRID, "--only", "precison=fp8"], "no point fits 'precison=fp8'", "mean 'precision'?"),
        ([*GRID, "--only", "!seed=10"], "no point fits 'seed=10'", "did you mean 'seed=1'?"),
        ([*GRID, "--only", "seed=0 seed=1"], "no point fits 'seed=0 seed=1'", "see -n"),
        ([*GRID, "--only", "zzz"], "no point fits 'zzz'", "the beginning of an id"),
        (["launcher=local,slurm"], "1 point cannot be run", "give one launcher to all of them"),
    ],
)
def test_a_mistake_is_said_before_anything_starts(scalify, words, message, hint):
    result = scalify("sweep", *words)
    assert result.code == 2
    error, advice = result.err.splitlines()[-2:]
    assert message in error
    assert hint in advice
    assert not Path("runs").exists()


def test_points_of_one_sweep_share_a_launcher(scalify, runs):
    Path("mine.yaml").write_text("zip: [{seed: [0, 1], launcher: [local, slurm]}]\n")
    result = scalify("sweep", "./mine.yaml")
    assert result.code == 2
    assert "error: the points of this sweep name different launchers\n" in result.err
    assert counts() == []


def test_a_dry_run_refuses_two_launchers_too(scalify):
    Path("mine.yaml").write_text("zip: [{seed: [0, 1], launcher: [local, slurm]}]\n")
    result = scalify("sweep", "./mine.yaml", "-n")
    assert (result.code, len(result.out.splitlines())) == (2, 2)
    assert "error: the points of this sweep name different launchers\n" in result.err


@pytest.mark.parametrize("words", [["-n"], []])
def test_what_counts_once_is_noted(scalify, runs, words):
    result = scalify("sweep", "seed=0", "seed=0,1", "tags=[a],[b]", "model=gpt_nano", *words)
    assert result.err.splitlines()[:2] == [
        "note: seed is given twice; the last one counts",
        "note: 2 of the points are the same run as another",
    ]


@pytest.mark.parametrize("words", [["-n"], []])
def test_a_name_is_not_given_to_other_points(scalify, runs, words):
    scalify("sweep", "seed=0,1", "model=gpt_nano", "--name", "mine")
    result = scalify("sweep", "seed=1,2", "model=gpt_nano", "--name", "mine", *words)
    assert result.code == 2
    assert result.err.splitlines()[-2:] == [
        "error: 1 of the points that sweep mine has are not in this one",
        "hint: another --name keeps both",
    ]
    assert len(read_sweep(Path("runs/sweeps/mine")).points) == 2
    more = scalify("sweep", "seed=0,1,2", "model=gpt_nano", "--name", "mine")
    assert (more.code, more.err.splitlines()[0]) == (0, "3 points: 1 new, 2 done")


def test_points_that_a_sweep_s_file_has_lost_are_noted(scalify, runs):
    for seeds in ([0, 1], [1]):
        Path("mine.yaml").write_text(f"grid: {{seed: {seeds}}}\nbase: [model=gpt_nano]\n")
        result = scalify("sweep", "./mine.yaml")
    note = "note: 1 of the points that sweep mine has are not in it any more; their runs are kept"
    assert (result.code, result.err.splitlines()[0]) == (0, note)


def test_own_sweeps_are_found_by_name_and_by_file(scalify):
    Path("sweeps").mkdir()
    Path("sweeps/mine.yaml").write_text("grid: {seed: [0, 1]}\n")
    by_name, by_file = scalify("sweep", "mine", "-n"), scalify("sweep", "sweeps/mine.yaml", "-n")
    assert by_name.out == by_file.out == "scalify run seed=0\nscalify run seed=1\n"
    assert by_name.err == by_file.err == "sweep mine, 2 points: 2 new\n"


@pytest.mark.parametrize(("answer", "started"), [("y\n", 51), ("n\n", 0)])
def test_above_fifty_points_a_person_is_asked(scalify, runs, monkeypatch, answer, started):
    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda *_: answer)

    launched: list[int] = []
    monkeypatch.setattr(sweeping, "launch", lambda p, *_: launched.append(len(p.wanted)) or 0)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: confirmed(answer))
    code = execute(["sweep", "seed=range(0,51)", "model=gpt_nano"])
    assert sum(launched) == started
    assert code == (0 if started else 130)


def confirmed(answer: str) -> bool:
    import typer

    if answer != "y\n":
        raise typer.Abort
    return True


def test_nobody_is_asked_where_there_is_no_terminal(scalify, runs, monkeypatch):
    launched: list[int] = []
    monkeypatch.setattr(sweeping, "launch", lambda p, *_: launched.append(len(p.wanted)) or 0)
    assert scalify("sweep", "seed=range(0,51)", "model=gpt_nano").code == 0
    assert launched == [51]


def test_json_at_the_end_has_every_point(scalify, runs):
    runs.scripts["precision=fp8"] = "exit 1"
    result = scalify("sweep", *GRID, "--json")
    found = json.loads(result.out)
    assert found["exit_code"] == result.code == 1
    assert [point["state"] for point in found["points"]] == ["done", "done", "failed", "failed"]
    assert found["points"][0]["metrics"] == {"val/loss": 4.5}


def sweep_process(*words: str) -> subprocess.Popen:
    """``scalify sweep`` in a process of its own, with shells for runs."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.cli import test_sweep
from scalify_cli.cli import sweeping
from scalify_cli.cli.app import execute
from scalify_cli.cli.folders import shared_locks
fake = test_sweep.Runs()
fake.scripts["model=gpt_nano"] = {WAITS!r}
sweeping.task = fake.task
sys.exit(execute(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "sweep", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


WAITS = f"""{BEGUN}
trap 'echo "{{\\"state\\": \\"preempted\\"}}" > state.json; exit 75' TERM
while [ ! -e go ]; do sleep 0.02; done
{DONE}"""


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def running() -> list[Path]:
    paths = [path.parent for path in Path("runs").glob("*/state.json")]
    return [path for path in paths if read_run(path).state == "running"]


def test_a_sweep_that_is_killed_loses_nothing_and_runs_nothing_twice(scalify):
    process = sweep_process(*GRID, "-j", "2")
    wait_until(lambda: len(running()) == 2)
    process.kill()
    process.communicate()
    again = sweep_process(*GRID, "-j", "2")
    assert again.stderr is not None
    assert again.stderr.readline() == "4 points: 2 new, 2 running\n"
    for path in running():
        (path / "go").touch()
    wait_until(lambda: len(list(Path("runs").glob("*/count"))) == 4)
    wait_until(lambda: len(running()) == 2)
    for path in running():
        (path / "go").touch()
    again.communicate()
    assert again.returncode == 0
    assert counts() == [1, 1, 1, 1]


def test_a_sweep_waits_for_runs_that_another_has_started(scalify):
    process = sweep_process(*GRID, "-j", "2", "--only", "seed=0")
    wait_until(lambda: len(running()) == 2)
    process.kill()
    process.communicate()
    again = sweep_process(*GRID, "--only", "seed=0")
    assert again.stderr is not None
    assert again.stderr.readline() == "2 points: 0 new, 2 running\n"
    assert again.stderr.readline().startswith("waiting for ")
    assert again.poll() is None
    for path in running():
        (path / "go").touch()
    assert again.communicate()
    assert again.returncode == 0
    assert counts() == [1, 1]


def test_two_people_cannot_start_the_same_sweep_at_once(scalify, runs):
    process = sweep_process(*GRID, "-j", "1", "--name", "ours")
    wait_until(lambda: len(running()) == 1)
    result = scalify("sweep", *GRID, "--name", "ours")
    assert result.code == 2
    here = f"process {process.pid} on {os.uname().nodename}"
    assert f"error: sweep ours is already being run by {here}" in result.err
    assert "hint: follow it with `scalify status ours -w`" in result.err
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert counts() == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_first_signal_stops_the_sweep_with_checkpoints(scalify, number, code):
    process = sweep_process(*GRID, "-j", "1")
    wait_until(lambda: len(running()) == 1)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "stopping: 1 running write a checkpoint; again kills them\n" in err
    assert [
        read_run(path).state for path in Path("runs").glob("*") if (path / "count").exists()
    ] == ["preempted"]
    assert counts() == [1]


def test_a_run_that_was_killed_is_preempted_once_all_its_processes_are_gone(tmp_path, monkeypatch):
    path = tmp_path / "aaaa1111"
    mark(path, "running", host=os.uname().nodename, pid=os.getpid())
    lock = take_lock(path / LOCK)
    monkeypatch.setattr(follow.time, "sleep", lambda seconds: lock.close())
    ended = Event("ended", Task(path.name, ("x",), path), -9, message="killed by SIGKILL")
    found = follow.settled(ended, ended.task, stopping=True)
    assert (found.state, found.error) == ("preempted", "killed by SIGKILL")


def test_a_gpu_of_another_sweeps_run_is_left_to_it(scalify, runs, session_cache):
    runs.scripts["model=gpt_nano"] = f"echo $CUDA_VISIBLE_DEVICES > gpu; {DONE}"
    folder = shared_locks()
    assert folder is not None and folder.is_relative_to(session_cache)
    [place] = places(Queue(gpus=("test-0",), locks=folder), 1, folder)
    with place.taken():
        result = scalify("sweep", *GRID, "--gpus", "test-0,test-1", "-j", "1")
    assert result.code == 0
    assert {file.read_text() for file in Path("runs").glob("*/gpu")} == {"test-1\n"}


def test_two_real_points_end_to_end(tmp_path, session_cache):
    def sweep():
        command = [sys.executable, "-m", "scalify_cli", "sweep", "precision=fp32,fp8", *TINY]
        return subprocess.run(
            [*command, "--wandb", "off"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    first = sweep()
    assert (first.returncode, first.stderr.splitlines()[0]) == (0, "2 points: 2 new")
    assert first.stdout.startswith("2 runs: 2 done\n")
    found = [read_run(path) for path in (tmp_path / "runs").iterdir() if path.name != "sweeps"]
    assert [(run.state, run.step) for run in found] == [("done", 2), ("done", 2)]
    again = sweep()
    assert (again.returncode, again.stderr) == (0, "2 points: 0 new, 2 done\n")
