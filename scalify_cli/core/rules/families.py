"""The algebraic classes of scale rules (Scalify, section 3.2).

A rule takes an equation and its operands (``Scaled``, ``Uniform`` or plain) and returns the
outputs. For a function f of s*x:

* *passes through*: f(s*x) = s*f(x);
* *multiplies*: scales multiply as values do;
* *agrees*: operands must share a scale first, the largest;
* *is opaque*: computed on true values in float32, result at scale 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex

from scalify_cli.core.dtypes import cast, is_float, is_narrow, wide_dtype
from scalify_cli.core.interpreter import bind
from scalify_cli.core.scale import ONE, Scale, maximum, minimum, moderate
from scalify_cli.core.values import (
    Scaled,
    Uniform,
    at_scale,
    chosen,
    plain,
    product_scale,
    promote,
    times,
    true_values,
)

Rule = Callable[..., list[Any]]
_PROGRAMS = (jex.Jaxpr, jex.ClosedJaxpr)


def passes_through(equation: Any, x: Any, *others: Any) -> list[Any]:
    """f(s*x) = s*f(x); the other operands, and results, are indices, sizes or the like."""
    if not isinstance(x, Scaled):
        return bind(equation, [plain(x), *map(plain, others)])
    x = promote(x)
    outputs = bind(equation, [x.data, *map(plain, others)])
    return [x.with_data(data) if is_float(data) else data for data in outputs]


def each_passes_through(equation: Any, *operands: Any) -> list[Any]:
    """One output for each operand, at its own scale (barriers and the like)."""
    values = [promote(x) if isinstance(x, Scaled) else plain(x) for x in operands]
    outputs = bind(equation, [v.data if isinstance(v, Scaled) else v for v in values])
    return [
        v.with_data(data) if isinstance(v, Scaled) else data
        for v, data in zip(values, outputs, strict=True)
    ]


def product(equation: Any, x: Any, y: Any) -> list[Any]:
    """Multiplication. A uniform factor's power of two goes to the scale, and 1 costs nothing."""
    if isinstance(y, Uniform):
        x, y = y, x
    if isinstance(x, Uniform):
        y, (mantissa, scale) = promote(y), x.split()
        data = y.data if mantissa == 1 else lax.mul(y.data, np.asarray(mantissa, y.dtype))
        return [Scaled(_as(equation, data), product_scale(y, Scaled(data, scale)))]
    x, y = promote(x), promote(y)
    return [Scaled(bind(equation, [x.data, y.data])[0], product_scale(x, y))]


def quotient(equation: Any, x: Any, y: Any) -> list[Any]:
    """Division. Dividing by a uniform power of two changes only the scale.

    Narrow dtypes divide in float32: compilers may take a reciprocal, which they could not hold.
    """
    if isinstance(y, Uniform) and not y.any_scale:
        mantissa, scale = y.split()
        x = promote(x)
        data = x.data if mantissa == 1 else lax.div(x.data, np.asarray(mantissa, x.dtype))
        return [Scaled(_as(equation, data), None if x.scale is None else x.scale / scale)]
    x, y = promote(x), promote(y)
    scale = None if x.scale is None or y.scale is None else x.scale / y.scale
    data = [in_float32(v).data if is_narrow(v.dtype) else v.data for v in (x, y)]
    return [Scaled(cast(bind(equation, data)[0], x.dtype), scale)]


def _as(equation: Any, data: Any) -> Any:
    """What met a larger uniform array takes its shape, and lies on the mesh as the two did."""
    aval = equation.outvars[0].aval
    if jnp.shape(data) == aval.shape:
        there = jax.typeof(data).sharding.spec == aval.sharding.spec
        return data if there else jax.sharding.reshard(data, aval.sharding)
    return jnp.broadcast_to(data, aval.shape, out_sharding=aval.sharding)


def picks(*sides: int) -> Rule:
    """The result is made of elements of the operands: max, select, pad, concatenate.

    They agree on a scale, in which a number beyond the dtype is infinite and a known one yields.

    Args:
        sides: for each operand 1 where it bounds the result from above, -1 from below. Such a bound
            has no say in the scale where 0 is within it: beyond the data's range it does nothing.
    """

    def rule(equation: Any, *operands: Any) -> list[Any]:
        operands = tuple(x.as_mask() if isinstance(x, Uniform) else x for x in operands)
        scaled = any(isinstance(x, Scaled) and x.scale is not None for x in operands)
        bounds = zip(operands, sides if scaled else (), strict=False)
        loose = [isinstance(x, Uniform) and x.value * side > 0 for x, side in bounds]
        data, scale = aligned(equation, *operands, yielding=True, loose=loose)
        return [Scaled(bind(equation, data)[0], scale)]

    return rule


def aligned(
    equation: Any, *operands: Any, yielding: bool = False, loose: Sequence[bool] = ()
) -> tuple[list[Any], Scale | None]:
    """The data of all operands at one scale, and that scale: the largest, if it is moderate.

    Args:
        operands: floats; integers and booleans come back as they are.
        yielding: known numbers leave the arrays' scale alone as far as the dtype holds them.
        loose: for each operand whether it has no say at all.
    """
    raw = [isinstance(x, Uniform) or not is_float(x) for x in operands]
    values = [x if kept else promote(x) for x, kept in zip(operands, raw, strict=True)]
    choose = maximum if is_narrow(equation.outvars[0].aval.dtype) else moderate
    shared = chosen([x.scale for x in values if isinstance(x, Scaled)], choose)
    heard = [x for x, out in zip_longest(values, loose, fillvalue=False) if not out]
    known = [x for x in heard if isinstance(x, Uniform)]
    wanted = [x.scale_beside(shared) if yielding else x.split()[1] for x in known]
    scale = chosen([shared, *wanted], choose)
    return [at_scale(x, scale) for x in values], scale


