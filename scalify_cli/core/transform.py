"""``scalify(f)``: f with a scale propagated beside every float value (Scalify, Algorithm 1)."""

import functools
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import is_float, once
from scalify_cli.core.interpreter import (
    Apply,
    Program,
    bind,
    evaluate,
    is_variable,
    trace_call,
)
from scalify_cli.core.literals import true_literals
from scalify_cli.core.rules import RULES
from scalify_cli.core.rules.control import CALLS, LOOPS, unstacked
from scalify_cli.core.rules.families import fallback
from scalify_cli.core.rules.patterns import Patterns
from scalify_cli.core.scaled_array import is_scaled
from scalify_cli.core.settle import settled
from scalify_cli.core.values import Scaled, Uniform, bounded, constant, enter, leave, plain

Watch = Callable[[Apply], Apply]
_CONTROL = {*CALLS.values(), *LOOPS.values()}
_KEEPS_VALUE = {
    *(p.broadcast_in_dim_p, p.reshape_p, p.squeeze_p, p.transpose_p, p.copy_p),
    *(p.convert_element_type_p, p.stop_gradient_p, p.sharding_constraint_p),
    "reshard",  # under a mesh, the cotangent that a gradient begins with is one
}
_FOLDS = {p.integer_pow_p, p.rsqrt_p, p.pow_p, p.exp_p, p.log_p}
_FOLDS_EXACTLY: dict[Any, Callable] = {
    **{p.add_p: np.add, p.sub_p: np.subtract, p.mul_p: np.multiply, p.div_p: np.divide},
    **{p.neg_p: np.negative, p.max_p: np.maximum, p.min_p: np.minimum},
    **{p.square_p: np.square, p.sqrt_p: np.sqrt},
}
"""IEEE 754 leaves no choice of the result; NumPy has it without compiling anything."""


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

    rules = dict(rules)  # what is compiled once must not depend on later changes

    @functools.wraps(f)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        with _no_collection():
            program = trace_call(f, args, kwargs)
            if any(is_scaled(x) for x in program.arguments):
                return program.rebuild(propagate(program, rules))
        return f(*args, **kwargs)

    return scaled


def propagate(program: Program, rules: Mapping, watch: Watch = lambda apply: apply) -> list[Any]:
    """The results of a traced call, ``ScaledArray`` where scaled; ``watch`` as in ``run``."""
    exact = true_literals(program.trace, program.closed)
    entered = [enter(x) for x in program.arguments]
    known = [isinstance(x, Scaled) and x.scale is not None and x.scale.static for x in entered]

    def evaluated(arguments: list[Any]) -> list[Any]:
        pairs = zip(arguments, entered, known, strict=True)
        values = [old.with_data(x) if static else enter(x) for x, old, static in pairs]
        returned = frozenset(filter(is_variable, program.closed.jaxpr.outvars))
        return [leave(x) for x in run(program.closed, values, rules, exact, watch, returned)]

    pairs = zip(program.arguments, known, strict=True)
    return settled(evaluated)([x.data if static else x for x, static in pairs])


