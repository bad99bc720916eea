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

from scalify_cli.cli.completion import BASH

ANSWERS = {
    "scalify r": ["run"],
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
    "scalify run nothing=": [],
    "scalify nothing ": [],
    "scalify run --runs-dir ": [],
}


@pytest.mark.parametrize("line", ANSWERS)
def test_candidates(scalify, runs_dir, line):
    assert scalify("_complete", line).out.split() == ANSWERS[line]


def test_commands_are_all_offered(scalify):
    commands = scalify("_complete", "scalify ").out.split()
    assert commands == ["completion", "configs", "doctor", "logs", "ls", "run", "show"]


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


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("scalify run precision=fp3\t", "precision=fp32"),
        ("scalify run precis\t", "precision="),
        ("scalify run seed=1 scaling=n\t", "scaling=none"),
        ("scalify conf\t", "scalify configs"),
    ],
)
def test_a_real_bash_completes(program, tmp_path, typed, completed):
    (tmp_path / "rc").write_text(f"PS1='> '\nPATH={program.parent}:$PATH\n{BASH}\n")
    screen = _type_into_bash(tmp_path / "rc", typed, completed)
    assert completed in screen


def _type_into_bash(rc: Path, typed: str, awaited: str) -> str:
    """What bash echoes after the words are typed, up to what is awaited or twenty seconds."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="dumb", PYTHONPATH=os.pathsep.join(sys.path))
        os.execvp("bash", ["bash", "--noprofile", "--rcfile", str(rc), "-i"])
    _read_until(terminal, "> ")
    os.write(terminal, typed.encode())
    screen = _read_until(terminal, awaited)
    os.close(terminal)
    os.waitpid(child, 0)
    return screen


def _read_until(terminal: int, awaited: str) -> str:
    screen, end = "", time.monotonic() + 20
    while awaited not in screen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            screen += os.read(terminal, 4096).decode(errors="replace")
    return screen
