"""A run's directory as seen by a process that takes part in the run and writes nothing."""

from typing import Any, Self

from scalify_cli.tracking.run_directory import RunDirectory


class Follower(RunDirectory):
    """Takes everything like the directory it stands for; keeps the state, and writes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        pass

    def clear(self) -> None:
        pass

    def start(self, **_: Any) -> None:
        pass

    def log(self, message: str) -> None:
        pass

    def _write(self, status: dict[str, Any] | None = None) -> None:
        pass