@contextmanager
def _no_collection() -> Iterator[None]:
    """A trace makes much and frees it itself: looking through all of it takes as long again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def run(
    closed: jex.ClosedJaxpr,
    arguments: Sequence[Any],
    rules: Mapping,
    exact: Mapping[int, float] = MappingProxyType({}),
    watch: Watch = lambda apply: apply,
    returned: frozenset = frozenset(),
) -> list[Any]:
    """Evaluate a closed jaxpr on ``Scaled``, ``Uniform`` and plain values.

    Args:
        exact: unrounded values of literals, by their ``id``.
        watch: may wrap what computes each equation, those of inner programs too.
        returned: variables that must leave at a scale that float32 holds, and so have one at once.
    """

    def inner(jaxpr: jex.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
        return run(jaxpr, operands, rules, exact, watch)

    def literal(atom: jex.Literal) -> Any:
        value = constant(atom.val)
        return replace(value, value=exact[id(atom)]) if id(atom) in exact else value

    patterns = Patterns.of(closed.jaxpr)

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        inputs = patterns.guarded(equation, patterns.widened(equation, operands))
        outputs = patterns.gated(equation, _apply(equation, inputs, rules, inner))
        if not returned.isdisjoint(equation.outvars):
            outputs = list(map(_ready, outputs))
        return patterns.narrowed(equation, outputs)

    consts = [constant(x) for x in closed.consts]
    return evaluate(closed.jaxpr, consts, arguments, watch(apply), literal, patterns.read)


def _ready(x: Any) -> Any:
    """x as it can leave, if it is a scaled value that will."""
    scaled = isinstance(x, Scaled) and x.scale and not (x.loose or x.stacked)
    return bounded(x) if scaled else x


def _apply(
    equation: Any, operands: Sequence[Any], rules: Mapping, inner: Callable
) -> Sequence[Any]:
    rule = rule_for(equation, operands, rules)
    if rule in _CONTROL:
        return _as_loose_as(operands, rule(equation, *operands, run=inner))
    return _as_loose_as(operands, rule(equation, *map(unstacked, operands)))


def rule_for(equation: Any, operands: Sequence[Any], rules: Mapping) -> Callable:
    """What computes an equation from its operands: a rule, or how unscaled values pass."""
    primitive = equation.primitive
    scaled = any(isinstance(x, Scaled) for x in operands)
    uniform = [x for x in operands if isinstance(x, Uniform)]
    if primitive.name in CALLS and (scaled or uniform):
        return CALLS[primitive.name]
    if scaled:
        own = getattr(primitive, "scale_rule", fallback)
        given = rules.get(primitive) or rules.get(primitive.name)
        return LOOPS.get(primitive.name) or given or own
    if uniform and len(uniform) == len(operands):
        return _uniform
    if uniform and primitive in _TAKES_SCALE and np.ndim(equation.outvars[0].aval):
        return rules[primitive]
    return _unscaled


def _unscaled(equation: Any, *operands: Any) -> list[Any]:
    if equation.primitive is p.convert_element_type_p and np.ndim(operands[0]) == 0:
        return _cast_scalar(equation, operands[0])
    return bind(equation, [plain(x) for x in operands])


def _cast_scalar(equation: Any, x: Any) -> list[Any]:
    """A known number stays known; an optimizer casts another for each parameter anew."""
    aval = equation.outvars[0].aval
    if _is_known_number(x) and (is_float(aval) or not is_float(x)):
        return [constant(np.asarray(x).astype(aval.dtype))]
    return once(x, aval, lambda: bind(equation, [plain(x)]))


def _is_known_number(x: Any) -> bool:
    return not isinstance(x, (Tracer, jax.Array)) and np.ndim(x) == 0


def _as_loose_as(operands: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
    """What is made of plain arrays only stays so."""
    if any(isinstance(x, Scaled) and not x.loose for x in operands):
        return outputs
    return [replace(x, loose=True) if isinstance(x, Scaled) else x for x in outputs]


def _uniform(equation: Any, *operands: Uniform) -> list[Any]:
    """Numbers known while tracing are folded while tracing."""
    aval = equation.outvars[0].aval
    primitive = equation.primitive
    if (primitive in _KEEPS_VALUE or primitive.name in _KEEPS_VALUE) and is_float(aval):
        return [Uniform.like(aval, operands[0].value)]
    if primitive in _FOLDS_EXACTLY:
        numbers = [np.float32(x.value) for x in operands]
        with np.errstate(all="ignore"):
            value = _FOLDS_EXACTLY[primitive](*numbers)
        return [Uniform.like(aval, float(value))]
    if primitive in _FOLDS:
        with jax.ensure_compile_time_eval():
            value = bind(equation, [np.float32(x.value) for x in operands])[0]
        return [Uniform.like(aval, float(value))]
    return bind(equation, [x.array() for x in operands])
