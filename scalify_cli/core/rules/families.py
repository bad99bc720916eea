"""The algebraic classes of scale rules (Scalify, section 3.2).

A rule takes an equation and its operands, floats as ``Scaled`` and others as they are, and returns
the outputs. For a function f of s*x:

* *passes through*: f(s*x) = s*f(x);
* *multiplies*: scales and units multiply as values do (``rules/products.py``);
* *agrees*: operands share a unit first, and the scale is the largest;
* *is opaque*: computed on true values in float32. Where the function says nothing of its result's
  size, that is measured if it is to be stored in a narrow dtype.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype, wide_dtype
from scalify_cli.core.storage import aligned, register, true_values
from scalify_cli.core.values import GUARDED, Picked, Scaled, nonzero, picked
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.choices import chosen, maximum, minimum
from scalify_cli.scales.scale import ONE, Scale

Rule = Callable[..., list[Any]]
BOUNDED, DECAYING, GATE, POSITIVE = "bounded", "decaying", "gate", "positive"
BELOW, SHARE, TOTAL = "below", "share", "total"
"""In a softmax: values less the largest, their exponentials, and the sum of those."""
_GUARD = 2.0**-6  # a number up to it keeps a divisor from zero, and has no say in a sum's scale
REACH = 100  # binades from its unit that data in float32 may be
ROOM = 7  # binades between the scale that a narrow value is given and its own
_SHAPED = {
    *(p.reshape_p, p.broadcast_in_dim_p, p.squeeze_p, p.transpose_p),
    *(p.copy_p, p.stop_gradient_p),
}


@dataclass(frozen=True, eq=False)
class Largest:
    """The role of the largest of an array's elements."""

    of: Any


def result(aval: Any, data: Any, scale: Scale | None, unit: Scale = ONE, role: str = "") -> Scaled:
    """A value of a type; what is narrow stays in float32 until it is stored."""
    return Scaled(cast(data, register_dtype(aval.dtype)), scale, unit, aval.dtype, role=role)


def passes_through(equation: Any, *operands: Any) -> list[Any]:
    """f(s*x) = s*f(x): of each operand where there are as many outputs (barriers and the like), of
    the first one where others are indices, sizes or the like. What only changes an array's shape
    keeps what it was picked from."""
    outputs = bind(equation, [x.data if isinstance(x, Scaled) else x for x in operands])
    sources = operands if len(operands) == len(outputs) else operands[:1] * len(outputs)
    values = [
        x.with_data(y) if isinstance(x, Scaled) and is_float(y) else y
        for x, y in zip(sources, outputs, strict=True)
    ]
    found = picked(operands[0]) if equation.primitive in _SHAPED else None
    if found:
        [before] = bind(equation, [found.before[0]])
        found = replace(found, before=(before, found.before[1]), now=(outputs[0], values[0].unit))
        values = [replace(values[0], picked=found)]
    return values


def with_sources(x: Any, *values: Any) -> Any:
    """x, whose elements are those of some values: equal to them whatever it is stored in."""
    if not isinstance(x, Scaled):
        return x
    own = (x.data, x.unit)
    of = [(v.data, v.unit) for v in values if isinstance(v, Scaled)]
    return replace(x, picked=Picked(tuple(of), own, own))


def equality(equation: Any, x: Scaled, y: Scaled) -> list[Any]:
    """Equal and not equal: an element is equal to itself."""
    return subtracted(equation, _before(x, y), _before(y, x))


def _before(x: Scaled, other: Scaled) -> Scaled:
    """x before it was stored, where it may be equal to what it was picked from."""
    found = picked(x)
    if found is None:
        return x
    own = register(other), other.unit
    same = any(cast(y, own[0].dtype) is own[0] and unit == own[1] for y, unit in found.of)
    return replace(x, data=found.before[0], unit=found.before[1]) if same else x


def scale_free(equation: Any, x: Scaled) -> list[Any]:
    """sign, is_finite: a function of the data alone."""
    return passes_through(equation, replace(x, scale=ONE, unit=ONE))


def of_several(scale: Scale | None, values: Sequence[Scaled]) -> Scale | None:
    """The largest scale of some values, which may be zeros where it is theirs."""
    scales = {x.scale for x in values if x.scale is not None}
    near = all(x.relative(y)[1] <= ROOM for x, y in itertools.permutations(scales, 2))
    sure = near and all(x.drift[0] >= -ROOM for x in scales)
    return scale if sure or not scale else scale.shifted(0, -REACH, most=0)


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
    """The largest; a wide dtype holds what a small known number is added to at its own scale."""
    guards = [x.number is not None and abs(x.number) <= _GUARD for x in values]
    terms = [x for x, guard in zip(values, guards, strict=True) if not guard]
    heard = terms if any(x.scale for x in terms) and not is_narrow(dtype) else values
    scale = of_several(chosen(x.scale for x in heard), terms)
    if scale is None:
        return None
    above = [x.scale.relative(scale)[1] for x in values if x not in heard and x.scale]
    return scale.shifted(0, 0, most=max([len(values) - 1 - sum(guards), *above]))


