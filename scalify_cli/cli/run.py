"""``scalify run``: one point of the grid, from words to a run directory."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalify_cli.cli.detached import already_ended, elsewhere, hand_over, is_requeued
from scalify_cli.cli.errors import explain, is_disk_full
from scalify_cli.cli.folders import check_writable
from scalify_cli.cli.live import display
from scalify_cli.cli.options import (
    RUNS,
    Cfg,
    ConfigDir,
    Detach,
    Json,
    Request,
    RunsDir,
    Verbose,
    WandbOption,
    Words,
    print_json,
)
from scalify_cli.cli.summary import closing_lines, peak_memory, results
from scalify_cli.cli.text import columns
from scalify_cli.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from scalify_cli.experiment import Outcome


DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Say what would run, and stop.")]
CfgOption = Annotated[Cfg | None, typer.Option("--cfg", help="Print the configuration, and stop.")]
Force = Annotated[bool, typer.Option("--force", help="Start over, even when done.")]
Fail = Annotated[bool, typer.Option("--fail-on-diverge", help="Exit 1 when the loss diverges.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no closing table.")]


_REFUSED = 2
_EXIT_CODES = {"failed": 1, "preempted": 75, "cancelled": 75}


def run(
    words: Words = None,
    dry_run: DryRun = False,
    cfg: CfgOption = None,
    force: Force = False,
    detach: Detach = False,
    json: Json = False,
    runs_dir: RunsDir = RUNS,
    wandb: WandbOption = None,
    fail_on_diverge: Fail = False,
    config_dir: ConfigDir = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Train one model: scalify run precision=fp8 model=gpt_small."""
    from scalify_cli.config import compose

    mode = wandb.value if wandb else None
    request = Request(list(words or []), runs_dir, config_dir, json, quiet, force, mode, detach)
    config = compose(request.overrides, config_dir)
    _note(request, verbose)
    if cfg is not None:
        return _print_config(config, cfg, config_dir)
    if dry_run:
        return _print_plan(config, request)
    if detach or elsewhere(config):
        state = hand_over(config, request)
        code = _EXIT_CODES.get(state, 0)
    elif _splits(config, request):
        return _run_together(config, request)
    else:
        outcome = _run(config, request)
        state, code = outcome.state, outcome.exit_code
    return 1 if fail_on_diverge and state == "diverged" else code


def _splits(config: "DictConfig", request: Request) -> bool:
    """Whether this process starts others that train; a run that has ended needs none."""
    from scalify_cli.config import signature
    from scalify_cli.launch.distributed import place

    if config.launcher.get("processes", 1) == 1 or place() is not None:
        return False
    ended = _known_state(request.runs_dir / signature(config)) in ("done", "diverged")
    return request.force or not ended


def _run_together(config: "DictConfig", request: Request) -> int:
    """One run in several processes of this command; says what the first of them cannot."""
    from scalify_cli.config import signature
    from scalify_cli.launch.processes import run_together
    from scalify_cli.tracking.run_directory import end_lost_run, mark, read_status

    check_writable(request.runs_dir)
    path = request.runs_dir / signature(config)
    command = [sys.executable, "-m", "scalify_cli", *sys.argv[1:]]
    code, lost = run_together(command, config.launcher.processes)
    if not lost and read_status(path).get("state") == "running":  # told twice to stop
        mark(path, "preempted")
    if lost and (lost.rank or lost.killed) and code != _REFUSED:  # the first has said why
        sys.stderr.write(lost.said)
        end_lost_run(path, lost.message, ("running", "failed"))
        raise UserError(lost.message, "the same command goes on from the last checkpoint", code)
    return code


def _run(config: "DictConfig", request: Request) -> "Outcome":
    check_writable(request.runs_dir)
    request = _own_part(request)
    latest: dict[str, Any] = {}
    with _explaining(config, request.runs_dir, latest):
        outcome = _train(config, request, latest)
    _print_outcome(outcome, latest, request)
    return outcome


def _own_part(request: Request) -> Request:
    """The first of a run's processes speaks for all."""
    from scalify_cli.launch.distributed import place

    here = place()
    return replace(request, quiet=True, json=False) if here and here.rank else request


