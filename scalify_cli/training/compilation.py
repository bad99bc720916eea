"""JAX's persistent compilation cache, bounded, and mended after a process was killed."""

from pathlib import Path

import jax
from filelock import FileLock, Timeout

_MOST_BYTES = 2**30
_LOCK_SECONDS = 10.0


def persist_compilation(folder: Path) -> None:
    """Keep compiled programs in ``folder``, at most ``_MOST_BYTES`` of them.

    Call before the first compilation. A folder that the user has chosen for JAX is left to JAX,
    and one that cannot be written means compiling anew.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is not None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_torn(folder)
    except (OSError, Timeout):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _remove_torn(folder: Path) -> None:
    """Remove what a killed process had not finished: JAX writes an entry, then its time of use.

    JAX neither replaces nor evicts such an entry, it fails over it each time.
    """
    with FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(f"{entry.name.removesuffix('-cache')}-atime").exists():
                entry.unlink()
