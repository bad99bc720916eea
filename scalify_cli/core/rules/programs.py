"""Scale rules of primitives that hold a program of their own, and of those without any rule."""

from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype
from scalify_cli.core.rules.families import each, is_array, result, vague
from scalify_cli.core.storage import at, plain
from scalify_cli.core.values import Scaled
from scalify_cli.jaxprs.calls import OWN_DTYPES, changed
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.scale import ONE

_PROGRAMS = (jex.Jaxpr, jex.ClosedJaxpr)


def in_own_dtype(equation: Any, *operands: Any) -> list[Any]:
    """True values in the operands' own dtype: for programs, references and bits."""
    outputs = bind(equation, list(map(plain, operands)))
    return each(equation, outputs, lambda aval, x: Scaled(x, ONE))


def fallback(equation: Any, *operands: Any) -> list[Any]:
    """A primitive without a rule: opaque, or in its own dtype where it calls another program.

    It is never refused.
    """
    calls = any(isinstance(value, _PROGRAMS) for value in jax.tree.leaves(equation.params))
    returns = equation.effects and equation.outvars  # from Python, which expects its dtypes
    arrays = all(map(is_array, (*equation.invars, *equation.outvars)))  # and no references
    return (vague if arrays and not (calls or returns) else in_own_dtype)(equation, *operands)


def combined(equation: Any, *operands: Any) -> list[Any]:
    """Elements that a program combines: true values, those of a narrow dtype in float32."""
    params: dict[str, Any] = {}
    for name, program in equation.params.items():
        if isinstance(program, jex.ClosedJaxpr):
            params[name] = changed(program, widened)
        elif isinstance(program, jex.Jaxpr):
            consts = name.replace("jaxpr", "consts")
            wide = changed(jex.ClosedJaxpr(program, equation.params[consts]), widened)
            params |= {name: wide.jaxpr, consts: tuple(wide.consts)}
    values = [at(x, ONE) if isinstance(x, Scaled) else x for x in operands]
    outputs = bind(equation, values, **params)
    return each(equation, outputs, lambda aval, x: result(aval, x, ONE.vague()))


def widened(x: Any) -> Any:
    """A narrow float, or its type, in float32."""
    if not is_float(x) or not is_narrow(x.dtype):
        return x
    dtype = register_dtype(x.dtype)
    return x.update(dtype=dtype) if isinstance(x, ShapedArray) else cast(x, dtype)


RULES = dict.fromkeys((p.reduce_p, p.reduce_window_p), combined)
RULES |= dict.fromkeys(OWN_DTYPES, in_own_dtype)
