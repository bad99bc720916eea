"""The algebraic classes of scale rules (Scalify, section 3.2).

A rule takes an equation and its operands, floats as ``Scaled`` and others as they are, and returns
the outputs. For a function f of s*x:

* *passes through*: f(s*x) = s*f(x);
* *multiplies*: scales and units multiply as values do;
* *agrees*: operands share a unit first, and the scale is the largest;
* *is opaque*: computed on true values in float32. Where the function says nothing of its result's
  size, that is measured if it is to be stored in a narrow dtype.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype
from scalify_cli.core.values import (
    NEAR,
    Scaled,
    aligned,
    at,
    measured,
    register,
    times,
    true,
    true_values,
)
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.scale import ONE, Scale, chosen, maximum, minimum

Rule = Callable[..., list[Any]]
BOUNDED, DECAYING, GATE, POSITIVE = "bounded", "decaying", "gate", "positive"
MASK, MASKED, SQUARE = "mask", "masked", "square"
INVERSE_ROOT = "inverse root"  # what rows are normalised by
BELOW, SHARE, TOTAL = "below", "share", "total"
"""In a softmax: values less the largest, their exponentials, and the sum of those."""
_GUARD = 2.0**-6  # a number up to it keeps a divisor from zero, and has no say in a sum's scale
_REACH = 100  # binades from its unit that data in float32 may be
_ROOM, _WIDE_ROOM = 7, 24  # binades between the scale that a value is given and its own


@dataclass(frozen=True, eq=False)
class Largest:
    """The role of the largest of an array's elements."""

    of: Any


def result(aval: Any, data: Any, scale: Scale | None, unit: Scale = ONE, role: str = "") -> Scaled:
    """A value of a type; what is narrow stays in float32 until it is stored."""
    return Scaled(cast(data, register_dtype(aval.dtype)), scale, unit, aval.dtype, role=role)


def passes_through(equation: Any, *operands: Any) -> list[Any]:
    """f(s*x) = s*f(x): of each operand where there are as many outputs (barriers and the like), of
    the first one where others are indices, sizes or the like."""
    outputs = bind(equation, [x.data if isinstance(x, Scaled) else x for x in operands])
    sources = operands if len(operands) == len(outputs) else operands[:1] * len(outputs)
    return [
        x.with_data(y) if isinstance(x, Scaled) and is_float(y) else y
        for x, y in zip(sources, outputs, strict=True)
    ]


def scale_free(equation: Any, x: Scaled) -> list[Any]:
    """sign, is_finite: a function of the data alone."""
    return passes_through(equation, replace(x, scale=ONE, unit=ONE))


def multiplied(values: Sequence[Scaled], powers: Sequence[int]) -> tuple[Scale | None, Scale]:
    """The scale and the unit of a product of powers; any scale if one factor has any."""
    pairs = [(x, n) for x, n in zip(values, powers, strict=True) if n]
    scale, unit = ONE, math.prod((x.unit**n for x, n in pairs), start=ONE)
    for x, n in pairs:
        scale = None if scale is None or x.scale is None else scale * x.scale**n
    return scale, unit


def factors(
    values: Sequence[Scaled], powers: Sequence[int]
) -> tuple[list[Scaled], Scale | None, Scale]:
    """What is to be multiplied, with the scale and the unit of the product.

    The values are as they are, or true where their product would be of so many units, so far from
    its unit, or of such vague scales, that its data might not be a number of its dtype.
    """
    scale, unit = multiplied(values, powers)
    close = all(is_narrow(x.dtype) for x in values) or abs(unit.constant) <= NEAR
    known = scale is None or (scale.trusted and (scale / unit).reach <= _REACH)
    if close and unit.trusted and known:
        return list(values), scale, unit
    return list(map(true, values)), scale, ONE


def product(equation: Any, x: Scaled, y: Scaled) -> list[Any]:
    """Multiplication. A known power of two changes only the scale and the unit."""
    x, y = (y, x) if x.number is not None else (x, y)
    x = x if y.number is None else _not_below(x, y.number > 0)
    if (by := _power_of_two(y)) and _fills(equation, x):
        return [_shifted(x, by)]
    x, y = _factor(_normaliser(x, y)), _factor(_normaliser(y, x))
    kept, role = (None, x.role) if y.number is not None else _gate(x, y)
    decays = DECAYING in (x.role, y.role) and role != DECAYING
    (x, y), scale, unit = factors((x, y), (1, 1))
    aval = equation.outvars[0].aval
    [data] = bind(equation, [register(x), register(y)])
    return [result(aval, data, _vague_if(decays, _near(scale, kept, aval.dtype)), unit, role)]


