"""Scale rules of primitives that hold a program of their own, and of those without any rule."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, is_float, is_narrow, register_dtype
from scalify_cli.core.rules.families import each, is_array, result, vague
from scalify_cli.core.values import Scaled, at, plain
from scalify_cli.jaxprs.calls import CALLED_JAXPR
from scalify_cli.jaxprs.interpreter import bind, evaluate
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
    changed: dict[str, Any] = {}
    for name, program in equation.params.items():
        if isinstance(program, jex.ClosedJaxpr):
            changed[name] = _widened(program)
        elif isinstance(program, jex.Jaxpr):
            consts = name.replace("jaxpr", "consts")
            wide = _widened(jex.ClosedJaxpr(program, equation.params[consts]))
            changed |= {name: wide.jaxpr, consts: tuple(wide.consts)}
    values = [at(x, ONE) if isinstance(x, Scaled) else x for x in operands]
    outputs = bind(equation, values, **changed)
    return each(equation, outputs, lambda aval, x: result(aval, x, ONE.vague()))


def _widened(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The program in float32 where it is in a narrow dtype."""

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
        if equation.primitive in CALLED_JAXPR:
            inner = equation.params[CALLED_JAXPR[equation.primitive]]
            return evaluate(inner.jaxpr, list(map(_wide, inner.consts)), operands, apply, literal)
        return list(map(_wide, bind(equation, operands)))

    def literal(atom: jex.Literal) -> Any:
        return _wide(np.asarray(atom.val, jnp.result_type(atom.val)))

    def flat(*arguments: Any) -> list[Any]:
        return evaluate(closed.jaxpr, list(map(_wide, closed.consts)), arguments, apply, literal)

    return jax.make_jaxpr(flat)(*map(_wide, closed.in_avals))


def _wide(x: Any) -> Any:
    if not is_float(x) or not is_narrow(x.dtype):
        return x
    dtype = register_dtype(x.dtype)
    return x.update(dtype=dtype) if isinstance(x, ShapedArray) else cast(x, dtype)


RULES = dict.fromkeys((p.reduce_p, p.reduce_window_p), combined)
RULES |= dict.fromkeys(("pure_callback", "io_callback", p.bitcast_convert_type_p), in_own_dtype)
