"""``scalify sweep``: a grid of runs, planned before it starts, and started where it stopped."""

from typing import Annotated

import typer

from scalify_cli.cli.folders import check_writable
from scalify_cli.cli.options import (
    RUNS,
    ConfigDir,
    Detach,
    FailFast,
    Gpus,
    Jobs,
    Json,
    RunsDir,
    SweepRequest,
    Verbose,
    WandbOption,
    Yes,
    gpu_names,
)

SweepWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME|FILE] KEY=VALUES...",
        help="A sweep, and what to change in it; or only keys and values: precision=fp16,fp8.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Print every point, and stop.")]
Name = Annotated[str | None, typer.Option("--name", help="What to call the sweep.")]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="PATTERN", help="Points such as 'precision=fp8* !seed=0'."),
]
Limit = Annotated[int | None, typer.Option("--limit", min=0, help="Start no more than this.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Failed ones too.")]
RetryDiverged = Annotated[bool, typer.Option("--retry-diverged", help="Diverged ones too.")]
RetryCancelled = Annotated[bool, typer.Option("--retry-cancelled", help="Cancelled ones too.")]
Force = Annotated[bool, typer.Option("--force", help="Start all over, even what is done.")]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="Leave out what cannot run.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


def sweep(
    words: SweepWords = None,
    dry_run: DryRun = False,
    jobs: Jobs = None,
    gpus: Gpus = None,
    name: Name = None,
    only: Only = None,
    limit: Limit = None,
    fail_fast: FailFast = False,
    retry_failed: RetryFailed = False,
    retry_diverged: RetryDiverged = False,
    retry_cancelled: RetryCancelled = False,
    force: Force = False,
    skip_invalid: SkipInvalid = False,
    detach: Detach = False,
    yes: Yes = False,
    json: Json = False,
    runs_dir: RunsDir = RUNS,
    wandb: WandbOption = None,
    config_dir: ConfigDir = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run a grid: scalify sweep precision=fp16,fp8 scaling=none,scalify model=gpt_nano."""
    from scalify_cli.cli.sweeping import sweep_points

    if not dry_run:
        check_writable(runs_dir)
    retry = {"failed": retry_failed, "diverged": retry_diverged, "cancelled": retry_cancelled}
    request = SweepRequest(
        words=tuple(words or ()),
        runs_dir=runs_dir,
        config_dir=config_dir,
        name=name,
        only=only,
        limit=limit,
        retry=frozenset(state for state, asked in retry.items() if asked),
        force=force,
        skip_invalid=skip_invalid,
        jobs=jobs,
        gpus=gpu_names(gpus),
        fail_fast=fail_fast,
        detach=detach,
        wandb=wandb.value if wandb else None,
        yes=yes,
        json=json,
        quiet=quiet,
    )
    return sweep_points(request, dry_run=dry_run)
