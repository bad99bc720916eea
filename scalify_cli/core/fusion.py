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
    across a matmul is narrow in memory, and so is what the program casts.
    """
    if jaxpr not in _found:
        _found[jaxpr] = _look(jaxpr)
    return _found[jaxpr]


def _look(jaxpr: jex.Jaxpr) -> set[Any]:
    made: dict[Any, int] = {}  # in which run of such equations
    read, others, run = set(), set(), 0
    for equation in filter(lambda e: e.outvars, live_equations(jaxpr)):
        reads = [x for x in equation.invars if is_variable(x) and is_float(x.aval)]
        light = _is_light(equation)
        read.update(reads)
        others.update(x for x in reads if not light or made.get(x) != run)
        run += bool(reads and not light)
        if light and equation.primitive is not p.convert_element_type_p:
            made |= dict.fromkeys(equation.outvars, run)
    kept = made.keys() & read - others
    return {x for x in kept if is_float(x.aval) and is_narrow(x.aval.dtype)}


def _is_light(equation: jex.JaxprEqn) -> bool:
    if equation.primitive not in CALLED_JAXPR:
        return not _LIGHT.isdisjoint({equation.primitive, equation.primitive.name})
    called = equation.params[CALLED_JAXPR[equation.primitive]].jaxpr
    return all(map(_is_light, called.eqns))