def quotient(equation: Any, x: Scaled, y: Scaled) -> list[Any]:
    """Division. A known power of two changes only the scale and the unit.

    An array may hold what is far below its scale, and the quotient is as far above; what all of a
    row is divided by is as large as the row.
    """
    if (by := _power_of_two(y)) and _fills(equation, x):
        return [_shifted(_not_below(x, True), by**-1)]
    aval, told = equation.outvars[0].aval, y.number is not None or y.role == TOTAL
    (x, y), scale, unit = factors((x, _divisor(y)), (1, -1))
    [data] = bind(equation, [register(x), register(y)])
    told = told or (not y.shape and is_narrow(y.dtype))  # such a one has been measured
    if not told and y.shape in (aval.shape, ()):
        scale = _perhaps_above(scale, aval.dtype)
    return [result(aval, data, scale, unit)]


def _factor(x: Scaled) -> Scaled:
    """A known number with the nearest scale: a moving average times 0.999 must not lose a binade of
    its scale each time. A drifting scalar is measured: else each array that it scales would be."""
    if x.scale is None:
        return x
    if x.number is None:
        drifts = is_narrow(x.dtype) and (any(x.scale.drift) or not x.scale.trusted)
        return measured(register(x), x.dtype, x.unit) if drifts and not x.shape else x
    exact = math.log2(abs(x.number))
    return replace(x, scale=Scale.beside(exact, round(exact)))


def _divisor(x: Scaled) -> Scaled:
    """A factor; of a narrow scalar the size is told by itself only."""
    if x.shape or x.number is not None or x.scale is None or not is_narrow(x.dtype):
        return _factor(x)
    return measured(register(x), x.dtype, x.unit)


def _normaliser(x: Scaled, other: Scaled) -> Scaled:
    """x, of the size that it was given if rows of the other are normalised by it."""
    unlike = x.shape != other.shape and (x.shape or not is_narrow(x.dtype))
    if x.role != INVERSE_ROOT or x.scale is None or not unlike:
        return x
    return replace(x, scale=x.scale.of_degree(-1), role="")


def _not_below(x: Scaled, positive: bool) -> Scaled:
    """x once a sign or a factor is another: not the largest any more, nor surely below 0."""
    gone = isinstance(x.role, Largest) or (x.role == BELOW and not positive)
    return replace(x, role="") if gone else x


def signed(equation: Any, x: Scaled) -> list[Any]:
    """neg and abs: what was below 0 is above."""
    return passes_through(equation, _not_below(x, False))


def power(equation: Any, x: Scaled) -> list[Any]:
    """x**n for an integer n (2 for ``square``), with the roundings that its dtype has; in float32
    what that cannot hold."""
    n, aval = equation.params.get("y", 2), equation.outvars[0].aval
    kept, role = _gate(x, x) if n == 2 else (None, "")
    [x], scale, unit = factors([x], [n])
    [data] = bind(equation, [register(x)])
    if is_narrow(x.data.dtype) and n not in (-1, 2):  # which round once
        [own] = bind(equation, [x.data])
        own, least = cast(own, data.dtype), float(jnp.finfo(x.dtype).tiny)
        data = jnp.where((abs(own) >= least) & (abs(own) <= 1 / least), own, data)
    scale = _near(scale, kept, aval.dtype)
    scale = _perhaps_above(scale, aval.dtype) if far(n) else scale
    return [result(aval, data, scale, unit, role)]


def far(n: float) -> bool:
    """Whether the n-th power of what is near its scale may be far from its own: with 8 to it for
    the largest, FP16 holds the fifth."""
    return not 0 <= n <= 5


def _gate(x: Scaled, y: Scaled) -> tuple[Scale | None, str]:
    """The scale that a product keeps instead of its own, and its role (Scalify, section 3.2.1).

    An array times a bounded function (``gelu``, ``silu``) keeps the array's, a gate times another
    array (``swiglu``) the gate's, and the square of what is positive (``relu²``) its root's. 1 less
    a bounded function, as in their derivatives, and exp(-x²) may vanish where the array is large.
    """
    if x.role == POSITIVE and x.data is y.data:
        return _times_unknown(x, x), ""
    for one, other in ((x, y), (y, x)):
        if one.role == BOUNDED and other.role not in (BOUNDED, DECAYING):
            return _gated(other, one), GATE
        if one.role == GATE != other.role:
            return _times_unknown(one, other), ""
    roles = {x.role, y.role}
    if roles & {MASK, MASKED}:
        return None, MASKED
    if roles <= {BOUNDED, DECAYING}:
        return None, x.role if len(roles) == 1 else DECAYING
    return None, SQUARE if x.data is y.data else ""


def _gated(x: Scaled, gate: Scaled) -> Scale | None:
    """The scale of x, and of the largest number that the gate may be (2 for erfc)."""
    if x.scale is None or gate.scale is None:
        return None
    least, most = gate.scale.bounds
    bound = max(most, 0)
    return x.scale.shifted(bound, max(least, -_ROOM) - bound - 1, most=0)


