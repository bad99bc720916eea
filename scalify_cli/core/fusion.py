"""Which narrow values a compiler would fuse with what reads them."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
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
_COMPARES = {p.eq_p, p.ne_p, p.lt_p, p.le_p, p.gt_p, p.ge_p}
_ADDS = {p.add_p, p.sub_p}
_COPIES = {
    *(p.max_p, p.min_p, p.select_n_p, p.clamp_p, p.neg_p, p.abs_p, p.reduce_max_p, p.reduce_min_p),
    *(p.reshape_p, p.broadcast_in_dim_p, p.squeeze_p, p.copy_p, p.stop_gradient_p),
    p.convert_element_type_p,
}
_found: WeakKeyDictionary[jex.Jaxpr, "Readers"] = WeakKeyDictionary()


class Readers(NamedTuple):
    """What reads the values of a jaxpr.

    Args:
        fused: results of functions and reductions that only others of the same run of such
            equations read. They stay in float32, for powers of data that has outgrown its scale are
            more than FP16 holds, and a moment that is rounded to zero must not divide in the step
            that makes it. What lives on across a matmul is narrow in memory, and so is what the
            program casts, unless back to the dtype that it was cast from, and not once more.
        compared: what comparisons read, in calls too, and what that is a copy of. It is rounded
            before: what is equal in its dtype must be so.
        added: the same of sums and differences. A result of the program is rounded before: what a
            sum has lost is the difference to that.
    """

    fused: set[Any]
    compared: set[Any]
    added: set[Any]


def readers(jaxpr: jex.Jaxpr) -> Readers:
    """Of a jaxpr's values."""
    if jaxpr not in _found:
        compared, added = (copied(jaxpr, (), which) for which in (_COMPARES, _ADDS))
        _found[jaxpr] = Readers(_fused(jaxpr), compared, added)
    return _found[jaxpr]


def copied(
    jaxpr: jex.Jaxpr, variables: Iterable[Any], primitives: Collection[Any] = ()
) -> set[Any]:
    """Some of a jaxpr's values, those that some primitives read, and what all these are copies of;
    in what is called too."""
    found = set(filter(is_variable, variables))
    for equation in reversed(jaxpr.eqns):
        wanted = not found.isdisjoint(equation.outvars)
        if equation.primitive in primitives or (wanted and equation.primitive in _COPIES):
            found.update(filter(is_variable, equation.invars))
        elif equation.primitive in CALLED_JAXPR and (wanted or primitives):
            called = _called(equation)
            ends = zip(equation.outvars, called.outvars, strict=True)
            inner = copied(called, (y for x, y in ends if x in found), primitives)
            pairs = zip(equation.invars, called.invars, strict=True)
            found.update(x for x, own in pairs if own in inner and is_variable(x))
    return found


def _fused(jaxpr: jex.Jaxpr) -> set[Any]:
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
        back = bool(reads) and casts and made.get(reads[0]) == run
        back = back and dtype == _dtype(equation.outvars[0])
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
    return all(map(_is_light, _called(equation).eqns))


def _called(equation: jex.JaxprEqn) -> jex.Jaxpr:
    return equation.params[CALLED_JAXPR[equation.primitive]].jaxpr
