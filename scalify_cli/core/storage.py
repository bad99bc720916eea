"""At which scale, in which unit and in which dtype data is kept.

Scale and unit are the same where data is stored: in an argument, in a result, in a narrow dtype
between two matmuls. In arithmetic they need not be. A dtype with float32's range needs no scale to
add x at 2**5 and y at 2**-9: it holds true values, in the unit 1 or in one near it that is known
while tracing, and computes what plain JAX does.
Narrow dtypes compute in float32, in units that multiply as values do, and what is stored is brought
to its scale; where propagation says too little of a value's size, or what made it may have moved it
far from its scale, that is measured first.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from scalify_cli.core.dtypes import cast, is_narrow, register_dtype, wide_dtype
from scalify_cli.core.scaled_array import WIDE_ZEROS, ScaledArray
from scalify_cli.core.values import Scaled, Uniform, is_nonzero, nonzero, picked_as
from scalify_cli.jaxprs.tracing import once
from scalify_cli.scales.choices import minimum
from scalify_cli.scales.powers import MAX_EXPONENT, MIN_EXPONENT, floor_log2
from scalify_cli.scales.scale import ONE, Scale

NEAR = 16
"""Binades from 1 of a known unit that values of a wide dtype may be in."""
_FAR = 12
"""Degree and drift together of a scale that data is stored at. FP16 holds 16 binades above it; the
largest of an argument's values may be a few above its scale, which is their root mean square."""
_BELOW = 4
"""Binades that the largest value of what may be far below its scale may be below it."""
_HELD, _WIDE, _MADE, _VAGUE = (MIN_EXPONENT, MAX_EXPONENT), (-96, 96), (-40, 24), (-8, 8)
"""log2 of the least and the largest scale of a narrow value, of a wide one, of a wide product,
which may be far from its own, and of a wide value of any size."""


def enter(x: Any) -> Any:
    """An argument of the transform: ``ScaledArray`` becomes ``Scaled``, its scale an exponent."""
    if not isinstance(x, ScaledArray):
        return x
    if isinstance(x.scale, Tracer):
        scale = Scale.unknown(lax.stop_gradient(x.scale))
    else:
        scale = Scale(floor_log2(float(x.scale)), degree=1)
    entered = Scaled(x.data, scale)
    kept = is_narrow(x.dtype) or (scale.static and abs(scale.constant) <= NEAR)
    return entered if kept else true(entered)


def leave(x: Any) -> Any:
    """A result of the transform: ``Scaled`` becomes ``ScaledArray``, the rest plain arrays."""
    if not isinstance(x, Scaled) or x.loose:
        return plain(x)
    x = held(sized(x))
    return ScaledArray.tree_unflatten(None, (stored(x).data, scale_array(x)))


def scale_array(x: Scaled) -> Any:
    """x's scale as a float32 scalar: any scale is the smallest."""
    return jnp.float32((x.scale or Scale(MIN_EXPONENT)).factor())


def held(x: Scaled) -> Scaled:
    """x with a scale that float32 holds."""
    if x.scale is None:
        return x
    made = abs(x.scale.degree) > 1 or x.scale.drift[0] < -_FAR
    as_it_is = not (made or x.scale.static) and x.scale.within(*_HELD)
    bounds = _MADE if made and x.scale.trusted else _VAGUE if made else _WIDE
    bounds = _HELD if is_narrow(x.dtype) or as_it_is else bounds
    return replace(x, scale=x.scale.clamped(*bounds))


def promote(x: Any, whole: bool = True) -> Scaled:
    """Any float value as ``Scaled``. A scalar's scale is its own power of two; arrays get 1.

    Args:
        whole: whether a known number must be a whole array.
    """
    if isinstance(x, Scaled):
        return x
    if isinstance(x, Uniform):
        data = x.array(register_dtype(x.dtype)) if whole else x.scalar()
        return Scaled(data, x.scale, ONE, x.dtype, number=x.value)
    if np.size(x) != 1:
        return Scaled(x, Scale(degree=1), ONE)
    return Scaled(x, _size(x, MIN_EXPONENT), ONE)