def _times_unknown(x: Scaled, y: Scaled) -> Scale | None:
    """The scale of the first alone, from which their product is as far as the other's is from 1."""
    if x.scale is None or y.scale is None:
        return None
    both = x.scale * y.scale
    least, most = (max(min(end, _ROOM), -_ROOM) for end in y.scale.bounds)
    return x.scale.of_degree(both.degree, both.shifted(0, least, most).drift)


def _near(scale: Scale | None, wanted: Scale | None, dtype: Any) -> Scale | None:
    """The scale that is wanted instead, as far as the dtype has room for it."""
    if scale is None or wanted is None:
        return scale
    room = _ROOM if is_narrow(dtype) else _WIDE_ROOM
    found = maximum([scale.shifted(-room), minimum([wanted, scale.shifted(room)])])
    return found.of_degree(wanted.degree, wanted.drift)


def _vague_if(uncertain: Any, scale: Scale | None) -> Scale | None:
    return scale.vague() if scale and uncertain else scale


def _perhaps_above(scale: Scale | None, dtype: Any) -> Scale | None:
    """The scale of what may be far above it: a wide dtype holds that all the same."""
    if scale is None or is_narrow(dtype):
        return _vague_if(True, scale)
    return scale.shifted(0, 0, most=_REACH)


def _power_of_two(x: Scaled) -> Scale | None:
    return x.scale if x.number is not None and math.frexp(x.number)[0] == 0.5 else None


def _fills(equation: Any, x: Scaled) -> bool:
    """Whether x is as large as an equation's output and lies on the mesh as that does."""
    aval = equation.outvars[0].aval
    return x.shape == aval.shape and jax.typeof(x.data).sharding.spec == aval.sharding.spec


def _shifted(x: Scaled, by: Scale) -> Scaled:
    """x times a power of two: the same data in another unit, but for wide true values."""
    scale = x.scale and x.scale * by
    if is_narrow(x.dtype) or x.unit != ONE:
        return replace(x, scale=scale, unit=x.unit * by)
    return replace(x, data=times(x.data, by), scale=scale)


def agrees(scale: Callable[..., Scale | None], role: Callable[..., Any] = lambda *_: "") -> Rule:
    """f of floats in one unit; ``scale(dtype, *values)`` is what fits the result, ``role(*values)``
    what products make of it."""

    def rule(equation: Any, *operands: Any) -> list[Any]:
        values = [x for x in operands if isinstance(x, Scaled)]
        data, unit = aligned(values)
        own = iter(data)
        [output] = bind(equation, [next(own) if isinstance(x, Scaled) else x for x in operands])
        if not is_float(output):
            return [output]
        aval = equation.outvars[0].aval
        return [result(aval, output, scale(aval.dtype, *values), unit, role(*values))]

    return rule


def of_sum(dtype: Any, *values: Scaled) -> Scale | None:
    """The largest; a wide dtype holds what a small known number is added to at its own scale. What
    is masked may be the smaller term alone."""
    guards = [x.number is not None and abs(x.number) <= _GUARD for x in values]
    heard = [x for x, guard in zip(values, guards, strict=True) if not guard or is_narrow(dtype)]
    uncertain = any(x.role == MASKED for x in values) and len({x.scale for x in values}) > 1
    scale = _vague_if(uncertain, chosen(x.scale for x in heard or values))
    return scale and scale.shifted(0, 0, most=len(values) - 1 - sum(guards))


def _role(values: Sequence[Scaled]) -> Any:
    """That of all that are not known numbers, if it is the same."""
    role, *others = {x.role for x in values if x.number is None} or {""}
    return "" if others else role


def _of_bounded(*values: Scaled) -> str:
    """What is bounded stays so beside known numbers."""
    return BOUNDED if _role(values) == BOUNDED else ""


def _of_difference(x: Scaled, y: Scaled) -> str:
    if isinstance(y.role, Largest) and cast(y.role.of, register_dtype(x.dtype)) is register(x):
        return BELOW
    role = _of_bounded(x, y)
    return DECAYING if role and x.number is not None else role


added, subtracted = agrees(of_sum, _of_bounded), agrees(of_sum, _of_difference)


def smallest(dtype: Any, *values: Scaled) -> Scale | None:
    """The smallest scale of the operands."""
    return chosen((x.scale for x in values), minimum)


