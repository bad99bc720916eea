"""Where the files that ship beside the code are: ``conf/`` and ``sweeps/``."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The folder inside an installed wheel, or the one at the top of the source tree."""
    packaged = _PACKAGE / f"_{folder}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / folder
