"""Traces of our own, and what is kept for the length of one."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax


class _Trace(NamedTuple):
    """``level`` counts the traces that it is inside of, ``shards`` those around the innermost that
    is of one shard; ``made`` is what it has made so far."""

    level: int
    shards: int
    made: dict[Any, Any]


_OUTSIDE = _Trace(0, 0, {})
_trace: ContextVar[_Trace] = ContextVar("_trace", default=_OUTSIDE)


def level() -> int:
    """How deep the trace that is under way is: 0 outside of all."""
    return _trace.get().level


def shard_level() -> int:
    """The least level at which shards may differ; 0 outside of ``shard_map``."""
    return _trace.get().shards


@contextmanager
def new_trace(shards: bool = False) -> Iterator[None]:
    """A trace inside of the one that is under way.

    Args:
        shards: whether it is of one shard, and shards may differ in what it makes.
    """
    outer = _trace.get()
    inner = outer.level + 1
    token = _trace.set(_Trace(inner, inner if shards else outer.shards, {}))
    try:
        yield
    finally:
        _trace.reset(token)


@contextmanager
def without_collection() -> Iterator[None]:
    """A trace makes much and frees it itself: looking through all of it takes as long again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def once(x: Any, key: Any, make: Callable[[], Any]) -> Any:
    """What is made of x: in one trace the same again for the same key, where the mesh is seen as
    the same."""
    trace = _trace.get()
    if not trace.level:
        return make()
    name = id(x), key, jax.sharding.get_abstract_mesh()
    if name not in trace.made:
        trace.made[name] = x, make()  # x too, so that no other has its id
    return trace.made[name][1]