def agrees(equation: Any, *operands: Any) -> list[Any]:
    """f of operands at one scale: add, subtract."""
    data, scale = aligned(equation, *operands)
    return [Scaled(bind(equation, data)[0], scale)]


def follows(equation: Any, x: Any, *others: Any) -> list[Any]:
    """f(s*x, t*y) = s*f(x, y): of the other floats only their order or sign matters."""
    x = promote(x)
    data = [promote(y).data if is_float(y) else plain(y) for y in others]
    return [x.with_data(output) for output in bind(equation, [x.data, *data])]


def compares(equation: Any, *operands: Any) -> list[Any]:
    """Comparisons see both sides at one scale, in float32, so that small values survive."""
    values = [promote(x) for x in operands]
    scale = chosen([x.scale for x in values])
    same = all(x.scale in (None, scale) for x in values)
    sides = [x.data if same else at_scale(in_float32(x), scale) for x in values]
    return bind(equation, sides)


def in_float32(x: Any) -> Any:
    """A value whose data is in float32; a float64 stays, and what is no float."""
    if isinstance(x, Uniform):
        return replace(x, dtype=wide_dtype(x.dtype))
    if isinstance(x, Scaled):
        return promote(x).with_data(cast(promote(x).data, wide_dtype(x.dtype)))
    return cast(x, wide_dtype(x.dtype)) if is_float(x) else x


def opaque(equation: Any, *operands: Any, view: Callable = true_values) -> list[Any]:
    """True values in float32, the result at scale 1 in the equation's dtype."""
    outputs = bind(equation, [view(x) for x in operands])
    return [
        Scaled(cast(data, var.aval.dtype), ONE) if _is_array(var) and is_float(data) else data
        for data, var in zip(outputs, equation.outvars, strict=True)
    ]


def in_own_dtype(equation: Any, *operands: Any) -> list[Any]:
    """True values in the operands' own dtype: for programs, references and bits."""
    return opaque(equation, *operands, view=plain)


def fallback(equation: Any, *operands: Any) -> list[Any]:
    """A primitive without a rule: opaque, or in its own dtype where it calls another program.

    It is never refused.
    """
    calls = any(isinstance(value, _PROGRAMS) for value in jax.tree.leaves(equation.params))
    returns = equation.effects and equation.outvars  # from Python, which expects its dtypes
    arrays = all(map(_is_array, (*equation.invars, *equation.outvars)))  # and no references
    return (opaque if arrays and not (calls or returns) else in_own_dtype)(equation, *operands)


def _is_array(variable: Any) -> bool:
    return isinstance(variable.aval, ShapedArray)


def saturates(shrinks: bool) -> Rule:
    """Opaque functions that are nearly linear on one side of 1.

    Args:
        shrinks: |f(x)| is about |x| at most (tanh), so that small results keep the scale; else f(x)
            is near x where x is large (floor). Only narrow dtypes need it.
    """

    def rule(equation: Any, x: Any) -> list[Any]:
        x, dtype = promote(x), equation.outvars[0].aval.dtype
        if x.scale is None or not is_narrow(dtype):
            return opaque(equation, x)
        scale = (minimum if shrinks else maximum)([x.scale, ONE])
        wide = bind(equation, [true_values(x)])[0]
        return [Scaled(cast(times(wide, scale**-1), dtype), scale)]

    return rule


def power(equation: Any, x: Any) -> list[Any]:
    """x**n for an integer n (2 for ``square``)."""
    x = promote(x)
    return [Scaled(bind(equation, [x.data])[0], to_the(x.scale, equation.params.get("y", 2)))]


def to_the(scale: Scale | None, n: int) -> Scale | None:
    """The scale of a product of n values."""
    return ONE if n == 0 else scale and scale**n


def root(n: int, function: Callable) -> Rule:
    """The n-th root (n < 0: its reciprocal); what no root divides stays in the data."""

    def rule(equation: Any, x: Any, *_: Any) -> list[Any]:
        x = promote(x)
        if x.scale is None:
            return [Scaled(function(x.data), None if n > 0 else ONE)]
        scale, rest = x.scale.root(abs(n))
        wide = x.data if rest == ONE else times(cast(x.data, wide_dtype(x.dtype)), rest)
        data = cast(function(wide), x.dtype)
        return [Scaled(data, scale if n > 0 else scale**-1)]

    return rule


def scale_free(equation: Any, x: Any) -> list[Any]:
    """sign, is_finite, argmax: a function of the data alone."""
    outputs = bind(equation, [promote(x).data])
    return [Scaled(data, ONE) if is_float(data) else data for data in outputs]


def binades(count: int) -> int:
    """The power of two at or below the square root of a count of summed terms."""
    return math.floor(math.log2(count) / 2) if count > 0 else 0
