"""``scalify configs``: what there is to choose from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scalify_cli.cli.options import ConfigDir, Json, Verbose, print_json
from scalify_cli.cli.text import columns
from scalify_cli.config import catalogue
from scalify_cli.errors import UserError


def configs(
    what: Annotated[
        str | None, typer.Argument(metavar="[GROUP[=OPTION]]", show_default=False)
    ] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """List groups, the options of a group, or what one option sets."""
    if what is None:
        _print_groups(config_dir, json)
    elif "=" in what:
        _print_option(*_known(what, config_dir), config_dir, json)
    else:
        _print_options(_known_group(what), config_dir, json)
    return 0


def _print_groups(config_dir: Path | None, json: bool) -> None:
    usual = catalogue.defaults(config_dir)
    found = {group: catalogue.options(group, config_dir) for group in catalogue.GROUPS}
    if json:
        print_json({g: {"default": usual[g], "options": known} for g, known in found.items()})
        return
    rows = [(group, _starred(known, usual[group])) for group, known in found.items()]
    typer.echo("\n".join(columns([("GROUP", "OPTIONS (* is the default)"), *rows])))


def _print_options(group: str, config_dir: Path | None, json: bool) -> None:
    usual = catalogue.defaults(config_dir)[group]
    known = catalogue.options(group, config_dir)
    about = {option: catalogue.describe(group, option, config_dir) for option in known}
    if json:
        print_json(about)
        return
    rows = [(f"{group}={o}{'*' if o == usual else ''}", text) for o, text in about.items()]
    typer.echo("\n".join(columns(rows)))


def _print_option(group: str, option: str, config_dir: Path | None, json: bool) -> None:
    path = catalogue.option_path(group, option, config_dir)
    assert path is not None
    if json:
        print_json(_content(path))
    else:
        typer.echo(path.read_text("utf-8"), nl=False)


def _content(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text("utf-8"))


def _known_group(group: str) -> str:
    if group not in catalogue.GROUPS:
        hint = catalogue.did_you_mean(group, catalogue.GROUPS)
        raise UserError(f"there is no group '{group}'", hint)
    return group


def _known(what: str, config_dir: Path | None) -> tuple[str, str]:
    group, _, option = what.partition("=")
    known = catalogue.options(_known_group(group), config_dir)
    if option not in known:
        hint = catalogue.did_you_mean(option, known)
        raise UserError(f"{group} has no option '{option}'", hint)
    return group, option


def _starred(known: list[str], usual: str) -> str:
    return " ".join(f"{option}*" if option == usual else option for option in known)
