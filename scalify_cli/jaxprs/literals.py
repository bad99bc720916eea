"""Numbers that a 16-bit program rounded away before it could be read.

Adam's ε = 1e-8 in a program over FP16 arrays is traced as the literal 0. Where a traced literal is
zero, subnormal or infinite, the function is traced once more with those arguments in float32, and
what such literals are there is what they are here.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives as p


def true_literals(
    trace: Callable[[Sequence[Any]], jex.ClosedJaxpr], narrow: jex.ClosedJaxpr
) -> dict[int, float]:
    """The unrounded values of 16-bit literals, by ``id`` of the literal in ``narrow``.

    Args:
        trace: the function's jaxpr for given argument types.
        narrow: the one that is looked at.
    """
    lost = _lost_literals(narrow.jaxpr)
    if not any(_is_half(x) for group in lost.values() for x in group):
        return {}
    try:
        wide = _lost_literals(trace([_in_float32(aval) for aval in narrow.in_avals]).jaxpr)
    except (TypeError, ValueError):  # the program needs its own dtypes
        return {}
    same = [key for key in lost if len(lost[key]) == len(wide[key])]
    pairs = (pair for key in same for pair in zip(lost[key], wide[key], strict=True))
    return {id(x): float(y.val) for x, y in pairs if _is_half(x)}


def _lost_literals(jaxpr: jex.Jaxpr, called: bool = False) -> dict[Any, list[jex.Literal]]:
    """Literals that FP16 does not hold or has perhaps lost, by what is the same in any dtype of the
    equation that reads them.

    Args:
        called: whether it is a function's, which JAX keeps with the source lines of its first call.
    """
    found: dict[Any, list[jex.Literal]] = defaultdict(list)
    for equation in jaxpr.eqns:
        literals = [x for x in equation.invars if isinstance(x, jex.Literal) and _is_lost(x)]
        if literals:
            source = equation.source_info
            line = "" if called else source_info_util.summarize(source)
            shapes = tuple(getattr(x.aval, "shape", ()) for x in equation.outvars)
            found[equation.primitive, shapes, str(source.name_stack), line] += literals
        for inner in jex.jaxprs_in_params(equation.params):
            inside = _lost_literals(inner, called or equation.primitive is p.jit_p)
            for key, literals in inside.items():
                found[key] += literals
    return found


def _in_float32(aval: Any) -> Any:
    return aval.update(dtype=jnp.dtype(jnp.float32)) if aval.dtype == jnp.float16 else aval


def _is_lost(x: jex.Literal) -> bool:
    """Whether FP16 cannot hold it well; others may be ``finfo(dtype)``'s."""
    if getattr(x.aval, "dtype", None) not in (jnp.float16, jnp.float32):
        return False
    with np.errstate(over="ignore", under="ignore"):
        value = abs(float(np.float16(np.float32(x.val))))
    return value < float(jnp.finfo(jnp.float16).tiny) or not np.isfinite(value)


def _is_half(x: jex.Literal) -> bool:
    return getattr(x.aval, "dtype", None) == jnp.float16
