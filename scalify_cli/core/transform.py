"""``scalify(f)``: f with a scale propagated beside every float value (Scalify, Algorithm 1)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import bind, evaluate, trace_call
from scalify_cli.core.literals import true_literals
from scalify_cli.core.rules import RULES as TABLE
from scalify_cli.core.rules.control import CALLS, LOOPS, unstacked
from scalify_cli.core.rules.families import fallback
from scalify_cli.core.scaled_array import is_float, is_scaled
from scalify_cli.core.settle import settled
from scalify_cli.core.values import Entrance, Scaled, Uniform, constant, leave, plain

RULES = TABLE
_KEEPS_VALUE = {
    *(p.broadcast_in_dim_p, p.reshape_p, p.squeeze_p, p.transpose_p, p.copy_p),
    *(p.convert_element_type_p, p.stop_gradient_p),
}
_FOLDS = {
    *(p.add_p, p.sub_p, p.mul_p, p.div_p, p.neg_p, p.max_p, p.min_p, p.square_p, p.integer_pow_p),
    *(p.sqrt_p, p.rsqrt_p, p.pow_p, p.exp_p, p.log_p),
}


_TAKES_SCALE = {p.mul_p, p.div_p, p.select_n_p}
"""Where an array meets a known number: a cotangent's 1/N must not be lost to a narrow dtype."""


def scalify(f: Callable, rules: Mapping[Any, Callable] = RULES) -> Callable:
    """f over ``ScaledArray``: the same results, each float value kept as data and a scale.

    Args:
        f: any JAX function. Differentiate inside it: ``jit(scalify(update))``.
        rules: the scale rule of each primitive, or of its name. A primitive without one is
            computed on true values in float32.

    Returns:
        A function with f's signature. Arguments may mix ``ScaledArray`` and plain arrays, static
        Python values pass to f as they are; float results that depend on a scaled argument are
        ``ScaledArray``. Without scaled arguments it is f.
    """

    @functools.wraps(f)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        program = trace_call(f, args, kwargs)
        if not any(is_scaled(x) for x in program.arguments):
            return f(*args, **kwargs)
        exact = true_literals(program.trace, program.avals, program.closed)
        inputs = [Entrance(x) for x in program.arguments]

        def evaluated(arrays: list[Any]) -> list[Any]:
            values = [x.value(parts) for x, parts in zip(inputs, arrays, strict=True)]
            return [leave(x) for x in run(program.closed, values, rules, exact)]

        return program.rebuild(settled(evaluated)([x.arrays for x in inputs]))

    return scaled


def run(
    closed: jex.ClosedJaxpr,
    arguments: Sequence[Any],
    rules: Mapping,
    exact: Mapping[int, float] = MappingProxyType({}),
) -> list[Any]:
    """Evaluate a closed jaxpr on ``Scaled``, ``Uniform`` and plain values.

    Args:
        exact: unrounded values of literals, by their ``id``.
    """

    def inner(jaxpr: jex.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
        return run(jaxpr, operands, rules, exact)

    def literal(atom: jex.Literal) -> Any:
        value = constant(atom.val)
        return replace(value, value=exact[id(atom)]) if id(atom) in exact else value

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        return _apply(equation, operands, rules, inner)

    consts = [constant(x) for x in closed.consts]
    return evaluate(closed.jaxpr, consts, arguments, apply, literal)


def _apply(equation: Any, operands: list[Any], rules: Mapping, inner: Callable) -> Sequence[Any]:
    primitive = equation.primitive
    scaled = any(isinstance(x, Scaled) for x in operands)
    uniform = [x for x in operands if isinstance(x, Uniform)]
    if primitive in CALLS and (scaled or uniform):
        return CALLS[primitive](equation, *operands, run=inner)
    if scaled and primitive in LOOPS:
        return LOOPS[primitive](equation, *operands, run=inner)
    if scaled:
        own = getattr(primitive, "scale_rule", fallback)
        rule = rules.get(primitive) or rules.get(primitive.name) or own
        return rule(equation, *map(unstacked, operands))
    if uniform and len(uniform) == len(operands):
        return _uniform(equation, uniform)
    if uniform and primitive in _TAKES_SCALE and np.ndim(equation.outvars[0].aval):
        return [replace(x, loose=True) for x in rules[primitive](equation, *operands)]
    if primitive is p.convert_element_type_p and _known_number(operands[0]):
        with jax.ensure_compile_time_eval():
            return [constant(bind(equation, operands)[0])]
    return bind(equation, [plain(x) for x in operands])


def _known_number(x: Any) -> bool:
    return not isinstance(x, (Tracer, jax.Array)) and np.ndim(x) == 0


def _uniform(equation: Any, operands: list[Uniform]) -> list[Any]:
    """Numbers known while tracing are folded while tracing."""
    aval = equation.outvars[0].aval
    if equation.primitive in _KEEPS_VALUE and is_float(aval):
        return [Uniform(operands[0].value, aval.shape, aval.dtype)]
    if equation.primitive in _FOLDS:
        with jax.ensure_compile_time_eval():
            value = bind(equation, [np.float32(x.value) for x in operands])[0]
        return [Uniform(float(value), aval.shape, aval.dtype)]
    return bind(equation, [x.array() for x in operands])
