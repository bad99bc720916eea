"""``scalify run`` when the run lives elsewhere: in SLURM's queue, or in the background here."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from scalify_cli.cli.options import Request, print_json
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from scalify_cli.experiment import Outcome
    from scalify_cli.launch.task import Event, Task
    from scalify_cli.report.runs import RunInfo

JOBS = "jobs"  # in the runs' folder: scripts and logs of runs that belong to no sweep
_ENDED, _UNDER_WAY = ("done", "diverged"), ("pending", "running")


def elsewhere(config: "DictConfig") -> bool:
    """Whether this process is to submit the run rather than to be it."""
    from scalify_cli.config import build
    from scalify_cli.tracking.submission import submission

    launcher = build(config.launcher, "launcher")
    return getattr(launcher, "elsewhere", False) and submission() is None


def is_requeued() -> bool:
    """Whether this is a job's second start, or a later one."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def hand_over(config: "DictConfig", request: Request) -> str:
    """Start the run elsewhere, unless it is there already; wait for its end unless detached.

    Returns:
        The state that it is in then.
    """
    run = _present(config, request)
    if run.state in _ENDED and not request.force:
        _tell(run, request, already_ended(run))
        return run.state
    task, waits = _task(run, request), run.status and run.state in _UNDER_WAY
    if elsewhere(config):
        job_id = run.status.get("slurm_job_id") if waits else None
        _follow(_events(config, task, request, job_id), request)
    elif not waits:
        _start(task)
    run = _present(config, request)
    _tell(run, request, f"{run.state} {run.id}, see `scalify logs {run.id} -f`")
    return run.state


def already_ended(run: "RunInfo | Outcome") -> str:
    """What is said of a run that need not run."""
    return f"already {run.state} {run.id} (--force runs it again)"


def _follow(events: "Iterable[Event]", request: Request) -> None:
    try:
        for event in events:
            if event.kind == "submitted":
                _say(f"submitted as job {event.job_id}", request)
            elif event.kind != "submitting" and event.message:
                _say(event.message, request)
    except KeyboardInterrupt:
        hint = "`scalify cancel @last` ends it, the same command waits for it again"
        raise UserError("no longer waiting; the job goes on", hint, 130) from None


def _events(
    config: "DictConfig", task: "Task", request: Request, job_id: str | None
) -> "Iterator[Event]":
    """Of a new job, or of the one that there is already."""
    from scalify_cli.cli.recording import recorded
    from scalify_cli.config import build
    from scalify_cli.launch.task import Queue

    launcher = build(config.launcher, "launcher")
    if job_id is None:
        _remember(task, request)
        return recorded(launcher.launch([task], _folder(task), Queue(detach=request.detach)))
    return recorded([] if request.detach else launcher.follow({job_id: task}))


def _remember(task: "Task", request: Request) -> None:
    """The words that say where it is to run, which its own process is not told: for ``retry``."""
    folder = _folder(task)
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{word}\n" for word in request.overrides)
    (folder / "overrides.txt").write_text(text, "utf-8")


def _start(task: "Task") -> None:
    """In a session of its own, so that it outlives this terminal."""
    import subprocess

    from scalify_cli.tracking.run_directory import mark

    task.path.mkdir(parents=True, exist_ok=True)
    with (task.path / "log.txt").open("ab") as output:
        process = subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    facts = {"host": os.uname().nodename, "pid": process.pid, "started": None, "error": None}
    mark(task.path, "running", **facts)


def _task(run: "RunInfo", request: Request) -> "Task":
    from scalify_cli.launch.task import Task

    words = [word for word in request.overrides if not word.lstrip("+").startswith("launcher")]
    runs_dir = str(request.runs_dir.absolute())
    options = ["--runs-dir", runs_dir, "--quiet"]
    if request.config_dir:
        options += ["--config-dir", str(request.config_dir.absolute())]
    if request.wandb:
        options += ["--wandb", request.wandb]
    if request.force:
        options.append("--force")
    command = (sys.executable, "-m", "scalify_cli", "run", *words, *options)
    return Task(run.id, command, run.path)


def _present(config: "DictConfig", request: Request) -> "RunInfo":
    from scalify_cli.cli.states import true_states
    from scalify_cli.config import signature
    from scalify_cli.report.runs import read_run

    return true_states([read_run(request.runs_dir.absolute() / signature(config))])[0]


def _folder(task: "Task") -> Path:
    return task.path.parent / JOBS / task.id


def _tell(run: "RunInfo", request: Request, text: str) -> None:
    if request.json:
        print_json({"id": run.id, "path": run.path, "state": run.state, "error": run.error})
    elif not request.quiet:
        typer.echo(text)


def _say(text: str, request: Request) -> None:
    if not request.quiet:
        typer.echo(text, err=True)
