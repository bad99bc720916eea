"""Derivatives that a program defines itself, kept where it is differentiated outside of scalify.

A call is its body, evaluated in place, and so would its derivative be the body's. Beside it stands
the call as it was written, on true values, of which only the derivative is read: where nobody asks
for that, nothing of it is compiled.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.interpreters import ad, batching

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype
from scalify_cli.core.ruled_primitive import RuledPrimitive, marker
from scalify_cli.core.rules.programs import widened
from scalify_cli.core.values import Scaled, Uniform, at, picked_as, plain, true_values
from scalify_cli.jaxprs.calls import changed
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.scale import ONE

_FUNCTIONS = {p.custom_jvp_call_p, p.custom_vjp_call_p}
DIFFERENTIATED = {*(x.name for x in _FUNCTIONS), "custom_linear_solve"}
"""Calls that bring their derivatives, by name."""
derived_p = marker("derived", lambda equation, x, own: [x])
ad.defjvp(derived_p, None, lambda tangent, x, own: tangent)
batching.defbroadcasting(derived_p)


def with_derivative(equation: Any, operands: Sequence[Any], outputs: list[Any]) -> list[Any]:
    """The outputs of a call with the derivative that the program gives it.

    What has effects must not happen twice, and what rounds values rounds scaled data.
    """
    varies = any(is_float(x) and not isinstance(x, Uniform) for x in operands)
    if not varies or equation.effects or _rounds(equation):
        return outputs
    variables = [*equation.invars, *equation.outvars]
    narrow = any(is_float(x.aval) and is_narrow(x.aval.dtype) for x in variables)
    written = _in_float32 if narrow and equation.primitive in _FUNCTIONS else _in_own_dtypes
    return list(map(_derived, outputs, written(equation, operands)))


def _rounds(equation: Any) -> bool:
    programs = jex.jaxprs_in_params(equation.params)
    inner = (e for program in programs for e in program.eqns)
    return any(isinstance(e.primitive, RuledPrimitive) or _rounds(e) for e in inner)


def _derived(x: Any, own: Any) -> Any:
    if isinstance(x, Uniform) or not is_float(x):
        return x
    if not isinstance(x, Scaled):
        return derived_p.bind(x, cast(own, x.dtype))
    own = at(Scaled(cast(own, register_dtype(x.dtype)), x.scale, ONE), x.unit)
    return picked_as(x, x.with_data(derived_p.bind(x.data, cast(own, x.data.dtype))))


def _in_own_dtypes(equation: Any, operands: Sequence[Any]) -> list[Any]:
    return bind(equation, list(map(plain, operands)))


def _in_float32(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The call in float32 instead of narrow dtypes, which may not hold the values; None for what
    it returns beside floats."""
    values = [widened(true_values(x) if isinstance(x, Scaled) else plain(x)) for x in operands]
    closed_over = equation.params.get("num_consts", 0)  # which nobody differentiates by
    floats = [i for i, x in enumerate(equation.invars) if is_float(x.aval) and i >= closed_over]
    returned = [i for i, x in enumerate(equation.outvars) if is_float(x.aval)]

    def of_floats(values: Sequence[Any]) -> tuple[Callable, list[Any]]:
        """The call as it was written, from floats to floats, and those of the values."""

        def written(*own: Any) -> list[Any]:
            outputs = bind(equation, _placed(values, floats, own))
            return [outputs[i] for i in returned]

        return written, [values[i] for i in floats]

    def value(values: Any) -> Any:
        written, own = of_floats(values)
        return written(*own)

    def pushed(values: Any, tangents: Any) -> Any:
        written, own = of_floats(values)
        return jax.jvp(written, own, tangents)[1]

    def pulled(values: Any, cotangents: Any) -> Any:
        written, own = of_floats(values)
        return jax.vjp(written, *own)[1](cotangents)

    def wide(function: Callable, *types: Any) -> Callable:
        avals = [x.aval for x in equation.invars]
        program = changed(jax.make_jaxpr(function)(avals, *types), widened)
        return lambda *lists: jex.jaxpr_as_fun(program)(*itertools.chain(*lists))

    primal = wide(value)

    def jvp(values: Any, tangents: Any) -> Any:
        starts = [equation.invars[i].aval for i in floats]
        return primal(values), wide(pushed, starts)(values, [tangents[i] for i in floats])

    def backward(values: Any, cotangents: Any) -> Any:
        ends = [equation.outvars[i].aval for i in returned]
        return tuple(_placed([None] * len(values), floats, wide(pulled, ends)(values, cotangents)))

    if equation.primitive is p.custom_jvp_call_p:
        f = jax.custom_jvp(lambda *values: primal(values))
        f.defjvp(jvp)
    else:
        f = jax.custom_vjp(lambda *values: primal(values))
        f.defvjp(lambda *values: (primal(values), values), backward)
    return _placed([None] * len(equation.outvars), returned, f(*values))


def _placed(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """Some values with others in their places."""
    found = dict(zip(places, new, strict=True))
    return [found.get(i, x) for i, x in enumerate(values)]
