"""Which narrow values a compiler would fuse with what reads them."""

from typing import Any
from weakref import WeakKeyDictionary

from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import is_float, is_narrow
from scalify_cli.core.rules.arithmetic import RULES
from scalify_cli.jaxprs.calls import CALLED_JAXPR
from scalify_cli.jaxprs.interpreter import is_variable, live_equations

_LIGHT = {
    *RULES,
    *(p.reshape_p, p.broadcast_in_dim_p, p.squeeze_p),
    *(p.reduce_sum_p, p.reduce_max_p, p.reduce_min_p),
}
_found: WeakKeyDictionary[jex.Jaxpr, set] = WeakKeyDictionary()


def fused(jaxpr: jex.Jaxpr) -> set[Any]:
    """Results of functions and reductions that only others of the same run of such equations read.

    They stay in float32, for powers of data that has outgrown its scale are more than FP16 holds,
    and a moment that is rounded to zero must not divide in the step that makes it. What lives on
    across a matmul is narrow in memory, and so is what the program casts, unless back to the dtype
    that it was cast from, and not once more.
    """
    if jaxpr not in _found:
        _found[jaxpr] = _look(jaxpr)
    return _found[jaxpr]


def _look(jaxpr: jex.Jaxpr) -> set[Any]:
    made: dict[Any, int] = {}  # in which run of such equations
    origin: dict[Any, Any] = {}  # the one dtype that a value has been cast from
    read, others, returned, run = set(), set(), set(), 0
    for equation in filter(lambda e: e.outvars, live_equations(jaxpr)):
        reads = [x for x in equation.invars if is_variable(x) and is_float(x.aval)]
        light, casts = _is_light(equation), equation.primitive is p.convert_element_type_p
        read.update(reads)
        others.update(x for x in reads if not light or made.get(x) != run)
        others.update(returned.intersection(reads) if casts else ())
        run += bool(reads and not light)
        [dtype, *mixed] = {origin.get(x, _dtype(x)) for x in reads} or {None}
        if light and not mixed:
            origin |= dict.fromkeys(equation.outvars, dtype)
        back = casts and dtype == _dtype(equation.outvars[0]) and made.get(reads[0]) == run
        returned.update(equation.outvars if back else ())
        if light and (back or not casts):
            made |= dict.fromkeys(equation.outvars, run)
    kept = made.keys() & read - others
    return {x for x in kept if is_float(x.aval) and is_narrow(_dtype(x))}


def _dtype(variable: Any) -> Any:
    return variable.aval.dtype


def _is_light(equation: jex.JaxprEqn) -> bool:
    if equation.primitive not in CALLED_JAXPR:
        return not _LIGHT.isdisjoint({equation.primitive, equation.primitive.name})
    called = equation.params[CALLED_JAXPR[equation.primitive]].jaxpr
    return all(map(_is_light, called.eqns))
