"""Numbers that a 16-bit program rounded away before it could be read.

Adam's ε = 1e-8 in a program over FP16 arrays is traced as the literal 0. Where a traced literal is
zero, subnormal or infinite, the function is traced once more with those arguments in float32, and
what such literals are there is what they are here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

from scalify_cli.jaxprs.interpreter import scope_of

_TINY = float(jnp.finfo(jnp.float16).tiny)


def true_literals(
    trace: Callable[[Sequence[Any]], jex.ClosedJaxpr], narrow: jex.ClosedJaxpr
) -> dict[int, float]:
    """The unrounded values of 16-bit literals, by ``id`` of the literal in ``narrow``.

    Args:
        trace: the function's jaxpr for given argument types.
        narrow: the one that is looked at.
    """
    own = list(_lost_literals(narrow.jaxpr))
    if not any(_is_half(x) for x, _ in own):
        return {}
    try:
        wide = trace([_in_float32(aval) for aval in narrow.in_avals])
    except Exception:  # the program needs its own dtypes, and says so in its own way
        return {}
    others = list(_lost_literals(wide.jaxpr))
    # By lines where they are the same: JAX keeps its functions' programs with those of first calls.
    return _same(own, others, lines=False) | _same(own, others, lines=True)


def _lost_literals(jaxpr: jex.Jaxpr) -> Iterator[tuple[jex.Literal, jex.JaxprEqn]]:
    """Literals that FP16 does not hold or has perhaps lost, with the equations that read them."""
    for equation in jaxpr.eqns:
        for x in equation.invars:
            if isinstance(x, jex.Literal) and _is_lost(x):
                yield x, equation
        for inner in jex.jaxprs_in_params(equation.params):
            yield from _lost_literals(inner)


def _same(own: Sequence[Any], others: Sequence[Any], lines: bool) -> dict[int, float]:
    """The values, in the other program, of literals at places that both read as many at."""
    groups: dict[Any, tuple[list, list]] = defaultdict(lambda: ([], []))
    for which, found in enumerate((own, others)):
        for x, equation in found:
            groups[_place(equation, lines)][which].append(x)
    same = [pair for pair in groups.values() if len(pair[0]) == len(pair[1])]
    pairs = (pair for ours, theirs in same for pair in zip(ours, theirs, strict=True))
    return {id(x): float(y.val) for x, y in pairs if _is_half(x)}


def _place(equation: jex.JaxprEqn, lines: bool) -> tuple:
    """What is the same of an equation in a program of any dtype."""
    shapes = tuple(getattr(x.aval, "shape", ()) for x in equation.outvars)
    line = source_info_util.summarize(equation.source_info) if lines else ""
    return equation.primitive, shapes, scope_of(equation), line


def _in_float32(aval: Any) -> Any:
    return aval.update(dtype=jnp.dtype(jnp.float32)) if aval.dtype == jnp.float16 else aval


def _is_lost(x: jex.Literal) -> bool:
    """Whether FP16 cannot hold it well; others may be ``finfo(dtype)``'s."""
    if getattr(x.aval, "dtype", None) not in (jnp.float16, jnp.float32):
        return False
    with np.errstate(over="ignore", under="ignore"):
        value = abs(float(np.float16(np.float32(x.val))))
    return value < _TINY or not np.isfinite(value)


def _is_half(x: jex.Literal) -> bool:
    return getattr(x.aval, "dtype", None) == jnp.float16
