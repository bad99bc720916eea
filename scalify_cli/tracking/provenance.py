"""What made this run: versions, devices, source revision, command. Never environment values."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "scalify-cli",
    "jax",
    "jaxlib",
    "ml_dtypes",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "hydra-core",
    "tokenizers",
    "wandb",
)
PATCH_LIMIT = 4 * 2**20  # bytes
_GIT_SECONDS = 20.0


def environment(devices: Sequence[str], argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """The content of ``env.json``.

    Args:
        devices: descriptions of the devices in use.
        argv: the command, as in ``sys.argv``.
        folder: where the command was typed.
    """
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "host": platform.node(),
        "devices": list(devices),
        "git": revision(folder),
        "command": [Path(argv[0]).name, *argv[1:]] if argv else [],
        "folder": str(folder),
        "executable": sys.executable,
    }


def patch(folder: Path) -> bytes:
    """What ``git apply`` needs on top of the recorded revision; empty outside a repository.

    Longer than ``PATCH_LIMIT``, it is replaced by a line that says so: half a patch misleads.
    """
    difference = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    if len(difference) > PATCH_LIMIT:
        return f"# left out: the difference is {len(difference)} bytes long\n".encode()
    return difference


def revision(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository around a folder, and whether it was changed since."""
    sha = _git(folder, "rev-parse", "HEAD").decode().strip()
    if not sha:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "dirty": bool(status.strip())}


def _versions() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> bytes:
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""
