"""The ``scalify`` command. Nothing heavy is imported before a command asks for it."""

import sys
from collections.abc import Sequence

import typer

from scalify_cli.cli import (
    cancel,
    compare,
    configs,
    diff,
    doctor,
    logs,
    retry,
    rm,
    run,
    runs,
    show,
    status,
    sweep,
)
from scalify_cli.cli.candidates import candidates
from scalify_cli.cli.completion import completion
from scalify_cli.cli.errors import explain, is_verbose, print_error
from scalify_cli.launch.distributed import leave
from scalify_cli.launch.stopping import EXIT_CODES

app = typer.Typer(
    name="scalify",
    help="Train transformers in FP8 and FP16 with scales propagated end to end.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("sweep")(sweep.sweep)
app.command("ls")(runs.ls)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("compare")(compare.compare)
app.command("cancel")(cancel.cancel)
app.command("retry")(retry.retry)
app.command("rm")(rm.rm)
app.command("configs")(configs.configs)
app.command("doctor")(doctor.doctor)
app.command("completion")(completion)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("scalify-cli"))
        raise typer.Exit


@app.callback()
def _scalify(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Train transformers in FP8 and FP16 with scales propagated end to end."""


def main() -> None:
    """The console script."""
    code = execute(sys.argv[1:])
    if code not in (0, *EXIT_CODES.values()):
        leave(code)
    raise SystemExit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    if arguments and arguments[0] == "_complete":
        print("\n".join(candidates(" ".join(arguments[1:]), typer.main.get_command(app))))
        return 0
    try:
        code = typer.main.get_command(app)(
            list(arguments) or ["--help"], prog_name="scalify", standalone_mode=False
        )
    except (KeyboardInterrupt, Exception) as error:  # the outermost frame: nothing may escape
        problem = explain(error, arguments)
        print_error(problem, error if is_verbose(arguments) else None)
        return problem.exit_code
    return code if isinstance(code, int) else 0
