"""Writing files that a reader, or a crash, never finds half written."""

import fcntl
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the file, then rename over it.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def take_lock(path: Path) -> TextIO:
    """Hold the file's lock until the returned file is closed, or the process is gone.

    Raises:
        BlockingIOError: another process holds it; ``strerror`` says which.
    """
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        error.strerror = file.read().strip() or "another process"
        file.close()
        raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def json_line(record: Mapping[str, Any]) -> str:
    """One line of strict JSON; numbers that are not finite become ``null``."""
    return json.dumps({key: _finite(value) for key, value in record.items()}) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
