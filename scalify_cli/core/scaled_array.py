"""``ScaledArray(data, scale)``: the value ``data * scale``, with a power-of-two scalar scale.

The source is Scalify (arXiv 2407.17353), section 2. The scale is held in float32 because FP16
scales overflow after a few layers, and is a power of two because other scales cost accuracy.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from scalify_cli.core.dtypes import is_float, is_narrow, wide_dtype
from scalify_cli.jaxprs.interpreter import ARRAYS
from scalify_cli.scales.powers import MAX_EXPONENT, MIN_EXPONENT, exp2, floor_log2, log2_floor

SMALLEST_SCALE = 2.0**MIN_EXPONENT
WIDE_ZEROS = -40
"""log2 of the scale of zeros in a wide dtype: far below others, but not so far that 1/0 crowds them
out."""

_ABOVE = 6
"""Binades that the largest narrow value may be above its scale: squares must be finite too."""


@jax.tree_util.register_pytree_with_keys_class
class ScaledArray:
    """An array of values ``data * scale``.

    Args:
        data: the array, in its low-precision dtype.
        scale: a float32 scalar power of two.

    Raises:
        ValueError: the scale is known and is not a positive power of two.
    """

    __slots__ = ("data", "scale")

    def __init__(self, data: Any, scale: Any):
        self.data = data
        self.scale = scale if isinstance(scale, Tracer) else _beside(data, _power_of_two(scale))

    shape = property(lambda self: jnp.shape(self.data))
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))

    def __repr__(self) -> str:
        return f"ScaledArray(data={self.data!r}, scale={self.scale!r})"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(unscale(self, jnp.float32), dtype=dtype)

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("data"), self.data), (key("scale"), self.scale)), None

    @classmethod
    def tree_unflatten(cls, _, children) -> "ScaledArray":
        result = object.__new__(cls)
        result.data, result.scale = children
        return result


def as_scaled(tree: Any, scale: Any = None) -> Any:
    """Turn the float leaves of a tree into ``ScaledArray``; other leaves pass through.

    Args:
        tree: arrays, or a pytree of arrays.
        scale: the scale of every leaf, rounded down to a power of two. ``None`` takes the power of
            two at or below the values' root mean square where they are concrete, or more where
            FP16 or FP8 values are far above that; else 1. Zeros have any scale, and take a small
            one: others need not make room for them.

    Raises:
        ValueError: the scale is known and is not a positive number.
    """
    return jax.tree.map(lambda x: _leaf(x, scale), tree, is_leaf=is_scaled)


def unscale(tree: Any, dtype: Any = None) -> Any:
    """Plain arrays again: ``data * scale``, multiplied in float32 and cast to ``dtype``.

    ``dtype=None`` keeps each array's own dtype.
    """
    return jax.tree.map(lambda x: _plain(x, dtype), tree, is_leaf=is_scaled)


def is_scaled(x: Any) -> bool:
    """Whether x is a ``ScaledArray``: the leaf test for ``jax.tree`` functions."""
    return isinstance(x, ScaledArray)


def _leaf(x: Any, scale: Any) -> Any:
    if is_scaled(x) or not _is_float_array(x):
        return x
    x = jnp.asarray(x)
    exact = _known(_scale_of(x)) if scale is None else _round_down(scale)
    if x.weak_type and not isinstance(exact, Tracer):  # as a Python number, whose dtype yields
        return ScaledArray(x / float(exact), exact)
    wide = x.astype(wide_dtype(x.dtype))
    return ScaledArray((wide / jnp.asarray(exact, wide.dtype)).astype(x.dtype), exact)


def _is_float_array(x: Any) -> bool:
    return isinstance(x, (float, *ARRAYS)) and is_float(x)


def _scale_of(x: jax.Array) -> float:
    if isinstance(x, Tracer) or x.size == 0:
        return 1.0
    found = _root_mean_square(x)
    if isinstance(found[0], Tracer):  # of a captured array, inside of a trace
        with jax.ensure_compile_time_eval():
            found = _root_mean_square(x)
    unit, relative = map(float, found)
    if relative == 0:
        return SMALLEST_SCALE if is_narrow(x.dtype) else 2.0**WIDE_ZEROS
    return _floor_power_of_two(unit * max(relative, 2.0**-_ABOVE if is_narrow(x.dtype) else 0))


@jax.jit
def _root_mean_square(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two near the largest value, and the finite values' root mean square in it."""
    finite = jnp.isfinite(x)
    wide = jnp.where(finite, x, 0).astype(wide_dtype(x.dtype))
    exponent = log2_floor(jnp.max(jnp.abs(wide)))
    shares = jnp.square(wide * exp2(-exponent).astype(wide.dtype))
    count = jnp.maximum(jnp.sum(finite), 1).astype(wide.dtype)
    return exp2(exponent), jnp.sqrt(jnp.sum(shares) / count)


def _round_down(scale: Any) -> Any:
    if isinstance(scale, Tracer):
        return exp2(log2_floor(scale))
    if not 0 < float(scale) < float("inf"):
        raise ValueError(f"the scale {scale} is not a positive number.")
    return _known(_floor_power_of_two(float(scale)))


def _floor_power_of_two(x: float) -> float:
    return 2.0 ** min(max(floor_log2(x), MIN_EXPONENT), MAX_EXPONENT)


def _plain(x: Any, dtype: Any) -> Any:
    if not is_scaled(x):
        return x if dtype is None or not _is_float_array(x) else jnp.asarray(x, dtype)
    wide = wide_dtype(x.dtype)
    scale = jnp.expand_dims(x.scale, range(x.scale.ndim, x.ndim))  # a batch has one an element
    return (x.data.astype(wide) * scale.astype(wide)).astype(dtype or x.dtype)


def _beside(data: Any, scale: Any) -> Any:
    """A scale on all devices of its data, as a compiled step returns it: so one step fits both."""
    if isinstance(data, Tracer) or not isinstance(scale, jax.Array):
        return scale
    sharding = getattr(data, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.is_fully_addressable:
        return scale
    with jax.ensure_compile_time_eval():
        return jax.device_put(scale, NamedSharding(sharding.mesh, PartitionSpec()))


def _known(scale: Any) -> jax.Array:
    """A number that stays known inside a trace."""
    with jax.ensure_compile_time_eval():
        return jnp.asarray(scale, jnp.float32)


def _power_of_two(scale: Any) -> Any:
    if not isinstance(scale, (int, float, list, *ARRAYS)):
        return scale
    value = np.asarray(scale, np.float32)
    if value.ndim or not (value > 0 and np.isfinite(value) and np.frexp(value)[0] == 0.5):
        raise ValueError(
            f"the scale {scale} is not a positive scalar power of two; "
            "use as_scaled(values, scale) to round it down."
        )
    return _known(value)
