"""Completion answers from file names; bash's own splitting at ``=`` is undone."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ANSWERS = {
    "scalify ru": ["run"],
    "scalify run precision=f": ["precision=fp16", "precision=fp32", "precision=fp8"],
    "scalify run pre": ["precision="],
    "scalify run model=gpt_nano model.wi": ["model.width="],
    "scalify run data=hf data.te": ["data.text_field="],
    "scalify run --fo": ["--force"],
    "scalify run --wandb o": ["off", "offline", "online"],
    "scalify run --cfg ": ["diff", "full", "json"],
    "scalify configs scaling=": ["scaling=none", "scaling=scalify"],
    "scalify completion ": ["bash", "fish", "zsh"],
    "scalify show aaaa": ["aaaa1111", "aaaa2222"],
    "scalify logs @": ["@last"],
    "scalify cancel aaaa1111 b": ["bbbb3333"],
    "scalify diff --runs-dir absent ": ["@last"],
    "scalify compare aaaa1111 --by precision,s": ["precision,scaling", "precision,seed"],
    "scalify compare aaaa1111 --baseline precision=fp3": ["precision=fp32"],
    "scalify compare aaaa1111 -o ": ["csv", "json", "table"],
    "scalify status --state d": ["diverged", "done"],
    "scalify status --watch aaaa2": ["aaaa2222"],
    "scalify run nothing=": [],
    "scalify nothing ": [],
    "scalify sweep precision=fp16,fp3": ["precision=fp16,fp32"],
    "scalify sweep precision=fp16,bf16,fp8,": ["precision=fp16,bf16,fp8,fp32"],
    "scalify sweep smo": ["smoke"],
    "scalify retry --runs-dir runs aaaa1": ["aaaa1111"],
    "scalify run --runs-dir ": [],
}


@pytest.mark.parametrize("line", ANSWERS)
def test_candidates(scalify, runs_dir, line):
    assert scalify("_complete", line).out.split() == ANSWERS[line]


def test_commands_are_all_offered(scalify):
    commands = scalify("_complete", "scalify ").out.split()
    assert {"run", "sweep", "status", "show", "diff", "cancel", "retry", "compare"} <= {*commands}


def test_sweeps_are_offered_by_name(scalify, grid):
    assert scalify("_complete", "scalify status g").out.split() == ["grid"]
    assert scalify("_complete", "scalify sweep gr").out.split() == ["grid"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_what_their_shells_can_read(scalify, tmp_path, shell):
    result = scalify("completion", shell)
    assert result.code == 0 and "_complete" in result.out
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(result.out)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.fixture
def program(tmp_path) -> Path:
    """``scalify`` as a file on the PATH."""
    path = tmp_path / "bin" / "scalify"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nfrom scalify_cli.cli.app import main\nmain()\n")
    path.chmod(0o755)
    return path


TYPED = [
    ("scalify run precision=fp3\t", "precision=fp32"),
    ("scalify run precis\t", "precision="),
    ("scalify run seed=1 scaling=n\t", "scaling=none"),
    ("scalify conf\t", "scalify configs"),
    ("scalify show aaaa1\t", "aaaa1111"),
    ("scalify status gr\t", "scalify status grid"),
]
START = {"bash": ["--noprofile", "--rcfile", "{rc}", "-i"], "zsh": ["-i"]}
RC = {
    "bash": "PS1='> '\n{script}",
    "zsh": "PS1='> '\nunsetopt prompt_sp beep\nautoload -U compinit\ncompinit -u -D\n{script}",
}


@pytest.mark.parametrize("shell", [shell for shell in START if shutil.which(shell)])
@pytest.mark.parametrize(("typed", "completed"), TYPED)
def test_a_real_shell_completes(
    scalify, program, tmp_path, runs_dir, grid, shell, typed, completed
):
    script = f"PATH={program.parent}:$PATH\n{scalify('completion', shell).out}\n"
    rc = tmp_path / ".zshrc"
    rc.write_text(RC[shell].format(script=script))
    assert completed in _type_into(shell, rc, typed, completed)


def _type_into(shell: str, rc: Path, typed: str, awaited: str) -> str:
    """What a shell echoes after the words are typed, up to what is awaited or twenty seconds."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="dumb", PYTHONPATH=os.pathsep.join(sys.path), ZDOTDIR=str(rc.parent))
        os.execvp(shell, [shell, *(word.format(rc=rc) for word in START[shell])])
    _read_until(terminal, "> ")
    os.write(terminal, typed.encode())
    screen = _read_until(terminal, awaited)
    os.close(terminal)
    os.waitpid(child, 0)
    return screen


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("scalify run precision=fp3", ["precision=fp32"]),
        ("scalify run precis", ["precision="]),
        ("scalify show aaaa", ["aaaa1111", "aaaa2222"]),
        ("scalify status --runs-dir run", ["runs/"]),
    ],
)
@pytest.mark.parametrize("shell", [shell for shell in ["fish"] if shutil.which(shell)])
def test_a_real_fish_completes(scalify, program, tmp_path, runs_dir, shell, line, expected):
    script = f"set PATH {program.parent} $PATH\n{scalify('completion', shell).out}\n"
    done = subprocess.run(
        [shell, "--no-config", "-c", f"{script}complete -C '{line}'"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert [row.partition("\t")[0] for row in done.stdout.splitlines()] == expected


def _read_until(terminal: int, awaited: str) -> str:
    screen, end = "", time.monotonic() + 20
    while awaited not in screen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            screen += os.read(terminal, 4096).decode(errors="replace")
    return screen
