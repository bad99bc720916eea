"""One run of several processes on several nodes of a real cluster."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from night import LAUNCHER, WORDS, losses, scalify, until

from scalify_cli.report.runs import read_run

OWN = ("trainer.batch_size", "trainer.steps", "trainer.checkpoint_every")
RUN = [
    *(word for word in WORDS if not word.startswith(OWN)),
    *("trainer.batch_size=4", "trainer.accumulate=4", "trainer.checkpoint_every=50"),
]
FP8 = ["precision=fp8", "scaling=scalify", "trainer.steps=30"]
TOGETHER = [
    *LAUNCHER[:1],
    "launcher.poll_seconds=1",
    "launcher.nodes=2",
    "launcher.tasks_per_node=2",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    assert scalify("run", *RUN, *FP8, "--quiet", folder=folder).returncode == 0
    [path] = (folder / "runs").glob("????????")
    return losses(path)


def test_two_nodes_with_two_processes_each_give_the_losses_of_one(cluster, alone, tmp_path):
    done = scalify("run", *TOGETHER, *RUN, *FP8, folder=tmp_path)
    assert done.returncode == 0, scalify("logs", "@last", folder=tmp_path).stdout
    [path] = (tmp_path / "runs").glob("????????")
    assert losses(path) == alone
    assert json.loads((path / "state.json").read_text())["state"] == "done"


def test_a_lost_process_fails_the_run_and_the_next_start_goes_on(cluster, tmp_path):
    words = [*TOGETHER, *RUN, "trainer.steps=2000"]
    assert scalify("run", "-d", *words, folder=tmp_path).returncode == 0
    [path] = (tmp_path / "runs").glob("????????")

    def state() -> dict:
        return json.loads((path / "state.json").read_text())

    until(lambda: state()["state"] == "running" and state()["step"] > 60)
    os.kill(other_process(state()["pid"]), signal.SIGKILL)
    until(lambda: read_run(path).state == "failed")  # whether or not the writer could say so
    until(lambda: not cluster.client("squeue", "-h", "-o", "%i"))
    assert scalify("run", "-d", *words, folder=tmp_path).returncode == 0
    until(lambda: "resumed at step" in (path / "log.txt").read_text())
    assert scalify("cancel", path.name, folder=tmp_path).returncode == 0
    until(lambda: state()["state"] == "cancelled")


def other_process(writer: int) -> int:
    """A process of the same run that is not the one which writes its directory."""
    processes = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return next(x for x in processes if x != writer and whose(x) == whose(writer))


def whose(process: int) -> tuple:
    """What the processes of a run have in common, and no others."""
    folder = Path("/proc") / str(process)
    with suppress(OSError):
        variables = (folder / "environ").read_bytes().split(b"\0")
        mine = [x for x in variables if x.startswith((b"SLURM_JOB_ID=", b"SLURM_CONF="))]
        is_task = any(x.startswith(b"SLURM_PROCID=") for x in variables)
        if is_task:
            return (folder / "cmdline").read_bytes(), *sorted(mine)
    return (process,)
