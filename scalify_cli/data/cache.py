"""Folders that are either whole or not there.

An entry is built under a temporary name and renamed when done, so that a killed process leaves no
half of one. Its ``meta.json`` holds the size and SHA-256 of every other file and its own checksum,
so later damage is noticed. Processes that want the same entry at the same time wait for the first.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scalify_cli.errors import UserError

META = "meta.json"

Say = Callable[[str], None]


def cache_root(folder: str | None) -> Path:
    """``folder``, else ``$SCALIFY_CACHE``, ``$XDG_CACHE_HOME/scalify`` or ``~/.cache/scalify``."""
    chosen = folder or os.environ.get("SCALIFY_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "scalify"


def open_or_build(entry: Path, build: Callable[[Path], dict], say: Say) -> dict:
    """The meta of ``entry``, built first if it is missing or damaged.

    Args:
        entry: the folder.
        build: fills the (empty) folder it is given and returns what to remember in ``meta.json``.
        say: told, in a sentence, what takes time.

    Raises:
        UserError: the entry cannot be written.
    """
    meta = read_meta(entry)
    if meta is not None:
        return meta
    try:
        with _locked(entry, say):
            return read_meta(entry) or _build(entry, build, say)
    except OSError as error:
        raise UserError(
            f"cannot write the token cache {entry.parent}: {error.strerror or error}.",
            "set SCALIFY_CACHE to a folder with free space that you may write to.",
        ) from error


def read_meta(entry: Path) -> dict | None:
    """The content of ``meta.json``, or None where anything differs from what was written."""
    try:
        meta = json.loads((entry / META).read_bytes())
        recorded = meta.pop("checksum")
        files = {name: describe(entry / name, size) for name, size in _sizes(meta)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if recorded == _checksum(meta) and files == meta["files"] else None


def _sizes(meta: dict) -> list[tuple[str, int]]:
    return [(name, file["bytes"]) for name, file in meta["files"].items()]


def describe(file: Path, expected_size: int | None = None) -> dict:
    """``{"bytes", "sha256"}`` of a file; a file of another size than expected is not read."""
    size = file.stat().st_size
    if expected_size not in (None, size):
        return {"bytes": size}
    with file.open("rb") as stream:
        return {"bytes": size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _checksum(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _build(entry: Path, build: Callable[[Path], dict], say: Say) -> dict:
    if entry.exists():
        say(f"{entry} is damaged; building it again")
    folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.building-", dir=entry.parent))
    try:
        meta = build(folder)
        meta["files"] = {file.name: describe(file) for file in sorted(folder.iterdir())}
        content = json.dumps(meta | {"checksum": _checksum(meta)}, sort_keys=True, indent=1)
        _write_synced(folder / META, content)
        _put_in_place(folder, entry)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return meta


def _write_synced(file: Path, content: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _put_in_place(folder: Path, entry: Path) -> None:
    folder.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
    if entry.exists():
        aside = Path(tempfile.mkdtemp(prefix=f"{entry.name}.damaged-", dir=entry.parent))
        entry.rename(aside / entry.name)
        shutil.rmtree(aside, ignore_errors=True)
    folder.rename(entry)


@contextlib.contextmanager
def _locked(entry: Path, say: Say) -> Iterator[None]:
    """Hold ``<entry>.lock``; the system drops it with the process."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with (entry.parent / f"{entry.name}.lock").open("w") as lock:
        if _take(lock, say):
            _remove_leftovers(entry)
        yield


def _take(lock, say: Say) -> bool:
    """Wait for the lock; False where there are none (building twice is wasteful, not wrong)."""
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another process that prepares the same data")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _remove_leftovers(entry: Path) -> None:
    for kind in ("building", "damaged"):
        for folder in entry.parent.glob(f"{entry.name}.{kind}-*"):
            shutil.rmtree(folder, ignore_errors=True)
