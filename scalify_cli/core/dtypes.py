"""Float dtypes, and casts between them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scalify_cli.jaxprs.tracing import once


def is_float(x: Any) -> bool:
    """Whether x (an array or a Python scalar) is of a real floating dtype."""
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating)


@functools.cache
def is_narrow(dtype: Any) -> bool:
    """Whether a float dtype has fewer exponents than float32, as FP16 and FP8 have."""
    return jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp


@functools.cache
def wide_dtype(dtype: Any) -> Any:
    """Float32, or a wider float as it is."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


@functools.cache
def register_dtype(dtype: Any) -> Any:
    """What values of a dtype are computed in: one with float32's range at least."""
    return wide_dtype(dtype) if is_narrow(dtype) else jnp.dtype(dtype)


def cast(x: Any, dtype: Any) -> Any:
    """An array in a dtype; JAX is not asked where that is its own."""
    if x.dtype == dtype and not getattr(x, "weak_type", False):
        return x
    if not isinstance(x, jax.Array):
        return x.astype(dtype)
    return once(x, jnp.dtype(dtype), lambda: lax.convert_element_type(x, dtype))
