"""Several processes as one run: first any command, then training itself."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scalify_cli.errors import UserError
from scalify_cli.launch import processes
from scalify_cli.launch.distributed import VARIABLE
from scalify_cli.launch.processes import run_together

SECONDS = 400
STEPS = 12
WORDS = [
    *("precision=fp8", "model=gpt_nano", "model.layers=1", "model.width=24"),
    *("data.tokenizer=bytes", f"trainer.steps={STEPS}", "trainer.batch_size=4"),
    *("trainer.accumulate=2", "trainer.sequence_length=32", "trainer.validate_every=6"),
    *("trainer.validation_batches=2", "trainer.observe_every=6", "trainer.checkpoint_every=2"),
    "trainer.log_every=1",
]
TOGETHER = "launcher.processes=2"


def python(code: str) -> list[str]:
    """A command that knows its ``rank``."""
    head = f"import os, signal, sys, time; rank = int(os.environ['{VARIABLE}'][0]); "
    return [sys.executable, "-c", head + code]


def test_all_end_well_together(capfd):
    code, lost = run_together(python("print('rank', rank); sys.stderr.write('said')"), 3)
    assert (code, lost) == (0, None)
    assert capfd.readouterr() == ("rank 0\n", "said")


@pytest.mark.parametrize("code", [75, 130])
def test_stopping_early_is_no_failure(code):
    assert run_together(python(f"sys.exit({code})"), 2) == (code, None)


def test_one_that_is_killed_ends_the_others(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    end = "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(600)"
    code, lost = run_together(python(end), 2)
    assert code == 1
    assert lost is not None
    assert (lost.rank, lost.killed) == (1, True)
    assert lost.message == "process 1 of 2 was killed by SIGKILL"


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
@pytest.mark.parametrize("deaf", [0, 1])
def test_one_that_a_signal_finds_at_its_start_has_not_failed(
    tmp_path, monkeypatch, number, code, deaf
):
    """The other catches it, and is killed after a while."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    up = tmp_path / "up"
    tell = f"""
if rank == {deaf}:
    signal.signal(signal.{number}, signal.SIG_IGN)
    while not os.path.exists({str(up)!r}): time.sleep(0.02)
    os.kill(os.getppid(), signal.{number})
else:
    signal.signal(signal.{number}, signal.SIG_DFL)
    open({str(up)!r}, "w").close()
time.sleep(600)"""
    assert run_together(python(tell), 2) == (code, None)


def test_what_a_failed_one_said_is_kept():
    failed = run_together(python("sys.exit('too bad' if rank else 0)"), 2)[1]
    assert failed is not None
    assert (failed.rank, failed.said) == (1, "too bad\n")


def test_an_exit_code_of_the_first_is_the_runs():
    assert run_together(python("sys.exit(2)"), 2)[0] == 2


def test_each_knows_the_others_and_where_to_meet(capfd):
    run_together(python(f"print(os.environ['{VARIABLE}'])"), 2)
    rank, _, address = capfd.readouterr().out.strip().partition("@")
    assert rank == "0/2"
    assert address.startswith("127.0.0.1:")


