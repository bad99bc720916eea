"""Numbers that a 16-bit program rounded away before it could be read.

Adam's ε = 1e-8 in a program over FP16 arrays is traced as the literal 0. Where a traced literal is
zero, subnormal or infinite, the function is traced once more with those arguments in float32, and
the two programs are read side by side: same primitives, true numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend.core import primitives as p


def true_literals(
    trace: Callable[[Sequence[Any]], jex.ClosedJaxpr], narrow: jex.ClosedJaxpr
) -> dict[int, float]:
    """The unrounded values of 16-bit literals, by ``id`` of the literal in ``narrow``.

    Args:
        trace: the function's jaxpr for given argument types.
        narrow: the one that is looked at.
    """
    equations = list(_equations(narrow.jaxpr))
    if not any(_is_lost(x) for e in equations for x in e.invars):
        return {}
    try:
        wide = trace([_in_float32(aval) for aval in narrow.in_avals])
    except (TypeError, ValueError):  # the program needs its own dtypes
        return {}
    same = takewhile(_is_same, zip(equations, _equations(wide.jaxpr), strict=False))
    pairs = (pair for e, other in same for pair in zip(e.invars, other.invars, strict=True))
    both = ((x, y) for x, y in pairs if isinstance(x, jex.Literal) and isinstance(y, jex.Literal))
    return {id(x): float(y.val) for x, y in both if _is_lost(x)}


def _equations(jaxpr: jex.Jaxpr) -> Iterator[jex.JaxprEqn]:
    """Those that are in a program whatever its dtypes, and in the programs that they call."""
    for equation in jaxpr.eqns:
        if equation.primitive is not p.convert_element_type_p:
            yield equation
        for inner in jex.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _is_same(pair: tuple[jex.JaxprEqn, jex.JaxprEqn]) -> bool:
    one, other = pair
    return one.primitive is other.primitive and len(one.invars) == len(other.invars)


def _in_float32(aval: Any) -> Any:
    return aval.update(dtype=jnp.dtype(jnp.float32)) if aval.dtype == jnp.float16 else aval


def _is_lost(x: Any) -> bool:
    """Whether x is an FP16 literal that may have been another; others may be ``finfo(dtype)``'s."""
    if not isinstance(x, jex.Literal) or getattr(x.aval, "dtype", None) != jnp.float16:
        return False
    value = abs(float(np.float32(x.val)))
    return value < float(jnp.finfo(jnp.float16).tiny) or not np.isfinite(value)
