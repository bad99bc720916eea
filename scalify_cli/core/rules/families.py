"""The algebraic classes of scale rules (Scalify, section 3.2).

A rule takes an equation and its operands (``Scaled``, ``Uniform`` or plain) and returns the
outputs. For a function f of s*x:

* *passes through*: f(s*x) = s*f(x);
* *multiplies*: scales multiply as values do;
* *agrees*: operands must share a scale first, the largest;
* *is opaque*: computed on true values in float32, result at scale 1.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from scalify_cli.core.interpreter import bind
from scalify_cli.core.scale import ONE, Scale
from scalify_cli.core.scaled_array import is_float, wide_dtype
from scalify_cli.core.values import (
    Scaled,
    Uniform,
    at_scale,
    common_scale,
    plain,
    product_scale,
    promote,
    times,
    true_values,
)

Rule = Callable[..., list[Any]]
_PROGRAMS = (jex.Jaxpr, jex.ClosedJaxpr)


def passes_through(equation: Any, x: Any, *others: Any) -> list[Any]:
    """f(s*x) = s*f(x); the other operands are indices, sizes or the like."""
    if not isinstance(x, Scaled):
        return bind(equation, [plain(x), *map(plain, others)])
    x = promote(x)
    outputs = bind(equation, [x.data, *map(plain, others)])
    return [x.with_data(data) for data in outputs]


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
        return [_times_uniform(equation, promote(y), *x.split())]
    x, y = promote(x), promote(y)
    return [Scaled(bind(equation, [x.data, y.data])[0], product_scale(x, y))]


def quotient(equation: Any, x: Any, y: Any) -> list[Any]:
    """Division. Dividing by a uniform power of two changes only the scale."""
    if isinstance(y, Uniform) and not y.any_scale:
        mantissa, scale = y.split()
        x = promote(x)
        data = x.data if mantissa == 1 else lax.div(x.data, np.asarray(mantissa, x.dtype))
        return [Scaled(_as(equation, data), None if x.scale is None else x.scale / scale)]
    x, y = promote(x), promote(y)
    scale = None if x.scale is None or y.scale is None else x.scale / y.scale
    return [Scaled(bind(equation, [x.data, y.data])[0], scale)]


def _times_uniform(equation: Any, x: Scaled, mantissa: float, scale: Scale | None) -> Scaled:
    data = x.data if mantissa == 1 else lax.mul(x.data, np.asarray(mantissa, x.dtype))
    return Scaled(_as(equation, data), product_scale(x, Scaled(data, scale)))


def _as(equation: Any, data: Any) -> Any:
    """A scalar that met a uniform array takes its shape."""
    shape = equation.outvars[0].aval.shape
    return data if jnp.shape(data) == shape else jnp.broadcast_to(data, shape)


def compares_sizes(equation: Any, *operands: Any) -> list[Any]:
    """max, min, clamp: agree on a scale, in which a bound beyond the dtype is infinite."""
    return agrees(equation, *masked(operands))


def masked(operands: Any) -> list[Any]:
    """Numbers beyond their dtype as infinities, which have no say in the scale."""
    return [x.as_mask() if isinstance(x, Uniform) else x for x in operands]


def aligned(*operands: Any) -> tuple[list[Any], Scale | None]:
    """The data of all operands at their largest scale, and that scale."""
    values = [promote(x) for x in operands]
    scale = common_scale(values)
    return [at_scale(x, scale) for x in values], scale


def agrees(equation: Any, *operands: Any) -> list[Any]:
    """f of operands at one scale: add, max, concatenate, pad."""
    data, scale = aligned(*operands)
    return [Scaled(output, scale) for output in bind(equation, data)]


def compares(equation: Any, *operands: Any) -> list[Any]:
    """Comparisons see both sides at one scale, in float32, so that small values survive."""
    values = [promote(x) for x in operands]
    scale = common_scale(values)
    same = all(x.scale in (None, scale) for x in values)
    sides = [x.data if same else at_scale(_widened(x), scale) for x in values]
    return bind(equation, sides)


def _widened(x: Scaled) -> Scaled:
    return x.with_data(x.data.astype(wide_dtype(x.dtype)))


def opaque(equation: Any, *operands: Any) -> list[Any]:
    """True values in float32, the result at scale 1 in the equation's dtype."""
    outputs = bind(equation, [true_values(x) for x in operands])
    return [
        Scaled(data.astype(var.aval.dtype), ONE) if is_float(data) else data
        for data, var in zip(outputs, equation.outvars, strict=True)
    ]


def fallback(equation: Any, *operands: Any) -> list[Any]:
    """A primitive without a rule: opaque, or in its own dtype where it calls another program.

    It is never refused.
    """
    calls = any(isinstance(value, _PROGRAMS) for value in jax.tree.leaves(equation.params))
    return in_own_dtype(equation, *operands) if calls else opaque(equation, *operands)


def in_own_dtype(equation: Any, *operands: Any) -> list[Any]:
    """True values in the operands' own dtype: for programs and for bits."""
    outputs = bind(equation, [plain(x) for x in operands])
    return [Scaled(data, ONE) if is_float(data) else data for data in outputs]


def power(equation: Any, x: Any) -> list[Any]:
    """x**n for an integer n (2 for ``square``)."""
    x = promote(x)
    n = equation.params.get("y", 2)
    return [Scaled(bind(equation, [x.data])[0], None if x.scale is None else x.scale**n)]


def root(n: int) -> Rule:
    """The n-th root (n < 0: its reciprocal); what no root divides stays in the data."""

    def rule(equation: Any, x: Any) -> list[Any]:
        x = promote(x)
        if x.scale is None:
            return [Scaled(bind(equation, [x.data])[0], None if n > 0 else ONE)]
        scale, rest = x.scale.root(abs(n))
        wide = x.data if rest == ONE else times(x.data.astype(wide_dtype(x.dtype)), rest)
        data = bind(equation, [wide])[0].astype(x.dtype)
        return [Scaled(data, scale if n > 0 else scale**-1)]

    return rule


def scale_free(equation: Any, x: Any) -> list[Any]:
    """sign, is_finite, argmax: a function of the data alone."""
    outputs = bind(equation, [promote(x).data])
    return [Scaled(data, ONE) if is_float(data) else data for data in outputs]


def binades(count: int) -> int:
    """The power of two at or below the square root of a count of summed terms."""
    return math.floor(math.log2(count) / 2) if count > 0 else 0
