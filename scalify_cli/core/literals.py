"""Numbers that a 16-bit program rounded away before it could be read.

Adam's ε = 1e-8 in a program over FP16 arrays is traced as the literal 0. Where a traced literal is
zero, subnormal or infinite, the function is traced once more with those arguments in float32, and
the two programs are walked side by side: same primitives, true numbers.
"""

from collections.abc import Callable, Iterator, Sequence
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
    if not any(_suspicious(literal) for literal in _literals(narrow.jaxpr)):
        return {}
    widened = [_in_float32(aval) for aval in narrow.in_avals]
    try:
        wide = trace(widened)
    except (TypeError, ValueError):  # the program needs its own dtypes
        return {}
    return dict(_paired(narrow.jaxpr, wide.jaxpr))


def _in_float32(aval: Any) -> Any:
    return aval.update(dtype=jnp.dtype(jnp.float32)) if aval.dtype == jnp.float16 else aval


def _suspicious(literal: Any) -> bool:
    if literal.aval.dtype != jnp.float16:
        return False
    value, info = abs(float(np.float32(literal.val))), jnp.finfo(literal.aval.dtype)
    return value < float(info.tiny) or not np.isfinite(value)


def _literals(jaxpr: jex.Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield from (atom for atom in equation.invars if isinstance(atom, jex.Literal))
        for inner in jex.jaxprs_in_params(equation.params):
            yield from _literals(inner)


def _paired(narrow: Any, wide: Any) -> Iterator[tuple[int, float]]:
    for mine, other in zip(_computing(narrow), _computing(wide), strict=False):
        if mine.primitive is not other.primitive or len(mine.invars) != len(other.invars):
            return
        for atom, twin in zip(mine.invars, other.invars, strict=True):
            both = isinstance(atom, jex.Literal) and isinstance(twin, jex.Literal)
            if both and _suspicious(atom):  # others may be a dtype's own: finfo(dtype).max
                yield id(atom), float(twin.val)
        inner = zip(*(jex.jaxprs_in_params(e.params) for e in (mine, other)), strict=False)
        for mine_inner, other_inner in inner:
            yield from _paired(mine_inner, other_inner)


def _computing(jaxpr: jex.Jaxpr) -> list[Any]:
    """The equations that are in a program whatever its dtypes."""
    return [e for e in jaxpr.eqns if e.primitive is not p.convert_element_type_p]
