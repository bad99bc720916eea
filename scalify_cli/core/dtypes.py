"""Float dtypes and casts between them; within one trace, nothing is cast twice."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scalify_cli.core.powers import MAX_EXPONENT

_made: ContextVar[dict[Any, Any] | None] = ContextVar("_made", default=None)


def is_float(x: Any) -> bool:
    """Whether x (an array or a Python scalar) is of a real floating dtype."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating)


@functools.cache
def is_narrow(dtype: Any) -> bool:
    """Whether a float dtype has fewer exponents than float32, as FP16 and FP8 have."""
    return jnp.finfo(dtype).maxexp <= MAX_EXPONENT


@functools.cache
def wide_dtype(dtype: Any) -> Any:
    """Float32, or a wider float as it is: what narrow data is computed in."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def cast(x: Any, dtype: Any) -> Any:
    """An array in a dtype; JAX is not asked where that is its own."""
    if x.dtype == dtype and not getattr(x, "weak_type", False):
        return x
    if not isinstance(x, jax.Array):
        return x.astype(dtype)
    return once(x, jnp.dtype(dtype), lambda: lax.convert_element_type(x, dtype))


@contextmanager
def made_once() -> Iterator[None]:
    """Within one trace, what several equations make of the same array is made for the first."""
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def once(x: Any, key: Any, make: Callable[[], Any]) -> Any:
    """What is made of x; the same again for the same key."""
    made = _made.get()
    if made is None:
        return make()
    if (id(x), key) not in made:
        made[id(x), key] = x, make()  # x too, so that no other has its id
    return made[id(x), key][1]
