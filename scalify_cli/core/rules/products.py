"""Scale rules of products, quotients, powers and roots: scales and units multiply as values do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from scalify_cli.core.dtypes import cast, is_narrow
from scalify_cli.core.rules.families import (
    BELOW,
    BOUNDED,
    DECAYING,
    GATE,
    POSITIVE,
    REACH,
    ROOM,
    TOTAL,
    Largest,
    Rule,
    passes_through,
    result,
)
from scalify_cli.core.storage import NEAR, at, measured, register, times, true
from scalify_cli.core.values import SQUARE, Scaled, nonzero
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.choices import maximum, minimum
from scalify_cli.scales.scale import ONE, Scale

_INVERSE_ROOT = "inverse root"  # the role of what rows are normalised by
_WIDE_ROOM = 24  # as ROOM, of a wide dtype


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
    known = scale is None or (scale.trusted and (scale / unit).reach <= REACH)
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
    cubes = y.number is None and SQUARE in (x.role, y.role)
    (x, y), scale, unit = factors((x, y), (1, 1))
    aval = equation.outvars[0].aval
    [data] = bind(equation, [register(x), register(y)])
    scale = _near(scale, kept, aval.dtype)
    scale = scale and scale.vague() if decays else scale
    return [result(aval, data, perhaps_above(scale, aval.dtype) if cubes else scale, unit, role)]


def quotient(equation: Any, x: Scaled, y: Scaled) -> list[Any]:
    """Division. A known power of two changes only the scale and the unit.

    An array may hold what is far below its scale, and the quotient is as far above; what all of a
    row is divided by is as large as the row.
    """
    if (by := _power_of_two(y)) and _fills(equation, x):
        return [_shifted(_not_below(x, True), by**-1)]
    aval, measures = equation.outvars[0].aval, not y.shape and is_narrow(y.dtype)
    told = measures or y.number is not None or y.role == TOTAL
    (x, y), scale, unit = factors((x, _factor(y, measures)), (1, -1))
    [data] = bind(equation, [register(x), register(y)])
    if not told and y.shape in (aval.shape, ()):
        scale = perhaps_above(scale, aval.dtype)
    return [result(aval, data, scale, unit, "" if y.shape else nonzero([x]))]


def _factor(x: Scaled, measures: bool = False) -> Scaled:
    """A known number with the nearest scale: a moving average times 0.999 must not lose a binade of
    its scale each time. A drifting scalar is measured: else each array that it scales would be.

    Args:
        measures: whether a scalar is measured in any case.
    """
    if x.scale is None:
        return x
    if x.number is None:
        drifts = is_narrow(x.dtype) and (any(x.scale.drift) or not x.scale.trusted)
        measures = measures or (drifts and not x.shape)
        return measured(register(x), x.dtype, x.unit) if measures else x
    exact = math.log2(abs(x.number))
    return replace(x, scale=Scale.beside(exact, round(exact)))


def _normaliser(x: Scaled, other: Scaled) -> Scaled:
    """x, of the size that it was given if rows of the other are normalised by it."""
    unlike = x.shape != other.shape and (x.shape or not is_narrow(x.dtype))
    if x.role != _INVERSE_ROOT or x.scale is None or not unlike:
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
    scale = perhaps_above(scale, aval.dtype) if far(n) or x.role == SQUARE else scale
    return [result(aval, data, scale, unit, role)]


def far(n: float) -> bool:
    """Whether the n-th power of what is near its scale may be far from its own: of an array that is
    zero for the most part, the largest is hundreds of times its root mean square."""
    return not 0 <= n <= 2


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
    if roles <= {BOUNDED, DECAYING}:
        return None, x.role if len(roles) == 1 else DECAYING
    by_scalar = [one for one, other in ((x, y), (y, x)) if not other.shape]
    return None, SQUARE if x.data is y.data else nonzero(by_scalar)


def _gated(x: Scaled, gate: Scaled) -> Scale | None:
    """The scale of x, and of the largest number that the gate may be (2 for erfc)."""
    if x.scale is None or gate.scale is None:
        return None
    least, most = gate.scale.bounds
    bound = max(most, 0)
    return x.scale.shifted(bound, max(least, -ROOM) - bound - 1, most=0)


def _times_unknown(x: Scaled, y: Scaled) -> Scale | None:
    """The scale of the first alone, from which their product is as far as the other's is from 1."""
    if x.scale is None or y.scale is None:
        return None
    both = x.scale * y.scale
    least, most = (max(min(end, ROOM), -ROOM) for end in y.scale.bounds)
    return x.scale.of_degree(both.degree, both.shifted(0, least, most).drift)


def _near(scale: Scale | None, wanted: Scale | None, dtype: Any) -> Scale | None:
    """The scale that is wanted instead, as far as the dtype has room for it."""
    if scale is None or wanted is None:
        return scale
    room = ROOM if is_narrow(dtype) else _WIDE_ROOM
    found = maximum([scale.shifted(-room), minimum([wanted, scale.shifted(room)])])
    return found.of_degree(wanted.degree, wanted.drift)


def perhaps_above(scale: Scale | None, dtype: Any) -> Scale | None:
    """The scale of what may be far above it: a wide dtype holds that all the same."""
    return scale and (scale.vague() if is_narrow(dtype) else scale.shifted(0, 0, most=REACH))


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
        role = _INVERSE_ROOT if n < 0 and scale and scale.trusted else ""
        scale = perhaps_above(scale, aval.dtype) if n < 0 else scale
        return [result(aval, function(data), scale, unit**sign if whole else ONE, role)]

    return rule