def measured(data: Any, dtype: Any, unit: Scale = ONE) -> Scaled:
    """Values at the power of two at or below their largest finite magnitude."""
    size = _size(data, MIN_EXPONENT if is_narrow(dtype) else WIDE_ZEROS)
    scale = (size * unit).of_degree(1)
    if np.size(data) == 1:  # a single value is from 1 to 2 times it
        scale = scale.of_degree(0, (0.0, 1.0))
    return Scaled(data, scale, unit, dtype)


def _size(data: Any, least: int) -> Scale:
    """The power of two at or below the largest finite magnitude, 2**least or more."""

    def found() -> Scale:
        sizes = lax.select(lax.is_finite(data), lax.abs(data), lax.full_like(data, 0))
        largest = cast(lax.reduce_max(sizes, range(data.ndim)), jnp.float32)
        return Scale.of_size(largest, least)

    return once(data, ("size", least), found)


def register(x: Scaled) -> Any:
    """x's data in the dtype that its arithmetic is done in."""
    return cast(x.data, register_dtype(x.dtype))


def at(x: Scaled, unit: Scale) -> Any:
    """x's data in another unit, in the dtype of its arithmetic."""
    return register(x) if x.scale is None else times(register(x), x.unit / unit)


def true(x: Scaled) -> Scaled:
    """x in the unit 1."""
    return replace(x, data=_in_parts(register(x), x), unit=ONE)


def _in_parts(data: Any, x: Scaled) -> Any:
    return data if x.scale is None else functools.reduce(times, x.unit.parts(), data)


def times(data: Any, scale: Scale) -> Any:
    """``data * scale`` in data's dtype; nothing is emitted for a scale of 1."""
    if scale == ONE:
        return data
    if scale.static:
        return lax.mul(data, np.asarray(scale.factor(), data.dtype))
    return once(data, scale, lambda: lax.mul(data, cast(scale.factor(), data.dtype)))


def sized(x: Scaled) -> Scaled:
    """x, measured where it is to be stored in a narrow dtype and its scale says little of it."""
    if x.scale is None or not is_narrow(x.dtype):
        return x
    least, most = (abs(x.scale.degree) + abs(end) for end in x.scale.drift)
    if x.scale.trusted and max(least, most) <= _FAR:
        return x
    found = measured(register(x), x.dtype, x.unit)
    if found.scale and x.scale.trusted and most <= _FAR:
        lowered = minimum([x.scale, found.scale.shifted(_BELOW)])
        found = replace(found, scale=lowered.of_degree(1))
    return picked_as(x, replace(found, loose=x.loose, role=nonzero([x])))


def stored(x: Scaled, dtype: Any = None) -> Scaled:
    """x at its scale, in its own dtype or in another."""
    dtype = dtype or x.dtype
    if x.data.dtype == dtype and x.unit == (x.scale or ONE):
        return x
    x = sized(x)
    unit = x.scale or ONE
    data = at(x, unit)
    if is_nonzero(x) and is_narrow(dtype):
        least = lax.full_like(data, float(jnp.finfo(dtype).smallest_subnormal))
        data = lax.select(data > 0, lax.max(data, least), data)
    return picked_as(x, replace(x, data=cast(data, dtype), unit=unit))


def rounds_off(x: Scaled) -> Scaled:
    """x in the dtype of its arithmetic, with the precision of its own."""
    if x.data.dtype == x.dtype:
        return x
    bits = int(jnp.finfo(x.dtype).nmant)
    return picked_as(x, x.with_data(lax.reduce_precision(x.data, 8, bits)))


def true_values(x: Any) -> Any:
    """The true values in float32 (float64 stays): what an opaque function is applied to."""
    return _in_parts(cast(x.data, wide_dtype(x.dtype)), x) if isinstance(x, Scaled) else x


def plain(x: Any) -> Any:
    """The true values, in x's dtype."""
    if isinstance(x, Uniform):
        return x.array()
    return cast(at(x, ONE), x.dtype) if isinstance(x, Scaled) else x


def aligned(values: Sequence[Scaled]) -> tuple[list[Any], Scale]:
    """The data of all in one unit, and that: theirs if it is one, else the largest near 1, or 1."""
    units = list(dict.fromkeys(x.unit for x in values if x.scale is not None))
    if len(units) > 1 and all(x.static for x in units):
        units = [max(units, key=lambda x: x.constant)]
        units = units if abs(units[0].constant) <= NEAR else []
    unit = units[0] if len(units) == 1 else ONE
    return [at(x, unit) for x in values], unit
