"""Derivatives that a program defines itself, kept where it is differentiated outside of scalify.

A call is its body, evaluated in place, and so would its derivative be the body's. Beside it stands
the call as it was written, on true values, of which only the derivative is read: where nobody asks
for that, nothing of it is compiled.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.interpreters import ad, batching

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype
from scalify_cli.core.ruled_primitive import RuledPrimitive, marker
from scalify_cli.core.rules.programs import widened
from scalify_cli.core.storage import at, plain, true_values
from scalify_cli.core.values import Scaled, Uniform, picked_as
from scalify_cli.jaxprs.calls import changed
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.jaxprs.tracing import shard_level
from scalify_cli.scales.scale import ONE

_FUNCTIONS = {p.custom_jvp_call_p, p.custom_vjp_call_p}
DIFFERENTIATED = {*(x.name for x in _FUNCTIONS), "custom_linear_solve"}
"""Calls that bring their derivatives, by name."""
_asked: ContextVar[bool] = ContextVar("_asked", default=True)


def with_derivative(equation: Any, operands: Sequence[Any], outputs: list[Any]) -> list[Any]:
    """The outputs of a call with the derivative that the program gives it.

    What has effects must not happen twice, and what rounds values rounds scaled data. Within
    ``shard_map`` the derivative is the body's: JAX does not track there how shards differ.
    """
    varies = any(is_float(x) and not isinstance(x, Uniform) for x in operands)
    if not (varies and _asked.get()) or shard_level() or equation.effects or _rounds(equation):
        return outputs
    variables = [*equation.invars, *equation.outvars]
    narrow = any(is_float(x.aval) and is_narrow(x.aval.dtype) for x in variables)
    if narrow and equation.primitive in _FUNCTIONS:
        values = [true_values(x) if isinstance(x, Scaled) else plain(x) for x in operands]
        return list(map(_derived, outputs, _InFloat32(equation)(values)))
    return list(map(_derived, outputs, bind(equation, list(map(plain, operands)))))


@contextmanager
def derivatives(asked: bool) -> Iterator[None]:
    """Whether anybody may ask for a derivative from outside."""
    token = _asked.set(asked)
    try:
        yield
    finally:
        _asked.reset(token)


def _rounds(equation: Any) -> bool:
    programs = jex.jaxprs_in_params(equation.params)
    inner = (e for program in programs for e in program.eqns)
    return any(isinstance(e.primitive, RuledPrimitive) or _rounds(e) for e in inner)


def _derived(x: Any, own: Any) -> Any:
    if isinstance(x, Uniform) or not (is_float(x) and _asked.get()):
        return x
    if not isinstance(x, Scaled):
        return derived_p.bind(x, cast(own, x.dtype))
    own = at(Scaled(cast(own, register_dtype(x.dtype)), x.scale, ONE), x.unit)
    return picked_as(x, x.with_data(derived_p.bind(x.data, cast(own, x.data.dtype))))


def _again(equation: Any, x: Any, own: Any) -> list[Any]:
    """Within another ``scalify``, outside of which somebody may ask too."""
    return [_derived(x, true_values(own) if isinstance(own, Scaled) else plain(own))]


derived_p = marker("derived", _again)
ad.defjvp(derived_p, None, lambda tangent, x, own: tangent)
batching.defbroadcasting(derived_p)


class _InFloat32:
    """A call, and its derivatives, in float32 instead of narrow dtypes, which may not hold the
    values."""

    def __init__(self, equation: Any):
        self.equation, first = equation, equation.params.get("num_consts", 0)
        self.inputs = [x.aval for x in equation.invars]
        # Nobody differentiates by what the function closes over, which comes first.
        self.floats = [i for i, x in enumerate(self.inputs) if i >= first and is_float(x)]
        self.returned = [i for i, x in enumerate(equation.outvars) if is_float(x.aval)]

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """What the call returns; None beside floats."""
        value = self.wide(self.value)
        if self.equation.primitive is p.custom_jvp_call_p:
            f = jax.custom_jvp(lambda *values: value(values))
            f.defjvp(lambda values, tangents: (value(values), self.pushed(values, tangents)))
        else:
            f = jax.custom_vjp(lambda *values: value(values))
            f.defvjp(lambda *values: (value(values), values), self.pulled)
        outputs = f(*map(widened, values))
        return _placed([None] * len(self.equation.outvars), self.returned, outputs)

    def pushed(self, values: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """The tangents of what the call returns."""
        along = lambda values, tangents: jax.jvp(*self.parts(values), tangents)[1]  # noqa: E731
        own = [self.inputs[i] for i in self.floats]
        return self.wide(along, own)(values, [tangents[i] for i in self.floats])

    def pulled(self, values: Sequence[Any], cotangents: Sequence[Any]) -> tuple:
        """The cotangents of what it is given; none of integers."""

        def back(values: Any, cotangents: Any) -> Any:
            written, own = self.parts(values)
            return jax.vjp(written, *own)[1](cotangents)

        own = [self.equation.outvars[i].aval for i in self.returned]
        found = self.wide(back, own)(values, cotangents)
        return tuple(_placed([None] * len(values), self.floats, found))

    def value(self, values: Sequence[Any]) -> list[Any]:
        """The call as it was written."""
        written, own = self.parts(values)
        return written(*own)

    def parts(self, values: Sequence[Any]) -> tuple[Callable, list[Any]]:
        """The same as a function from floats to floats, and what it is called with."""

        def written(*own: Any) -> list[Any]:
            outputs = bind(self.equation, _placed(values, self.floats, own))
            return [outputs[i] for i in self.returned]

        return written, [values[i] for i in self.floats]

    def wide(self, function: Callable, *types: Any) -> Callable:
        """A function of what the call is given, and of others, in float32."""
        program = changed(jax.make_jaxpr(function)(self.inputs, *types), widened)
        return lambda *lists: jex.jaxpr_as_fun(program)(*itertools.chain(*lists))


def _placed(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """Some values with others in their places."""
    found = dict(zip(places, new, strict=True))
    return [found.get(i, x) for i, x in enumerate(values)]