def _train(config: "DictConfig", request: Request, latest: dict[str, Any]) -> "Outcome":
    steps, every = config.trainer.get("steps", 0), config.trainer.get("log_every", 1)
    with display(steps=steps, every=every, json=request.json, quiet=request.quiet) as shown:
        from scalify_cli import experiment

        def on_record(record: dict[str, Any]) -> None:
            if "event" not in record:
                latest.update(record)
            shown.show(record)

        return experiment.run(
            config,
            request.overrides,
            request.runs_dir,
            force=request.force and not is_requeued(),
            wandb=request.wandb,
            on_record=on_record,
        )


def _note(request: Request, verbose: bool) -> None:
    from scalify_cli.config.catalogue import folders
    from scalify_cli.config.overrides import repeated

    for key in repeated(request.overrides):
        print(f"note: {key} is given twice; the last one counts", file=sys.stderr)
    if verbose:
        searched = ", ".join(map(str, folders(request.config_dir)))
        print(f"note: options come from {searched}", file=sys.stderr)


def _print_config(config: "DictConfig", how: Cfg, config_dir: Path | None) -> int:
    from scalify_cli.config import difference, to_yaml
    from scalify_cli.config.identity import plain

    if how is Cfg.json:
        print_json(plain(config))
    elif how is Cfg.full:
        typer.echo(to_yaml(config), nl=False)
    else:
        for word in difference(config, config_dir):
            typer.echo(word)
    return 0


def _print_plan(config: "DictConfig", request: Request) -> int:
    from scalify_cli.config import difference, signature

    identity = signature(config)
    path = request.runs_dir / identity
    words = difference(config, request.config_dir)
    state, amounts = _known_state(path), _amounts(config)
    if request.json:
        print_json({"id": identity, "path": path, "state": state, "overrides": words, **amounts})
        return 0
    rows = [
        ("run", identity),
        ("directory", f"{path} ({state or 'new'})"),
        ("command", shlex.join(["scalify", "run", *words])),
        *((key.replace("_", " "), f"{value:,}") for key, value in amounts.items()),
    ]
    typer.echo("\n".join(columns(rows)))
    return 0


def _amounts(config: "DictConfig") -> dict[str, int]:
    trainer = config.trainer
    names = ("steps", "batch_size", "sequence_length")
    if not all(isinstance(trainer.get(name), int) for name in names):
        return {}
    per_step = trainer.batch_size * trainer.sequence_length
    return {
        "steps": trainer.steps,
        "tokens_per_step": per_step,
        "tokens": per_step * trainer.steps,
    }


def _known_state(path: Path) -> str | None:
    from scalify_cli.report.runs import read_run

    return read_run(path).state if (path / "state.json").is_file() else None


@contextmanager
def _explaining(config: "DictConfig", runs_dir: Path, latest: dict[str, Any]) -> Iterator[None]:
    """Whatever stops a run says where its log is; once steps were taken, the exit code is 1."""
    from scalify_cli.config import signature

    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except Exception as error:
        problem = explain(error)
        log = runs_dir / signature(config) / "log.txt"
        code = 1 if latest else problem.exit_code
        named = isinstance(error, OSError) or is_disk_full(error)
        hint = problem.hint if named or not log.exists() else f"see {log}; -v prints the traceback"
        raise UserError(problem.message, hint, code) from error


def _print_outcome(outcome: "Outcome", latest: dict[str, Any], request: Request) -> None:
    memory = {} if outcome.already_done else {"peak_memory_bytes": peak_memory()}
    found = results({**latest, **memory, **outcome.summary})
    if request.json:
        about = {"id": outcome.id, "path": outcome.path, "state": outcome.state}
        codes = {"already_done": outcome.already_done, "exit_code": outcome.exit_code}
        print_json({**about, **codes, **found, "summary": outcome.summary})
    elif not request.quiet:
        typer.echo("\n".join(closing_lines(_headline(outcome), found, outcome.id, outcome.path)))


def _headline(outcome: "Outcome") -> str:
    if outcome.already_done:
        return already_ended(outcome)
    return f"{outcome.state} {outcome.id}"
