"""What several processes of one run do together; in a run of one process it costs nothing.

Process 0 leads: it alone reads and writes the run's directory, and tells the others.
"""

import json
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scalify_cli.errors import UserError
from scalify_cli.training.checkpoint import Checkpoints

_COMPILE_SECONDS = 3600
_meetings = count()
_BLOCK = 4096  # bytes; a message's length is part of what is compiled


def leads() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def led(f: Callable[[], Any]) -> Any:
    """What f returns in process 0 (JSON), in all processes; what it raises is raised in all.

    Raises:
        UserError: process 0 failed.
    """
    if jax.process_count() == 1:
        return f()
    told, failure = {}, None
    if leads():
        try:
            told = {"value": f()}
        except Exception as error:
            failure, told = error, {"error": str(error), "code": getattr(error, "exit_code", 1)}
    told = _shared(told)
    if failure is not None:
        raise failure
    if "error" in told:
        raise UserError(told["error"], "process 0 says more.", told["code"])
    return told["value"]


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def compiled_by_all(jitted: Any) -> Callable:
    """A jitted function for arguments of one type, which no process calls before all compiled it.

    A process that came to a collective long before the others would give them up: Gloo after 30
    seconds. One that is lost ends the others here as everywhere.
    """
    if jax.process_count() == 1:
        return jitted
    compiled: list[Any] = []

    def call(*args: Any) -> Any:
        if not compiled:
            compiled.append(jitted.lower(*args).compile())
            _meet()
        return compiled[0](*args)

    return call


def _meet() -> None:
    from orbax.checkpoint import multihost

    name, everyone = f"compiled {next(_meetings)}", set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=_COMPILE_SECONDS, processes=everyone)


class Agreed:
    """Whether to stop, asked of all processes at once: a reason that any of them has.

    Args:
        asked: this process's own reason, or None.
        reasons: those there are; of several the last one counts.
    """

    def __init__(self, asked: Any, reasons: Iterable[str]):
        self.asked = asked
        self.reason: str | None = None
        self._reasons = ["", *reasons]

    def __call__(self) -> str | None:
        found = largest(self._reasons.index(self.asked() or ""))
        self.reason = self._reasons[found] or None
        return self.reason


class LedCheckpoints(Checkpoints):
    """The checkpoints of a run of several processes: process 0 has them, the others are told."""

    def __init__(self, path: Path, keep: int, notify: Callable[[str], None]):
        super().__init__(path, keep, notify)
        self._own = Checkpoints(path, keep, notify)

    def steps(self) -> list[int]:
        return led(self._own.steps)

    def save(self, step: int, state: Any, extra: dict[str, Any] | None = None) -> Path:
        return Path(led(lambda: str(self._own.save(step, state, extra))))

    def restore_newest(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
        if jax.process_count() == 1:
            return self._own.restore_newest(template)
        found: list[Any] = []

        def read() -> list[Any] | None:
            own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), template)
            found.append(self._own.restore_newest(own))
            return found[0] and [found[0][0], found[0][2]]

        told = led(read)
        if told is None:
            return None
        return told[0], _copied(found[0][1] if found else None, template), told[1]


def _shared(message: dict[str, Any]) -> dict[str, Any]:
    """Process 0's message."""
    text = json.dumps(message).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
    if leads():
        padded[:size] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())


def _copied(state: Any, template: Any) -> Any:
    """Process 0's state, bit for bit, where the template's arrays are."""
    goals, structure = jax.tree.flatten(template)
    own = [np.zeros(x.shape, x.dtype) for x in goals] if state is None else jax.tree.leaves(state)
    sent = multihost_utils.broadcast_one_to_all([_bytes(np.asarray(x)) for x in own])
    placed = [_placed(data, goal) for data, goal in zip(sent, goals, strict=True)]
    return jax.tree.unflatten(structure, placed)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _placed(data: np.ndarray, goal: jax.ShapeDtypeStruct) -> jax.Array:
    array = np.asarray(data).view(goal.dtype).reshape(goal.shape)
    return jax.make_array_from_callback(goal.shape, goal.sharding, lambda index: array[index])
