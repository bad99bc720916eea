"""A sweep on a cluster on which everything goes wrong in one night."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster import NODES, Cluster
from daemons import happens, kill

STEPS = 9000  # long enough for all to happen while four runs train
WORDS = [
    "precision=fp32",
    "scaling=none",
    "model=gpt_nano",
    "model.width=16",
    "model.layers=1",
    "model.heads=1",
    "data.tokenizer=bytes",
    f"trainer.steps={STEPS}",
    "trainer.batch_size=1",
    "trainer.sequence_length=16",
    "trainer.validate_every=0",
    "trainer.validation_batches=1",
    "trainer.observe_every=0",
    "trainer.checkpoint_every=2000",
    "tracking.wandb=off",
]
LAUNCHER = ["launcher=slurm", "launcher.cpus=2", "launcher.poll_seconds=1"]
SEEDS = "seed=range(0,6)"
LONG = 600  # seconds in which anything that is to happen has happened, on a busy machine


def scalify(*words: str, folder: Path) -> subprocess.CompletedProcess:
    """One command line, to its end."""
    command = [sys.executable, "-m", "scalify_cli", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=LONG, check=False
    )


def until(what: Callable[[], object]) -> None:
    """Wait for it."""
    assert happens(what, LONG), f"has not happened in {LONG} s"


def losses(path: Path) -> dict[int, float]:
    """The training loss of every step; a step that was made again counts once."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {it["step"]: it["train/loss"] for it in records if "train/loss" in it}


@dataclass
class Night:
    """One sweep of six points on one cluster, from its first start to its last."""

    cluster: Cluster
    folder: Path
    stopped: set[int] = field(default_factory=set)

    def sweep(self, *words: str) -> list[str]:
        """The arguments of ``scalify``."""
        return ["sweep", *LAUNCHER, "launcher.partition=low", *WORDS, SEEDS, "--name", "n", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess:
        return scalify(*words, folder=self.folder)

    def start(self, *words: str) -> subprocess.Popen:
        """A command line that goes on beside us."""
        command = [sys.executable, "-m", "scalify_cli", *words]
        out = (self.folder / "out").open("a")
        return subprocess.Popen(command, cwd=self.folder, stdout=out, stderr=out)

    @property
    def ids(self) -> list[str]:
        """The points' runs, by their seeds."""
        lines = (self.folder / "runs/sweeps/n/points.jsonl").read_text().splitlines()
        points = [json.loads(line) for line in lines]
        return [point["id"] for point in points]

    def path(self, seed: int) -> Path:
        return self.folder / "runs" / self.ids[seed]

    def written(self, seed: int) -> dict:
        """What the run's own file says."""
        return json.loads((self.path(seed) / "state.json").read_text())

    def is_training(self, seed: int) -> bool:
        """Whether it has made a step, and not the last one."""
        status = self.written(seed)
        return status["state"] == "running" and 0 < status["step"] < STEPS

    def node(self, seed: int) -> str:
        return self.cluster.client("squeue", "-h", "-j", self.job(seed), "-o", "%N")

    def job(self, seed: int) -> str:
        return self.written(seed)["slurm_job_id"]

    def states(self) -> list[str]:
        """What ``scalify status`` says, by seed."""
        runs = json.loads(self.run("status", "n", "--json").stdout)
        found = {run["id"]: run["state"] for run in runs}
        return [found[name] for name in self.ids]

    def happen(self) -> None:
        """Seeds 0 and 1 run on one node, 2 and 3 on the other, 4 and 5 wait for room."""
        first = self.start(*self.sweep())
        until((self.folder / "runs/sweeps/n/slurm-1/job.sbatch").exists)
        until(lambda: (self.path(5) / "state.json").exists())
        self.run("cancel", self.ids[5])
        until(lambda: all((self.path(seed) / "metrics.jsonl").exists() for seed in range(4)))
        until(lambda: sum(self.stop(seed) for seed in range(4)) == 4)
        here, there = self.node(1), self.node(3)
        assert {here, there} == set(NODES)
        self.cancel_and_kill_node(there)
        first.kill()
        self.signal(0, signal.SIGKILL)
        self.preempt(here)
        self.signal(3, signal.SIGCONT)
        self.cluster.start_node(there)
        self.second = self.run(*self.sweep())

    def stop(self, seed: int) -> bool:
        """Whether it trains and has been stopped: what is to happen to it cannot come too late."""
        if seed not in self.stopped and self.is_training(seed):
            self.signal(seed, signal.SIGSTOP)
            self.stopped.add(seed)
        return seed in self.stopped

    def signal(self, seed: int, number: int) -> None:
        kill(self.written(seed)["pid"], number)

    def cancel_and_kill_node(self, node: str) -> None:
        """Without accounting it is the daemon alone that dies, and the run's process goes on."""
        self.run("cancel", self.ids[2])
        self.signal(2, signal.SIGCONT)
        self.cluster.kill_node(node, jobs=self.cluster.accounting)

    def preempt(self, node: str) -> None:
        """A job of a better partition wants the whole node for a moment."""
        options = ["-p", "high", "-w", node, "--exclusive", "--wrap", "sleep 2"]
        job = self.cluster.client("sbatch", "--parsable", "--output=/dev/null", *options)
        until(lambda: self.job_state(self.job(1)) != "RUNNING")
        self.signal(1, signal.SIGCONT)
        until(lambda: self.job_state(job) in ("COMPLETED", ""))

    def job_state(self, job: str) -> str:
        words = ("squeue", "-h", "--states=all", "-j", job, "-o", "%T")
        return self.cluster.client(*words, check=False)
