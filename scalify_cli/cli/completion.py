"""Completion of commands, options and ``group=option``, from file names alone.

Bash splits words at ``=`` (COMP_WORDBREAKS), so the script hands over the whole line and takes
back only what follows the last break.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from scalify_cli.config import catalogue
from scalify_cli.errors import UserError

BASH = r"""_scalify_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\n' word kept break
    word="${line##*[[:space:]]}"
    COMPREPLY=($("${COMP_WORDS[0]}" _complete "$line" 2>/dev/null))
    kept="$word"
    for break in = :; do
        [[ $COMP_WORDBREAKS == *"$break"* ]] && kept="${kept##*"$break"}"
    done
    COMPREPLY=("${COMPREPLY[@]#"${word%"$kept"}"}")
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0
}
complete -o default -F _scalify_complete scalify
"""
ZSH = r"""#compdef scalify
_scalify() {
    local -a found
    found=("${(@f)$("${words[1]}" _complete "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    (( ${#found} )) || { _files; return }
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${found:#*=}
}
compdef _scalify scalify
"""
FISH = r"""complete -c scalify -f -a '(scalify _complete (commandline -cp) 2>/dev/null)'
"""


class Shell(StrEnum):
    """The shells that are served."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


SCRIPTS = {Shell.bash: BASH, Shell.zsh: ZSH, Shell.fish: FISH}


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")]) -> int:
    """Print a shell's completion script, to be evaluated by it."""
    typer.echo(SCRIPTS[shell], nl=False)
    return 0


def candidates(line: str, command: Any) -> list[str]:
    """What may stand where the cursor is.

    Args:
        line: the command line up to the cursor, program name included.
        command: the Click group, asked for command and option names.
    """
    words = line.split()[1:]
    if not words or line[-1:].isspace():
        words.append("")
    *before, word = words
    if not before:
        found = list(command.commands) if not word.startswith("-") else ["--help", "--version"]
    elif word.startswith("-"):
        found = _flags(command, before[0])
    else:
        found = _values(before, word)
    return sorted(item for item in found if item.startswith(word))


def _flags(command: Any, name: str) -> list[str]:
    known = command.commands.get(name)
    return [flag for p in known.params for flag in p.opts if flag.startswith("-")] if known else []


def _values(before: list[str], word: str) -> list[str]:
    name = before[0]
    if before[-1] in ("--runs-dir", "--config-dir"):
        return []
    if before[-1] == "--wandb":
        return ["auto", "online", "offline", "off"]
    if before[-1] == "--cfg":
        return ["diff", "full", "json"]
    if name in ("run", "configs"):
        return _overrides(before[1:], word)
    if name in ("show", "logs"):
        return _run_ids(before)
    return [shell.value for shell in Shell] if name == "completion" else []


def _overrides(before: list[str], word: str) -> list[str]:
    key, equals, _ = word.partition("=")
    try:
        if equals:
            return [f"{key}={option}" for option in catalogue.options(key)]
        if "." in key:
            return _fields(before, key.partition(".")[0])
    except UserError:
        return []
    return [f"{name}=" for name in (*catalogue.GROUPS, *catalogue.SCALARS)]


def _fields(before: list[str], group: str) -> list[str]:
    if group not in catalogue.GROUPS:
        return []
    chosen = [word.partition("=")[2] for word in before if word.startswith(f"{group}=")]
    option = chosen[-1] if chosen else catalogue.defaults()[group]
    return [f"{group}.{key}=" for key in catalogue.fields(group, option)]


def _run_ids(before: list[str]) -> list[str]:
    named = before[before.index("--runs-dir") + 1] if "--runs-dir" in before[:-1] else None
    folder = Path(named or os.environ.get("SCALIFY_RUNS") or "runs")
    try:
        return ["@last", *(p.parent.name for p in folder.glob("*/state.json"))]
    except OSError:
        return []
