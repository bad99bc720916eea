"""Looking must be quick: only training imports jax, and nothing here imports wandb."""

import subprocess
import sys

import pytest

COMMANDS = [
    ["--help"],
    ["run", "--help"],
    ["--version"],
    ["_complete", "scalify run model="],
    ["completion", "bash"],
    ["configs"],
    ["configs", "model=gpt_nano"],
    ["ls"],
    ["show", "@last"],
    ["logs", "@last"],
    ["status"],
    ["diff", "aaaa1", "bbbb"],
    ["compare", "aaaa1", "bbbb"],
    ["cancel", "aaaa1"],
    ["sweep", "--help"],
]
CODE = """
import sys
from scalify_cli.cli.app import execute
assert execute(sys.argv[1:]) == 0
print("\\nLOADED", *sys.modules)
"""


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_looking_imports_nothing_heavy(runs_dir, arguments):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        cwd=runs_dir.parent,
        check=True,
    )
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert not {"jax", "wandb", "hydra", "orbax"} & loaded