def test_each_holds_the_locks_that_this_process_was_given(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        assert run_together(python(f"os.fstat({lock.fileno()})"), 2) == (0, None)


def test_gpus_are_divided(monkeypatch, capfd):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,9")
    run_together(python("print(os.environ['CUDA_VISIBLE_DEVICES'])"), 2)
    assert capfd.readouterr().out == "3,5\n"
    with pytest.raises(UserError, match=r"launcher\.processes=8 asks for more GPUs than the 4"):
        run_together(python(""), 8)


LATE = """
from scalify_cli.launch.distributed import join, place
join(place())
import jax, numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scalify_cli.training.processes import compiled_by_all
mesh = Mesh(numpy.array(jax.devices()), "d")
every, rows = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((), "d"))
x = jax.make_array_from_callback((2,), rows, lambda index: numpy.arange(2.0)[index])
total, twice = (jax.jit(lambda x, n=n: n * x.sum(), out_shardings=every) for n in (1, 2))
time.sleep(32 * rank)
print(float(compiled_by_all(total)(x)), float(compiled_by_all(twice)(x)))
"""


def test_one_that_compiles_for_long_is_waited_for(capfd):
    """Gloo waits for 30 seconds, and would end the run."""
    assert run_together(python(LATE), 2) == (0, None)
    assert capfd.readouterr().out.endswith("1.0 2.0\n")


def start(runs_dir: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "scalify_cli", "run", *WORDS, *words, "--wandb", "off"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "--runs-dir", runs_dir], stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def strike(process: subprocess.Popen, step: int, number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal to the second process of a run once the first has printed ``step``."""
    assert process.stdout is not None
    read = []
    for line in process.stdout:
        read.append(line)
        if line.startswith(f"step={step} "):
            listed = subprocess.run(["pgrep", "-P", str(process.pid)], stdout=subprocess.PIPE)
            os.kill(int(listed.stdout.split()[1]), number)
            break
    code, out, err = finish(process)
    return code, "".join(read) + out, err


def status(path: Path) -> dict:
    return json.loads((path / "state.json").read_text())


def records(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def losses(path: Path, key: str = "train/loss") -> list[float]:
    return [line[key] for line in records(path) if key in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run in one process."""
    runs_dir = tmp_path_factory.mktemp("alone") / "runs"
    code, _, err = finish(start(runs_dir))
    assert code == 0, err
    [path] = runs_dir.iterdir()
    return path


def test_a_run_of_two_survives_a_lost_process_a_signal_and_a_change_of_number(alone, tmp_path):
    runs_dir = tmp_path / "runs"
    path = runs_dir / alone.name

    code, _, err = strike(start(runs_dir, TOGETHER), 3, signal.SIGKILL)
    assert code == 1
    assert "error: process 1 of 2 was killed by SIGKILL" in err
    assert (status(path)["state"], status(path)["error"]) == (
        "failed",
        "process 1 of 2 was killed by SIGKILL",
    )

    code, out, err = strike(start(runs_dir, TOGETHER), 5, signal.SIGTERM)
    assert (code, status(path)["state"]) == (75, "preempted"), err
    assert "resumed at step" in out
    stopped = status(path)["step"]
    assert stopped < STEPS
    assert f"{stopped:08d}" in {entry.name for entry in (path / "checkpoints").iterdir()}

    code, out, err = finish(start(runs_dir))
    assert (code, status(path)["state"]) == (0, "done"), err
    assert f"resumed at step {stopped}" in out
    assert status(path)["attempt"] == 3
    assert losses(path) == losses(alone)
    assert [sorted(line) for line in records(path)] == [sorted(line) for line in records(alone)]


def test_two_processes_give_the_losses_of_one(alone, tmp_path):
    code, out, err = finish(start(tmp_path / "runs", TOGETHER))
    assert code == 0, err
    path = tmp_path / "runs" / alone.name
    assert losses(path) == losses(alone)
    assert losses(path, "val/loss") == pytest.approx(losses(alone, "val/loss"), rel=1e-6)
    assert [file.name for file in sorted((path / "checkpoints").iterdir())] == [
        f"{STEPS - 2:08d}",
        f"{STEPS:08d}",
    ]
    code, out, _ = finish(start(tmp_path / "runs", TOGETHER))
    assert (code, out.split()[:3]) == (0, ["already", "done", alone.name])


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    words = ["trainer.batch_size=3", "trainer.accumulate=1", TOGETHER]
    code, _, err = finish(start(tmp_path / "runs", *words))
    assert code == 2
    assert err.splitlines()[-2:] == [
        "error: trainer.batch_size=3 does not split over 2 devices",
        "hint: choose a trainer.batch_size that is a multiple of 2, or another number of processes",
    ]