def of_picked(*sides: int) -> Callable[..., Scale | None]:
    """The largest scale of the arrays, to which known numbers yield as far as the dtype holds them.

    Args:
        sides: for each operand 1 where it bounds the result from above, -1 from below. Such a bound
            has no say where 0 is within it: beyond the data's range it does nothing.
    """

    def scale(dtype: Any, *values: Scaled) -> Scale | None:
        arrays = chosen(x.scale for x in values if x.number is None)
        sided = zip(values, [*sides, *[0] * len(values)], strict=False)
        numbers = [x for x, side in sided if x.number is not None and not x.number * side > 0]
        found = chosen([arrays, *(_beside(arrays, x.scale, dtype) for x in numbers)])
        bound = chosen(x.scale for x in values)  # of what may be infinite
        return bound.vague() if bound and not found else found

    return scale


def _beside(arrays: Scale | None, number: Scale | None, dtype: Any) -> Scale | None:
    """The least scale for a number among values of a scale, which it must not crowd out."""
    if number is None or arrays is None:
        return number
    wanted = min(number.constant, 0)
    if not is_narrow(dtype):
        return Scale(wanted)
    lowest = number.constant - int(jnp.finfo(dtype).maxexp) + 1
    yields = minimum([Scale(max(wanted, lowest)), arrays.shifted(_ROOM)])
    return maximum([Scale(lowest), yields])


def picks(*sides: int, joins: bool = False) -> Rule:
    """The result is made of elements of the operands, as of max and select: perhaps of those of the
    smaller scale only.

    A number beyond the dtype, such as -1e30 in FP16, is the infinity that it is in plain JAX.

    Args:
        sides: as of ``of_picked``.
        joins: whether all elements are in the result, as of pad and concatenate.
    """

    def scale(dtype: Any, *values: Scaled) -> Scale | None:
        arrays = {x.scale for x in values if x.number is None} - {None}
        numbers = {x.number for x in values if x.number is not None and x.scale is not None}
        uncertain = arrays and (numbers or (len(arrays) > 1 and not joins))
        return _vague_if(uncertain, of_picked(*sides)(dtype, *values))

    def role(*values: Scaled) -> Any:
        kept = _role(values)
        below = isinstance(kept, Largest) or kept == BELOW
        still = below and all(x.number is None or x.number <= 0 for x in values)
        return kept if still or kept == BOUNDED else ""

    rule = agrees(scale, role)
    return lambda equation, *operands: rule(equation, *map(_mask, operands))


def _mask(x: Any) -> Any:
    number = getattr(x, "number", None)
    if number is None or not abs(number) > float(jnp.finfo(x.dtype).max):
        return x
    infinity = math.copysign(math.inf, number)
    return replace(x, data=jnp.full_like(x.data, infinity), scale=None, number=infinity)


def opaque(scale: Callable[..., Scale | None] = lambda *_: ONE, role: str = "") -> Rule:
    """f of true values in float32; ``scale`` of the operands' scales, or of none where its dtype
    has float32's range, is what fits the result."""

    def rule(equation: Any, *operands: Any) -> list[Any]:
        own = [x.scale for x in operands if isinstance(x, Scaled)]

        def fitted(aval: Any, data: Any) -> Scaled:
            return result(aval, data, scale(*own) if is_narrow(aval.dtype) else scale(), role=role)

        return each(equation, bind(equation, list(map(true_values, operands))), fitted)

    return rule


at_one, vague = opaque(), opaque(lambda *_: ONE.vague())


def each(equation: Any, outputs: Sequence[Any], make: Callable) -> list[Any]:
    """Float arrays among an equation's outputs as ``make`` makes them of their types."""
    pairs = zip(equation.outvars, outputs, strict=True)
    return [make(var.aval, x) if is_array(var) and is_float(x) else x for var, x in pairs]


def is_array(variable: Any) -> bool:
    """Whether what an equation reads or makes is no reference, token or the like."""
    return isinstance(variable.aval, ShapedArray)


def root(n: int, function: Callable) -> Rule:
    """The n-th root (n < 0: its reciprocal), of true values where their unit has no such root.

    A reciprocal's size is known to what is normalised by it only: another may be of zeros.
    """

    def rule(equation: Any, x: Scaled, *_: Any) -> list[Any]:
        sign, unit = (1 if n > 0 else -1), x.unit.root(abs(n))
        whole = (x.unit / unit ** abs(n)).static
        data = at(x, unit ** abs(n) if whole else ONE)
        scale = x.scale and x.scale.root(abs(n)) ** sign
        aval = equation.outvars[0].aval
        role = INVERSE_ROOT if n < 0 and scale and scale.trusted else ""
        scale = _perhaps_above(scale, aval.dtype) if n < 0 else scale
        return [result(aval, function(data), scale, unit**sign if whole else ONE, role)]

    return rule


def of_terms(count: int, squares: bool = False) -> Scale:
    """The scale of a sum of terms of scale 1: the power of two at or below the square root of their
    count, or at or below that where none is negative."""
    if not isinstance(count, int) or count < 1:  # symbolic, or none
        return ONE
    exact = math.log2(count)
    return Scale.beside(exact, math.floor(exact if squares else exact / 2))
