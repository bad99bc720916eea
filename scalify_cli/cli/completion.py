"""The completion scripts of the shells; each asks ``scalify _complete`` and shows the answer.

Bash splits words at ``=`` (COMP_WORDBREAKS), so the script hands over the whole line and takes
back only what follows the last break.
"""

from enum import StrEnum
from typing import Annotated

import typer

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
    return 0
}
compdef _scalify scalify
"""
FISH = r"""complete -c scalify -f -a '(scalify _complete (commandline -cp) 2>/dev/null)'
complete -c scalify -l runs-dir -l config-dir -r -F
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