def _role(values: Sequence[Scaled]) -> Any:
    """That of all that are not known numbers, if it is the same."""
    role, *others = {x.role for x in values if x.number is None} or {""}
    return "" if others else role


def _of_terms(*values: Scaled) -> str:
    """A small number guards what it is added to; beside others, what is bounded stays so."""
    return _guarded(values) or (BOUNDED if _role(values) == BOUNDED else nonzero(values))


def _guarded(values: Sequence[Scaled]) -> str:
    """The role of what a small number among some values keeps from zero."""
    guards = sum(bool(x.number) and abs(x.number) <= _GUARD for x in values)
    return GUARDED if 0 < guards < len(values) else ""


def _of_difference(x: Scaled, y: Scaled) -> str:
    if isinstance(y.role, Largest) and cast(y.role.of, register_dtype(x.dtype)) is register(x):
        return BELOW
    role = _of_terms(x, y)
    return DECAYING if role == BOUNDED and x.number is not None else role


added, subtracted = agrees(of_sum, _of_terms), agrees(of_sum, _of_difference)


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
        if not found:
            found = chosen(x.scale for x in values)  # of what may be infinite
            return found and found.vague()
        if arrays and any(x.number is not None and x.scale for x in values):
            return found.vague()
        return of_several(found, values)

    return scale


def _beside(arrays: Scale | None, number: Scale | None, dtype: Any) -> Scale | None:
    """The least scale for a number among values of a scale, which it must not crowd out."""
    if number is None or arrays is None:
        return number
    wanted = min(number.constant, 0)
    if not is_narrow(dtype):
        return Scale(wanted)
    lowest = number.constant - int(jnp.finfo(dtype).maxexp) + 1
    yields = minimum([Scale(max(wanted, lowest)), arrays.shifted(ROOM)])
    return maximum([Scale(lowest), yields])


def picks(*sides: int) -> Rule:
    """The result is made of elements of the operands, as of max, select and concatenate.

    A number beyond the dtype, such as -1e30 in FP16, is the infinity that it is in plain JAX.

    Args:
        sides: as of ``of_picked``.
    """

    def role(*values: Scaled) -> Any:
        kept = _role(values)
        below = isinstance(kept, Largest) or kept == BELOW
        still = below and all(x.number is None or x.number <= 0 for x in values)
        return kept if still or kept == BOUNDED else _guarded(values) or nonzero(values)

    rule = agrees(of_picked(*sides), role)

    def made(equation: Any, *operands: Any) -> list[Any]:
        [x] = rule(equation, *map(_mask, operands))
        return [with_sources(x, *operands)]

    return made


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
        sums = equation.params.get("preferred_element_type")
        params = {} if sums is None else {"preferred_element_type": _wide_sums(sums)}

        def fitted(aval: Any, data: Any) -> Scaled:
            return result(aval, data, scale(*own) if is_narrow(aval.dtype) else scale(), role=role)

        outputs = bind(equation, list(map(true_values, operands)), **params)
        return each(equation, outputs, fitted)

    return rule


def _wide_sums(dtype: Any) -> Any:
    return wide_dtype(dtype) if jnp.issubdtype(dtype, jnp.floating) else dtype


at_one, vague = opaque(), opaque(lambda *_: ONE.vague())


def each(equation: Any, outputs: Sequence[Any], make: Callable) -> list[Any]:
    """Float arrays among an equation's outputs as ``make`` makes them of their types."""
    pairs = zip(equation.outvars, outputs, strict=True)
    return [make(var.aval, x) if is_array(var) and is_float(x) else x for var, x in pairs]


def is_array(variable: Any) -> bool:
    """Whether what an equation reads or makes is no reference, token or the like."""
    return isinstance(variable.aval, ShapedArray)


def of_terms(count: int, squares: bool = False) -> Scale:
    """The scale of a sum of terms of scale 1: the power of two at or below the square root of their
    count, or at or below that where none is negative."""
    if not isinstance(count, int) or count < 1:  # symbolic, or none
        return ONE
    exact = math.log2(count)
    return Scale.beside(exact, math.floor(exact if squares else exact / 2))
