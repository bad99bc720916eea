"""``scalify(f)``: f with a scale propagated beside every float value (Scalify, Algorithm 1)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import is_float, is_narrow, register_dtype
from scalify_cli.core.fusion import copied, readers
from scalify_cli.core.rules import RULES
from scalify_cli.core.rules.control import CALLS, LOOPS
from scalify_cli.core.rules.derivatives import derivatives
from scalify_cli.core.rules.families import is_array
from scalify_cli.core.rules.programs import fallback
from scalify_cli.core.scaled_array import ScaledArray, is_scaled
from scalify_cli.core.storage import (
    enter,
    held,
    leave,
    plain,
    promote,
    register,
    rounds_off,
    stored,
)
from scalify_cli.core.values import GUARDED, Scaled, Uniform, constant
from scalify_cli.jaxprs.interpreter import (
    Apply,
    Program,
    bind,
    evaluate,
    is_variable,
    trace_call,
)
from scalify_cli.jaxprs.literals import true_literals
from scalify_cli.jaxprs.meshes import on_mesh_of
from scalify_cli.jaxprs.tracing import once, shard_level, without_collection
from scalify_cli.scales.scale import ONE
from scalify_cli.scales.settle import settled

Watch = Callable[[Apply], Apply]
_CONTROL = {*CALLS.values(), *LOOPS.values()}
_KEEPS_VALUE = {
    *(p.broadcast_in_dim_p, p.reshape_p, p.squeeze_p, p.transpose_p, p.slice_p, p.copy_p),
    *(p.convert_element_type_p, p.stop_gradient_p, p.sharding_constraint_p),
    *("reshard", "pvary"),  # under a mesh, zeros and the cotangent that a gradient begins with
}
_FOLDS: dict[Any, Callable] = {
    **{p.add_p: np.add, p.sub_p: np.subtract, p.mul_p: np.multiply, p.div_p: np.divide},
    **{p.neg_p: np.negative, p.max_p: np.maximum, p.min_p: np.minimum},
    **{p.square_p: np.square, p.sqrt_p: np.sqrt, p.rsqrt_p: lambda x: 1 / np.sqrt(x)},
    **{p.pow_p: np.power, p.integer_pow_p: np.power, p.exp_p: np.exp, p.log_p: np.log},
}
"""Functions of numbers known while tracing; NumPy has them without compiling anything."""
_TAKES_SCALARS = {
    *(p.mul_p, p.div_p, p.add_p, p.sub_p, p.max_p, p.min_p, p.rem_p, p.clamp_p),
    *(p.eq_p, p.ne_p, p.lt_p, p.le_p, p.gt_p, p.ge_p),
}
_MADE_ONCE = {p.copy_p, p.convert_element_type_p}
_TAKES_SCALE = {p.mul_p, p.div_p, p.select_n_p}
"""Where an array meets a known number: a cotangent's 1/N must not be lost to a narrow dtype."""


def scalify(f: Callable, rules: Mapping[Any, Callable] = RULES) -> Callable:
    """f over ``ScaledArray``: the same results, each float value kept as data and a scale.

    Args:
        f: any JAX function. Differentiate inside it: ``jit(scalify(update))``.
        rules: the scale rule of each primitive, or of its name. A primitive without one is
            computed on true values in float32. Bodies of loops, branches and calls are scalified.

    Returns:
        A function with f's signature. Arguments may mix ``ScaledArray`` and plain arrays, static
        Python values pass to f as they are; float results that depend on a scaled argument are
        ``ScaledArray``. Without scaled arguments it is f.
    """

    rules = dict(rules)  # what is compiled once must not depend on later changes

    @functools.wraps(f)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        with without_collection(), on_mesh_of((args, kwargs)):
            program = trace_call(f, args, kwargs, is_scaled)
            if any(is_scaled(x) for x in program.arguments):
                return program.rebuild(propagate(program, rules))
        return f(*args, **kwargs)

    return scaled


def propagate(program: Program, rules: Mapping, watch: Watch = lambda apply: apply) -> list[Any]:
    """The results of a traced call, ``ScaledArray`` where scaled; ``watch`` as in ``run``."""
    exact = true_literals(program.trace, program.closed)
    static = [x.scale if _has_known_scale(x) else None for x in program.arguments]

    def evaluated(arguments: list[Any]) -> list[Any]:
        pairs = zip(arguments, static, strict=True)
        values = [enter(x if s is None else ScaledArray(x, s)) for x, s in pairs]
        return [leave(x) for x in run(program.closed, values, rules, exact, watch)]

    pairs = zip(program.arguments, static, strict=True)
    read = jax.tree.leaves((program.arguments, program.closed.consts))
    traced = any(isinstance(x, Tracer) for x in read)
    with derivatives(asked=traced):
        results = settled(evaluated)([x if s is None else x.data for x, s in pairs])
    return results if traced else jax.tree.map(_as_array, results)


def _as_array(x: Any) -> jax.Array:
    """A result; what is known while tracing is no array yet."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def _has_known_scale(x: Any) -> bool:
    return is_scaled(x) and not isinstance(x.scale, Tracer)


def run(
    closed: jex.ClosedJaxpr,
    arguments: Sequence[Any],
    rules: Mapping,
    exact: Mapping[int, float] = MappingProxyType({}),
    watch: Watch = lambda apply: apply,
    called: bool = False,
    rounds: bool = False,
    carries: int | None = None,
) -> list[Any]:
    """Evaluate a closed jaxpr on ``Scaled``, ``Uniform`` and plain values.

    Args:
        exact: unrounded values of literals, by their ``id``.
        watch: may wrap what computes each equation, those of inner programs too.
        called: whether what narrow results are stored in is up to the caller.
        rounds: whether results, and what is added up, are narrow to all that read them; in what is
            called too.
        carries: how many of the results go on into the next iteration, if not all.
    """

    def inner(
        jaxpr: jex.ClosedJaxpr, operands: Sequence[Any], rounds: bool = rounds, **how: Any
    ) -> list[Any]:
        return run(jaxpr, operands, rules, exact, watch, called=True, rounds=rounds, **how)

    def literal(atom: jex.Literal) -> Any:
        value = constant(atom.val)
        return replace(value, value=exact[id(atom)]) if id(atom) in exact else value

    returned = set(filter(is_variable, closed.jaxpr.outvars))
    fused, compared, added = readers(closed.jaxpr)
    left = copied(closed.jaxpr, closed.jaxpr.outvars[:carries])
    rounded = compared | (added if rounds else added & left)
    passing = fused - (left if rounds else set())

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        rule = rule_for(equation, operands, rules)
        if rule in _CONTROL:
            outputs = rule(equation, *operands, run=inner)
        elif rule is getattr(equation.primitive, "scale_rule", None):
            outputs = rule(equation, *(stored(x) if isinstance(x, Scaled) else x for x in operands))
        elif rule in _UNSCALED:
            copies = rule is _unscaled and equation.primitive in _MADE_ONCE
            shared = copies and returned.isdisjoint(equation.outvars)
            outputs = (_shared if shared else rule)(equation, *operands)
        else:
            fuses = not fused.isdisjoint(equation.outvars)
            outputs = rule(equation, *_promoted(equation, operands, fuses))
        return list(map(finished, equation.outvars, _as_loose_as(operands, outputs)))

    def finished(variable: jex.Var, x: Any) -> Any:
        if not isinstance(x, Scaled) or not is_narrow(x.dtype):
            return x
        leaves = variable in returned and called and not rounds
        guarded = x.role == GUARDED and not rounds  # FP16 holds no small number beside others
        if variable in passing or leaves or guarded:
            return rounds_off(x) if variable in rounded else x
        if variable in returned:
            return stored(x if called else held(x))
        return stored(x) if x.shape else _kept(x, variable in rounded)

    consts = [constant(x) for x in closed.consts]
    return evaluate(closed.jaxpr, consts, arguments, watch(apply), literal)


def _kept(x: Scaled, rounded: bool) -> Scaled:
    """A scalar of a narrow dtype stays in float32, near 1 in its unit."""
    near = x.unit == ONE and abs((x.scale or ONE).degree) <= 1
    x = x if near else stored(x, register_dtype(x.dtype))
    return rounds_off(x) if rounded else x


def _promoted(equation: Any, operands: Sequence[Any], fuses: bool) -> list[Any]:
    """The operands, floats as ``Scaled``; known numbers are scalars beside an array where the
    primitive takes them.

    Args:
        fuses: whether narrow ones come in float32.
    """
    shape = equation.outvars[0].aval.shape if equation.outvars else ()
    arrays = [x for x in operands if not isinstance(x, Uniform) and np.shape(x) == shape]
    whole = not (arrays and equation.primitive in _TAKES_SCALARS)
    pairs = zip(operands, map(is_array, equation.invars), strict=True)
    values = [promote(x, whole) if array and is_float(x) else x for x, array in pairs]
    return [replace(x, data=register(x)) if fuses and isinstance(x, Scaled) else x for x in values]


def rule_for(equation: Any, operands: Sequence[Any], rules: Mapping) -> Callable:
    """What computes an equation from its operands: a rule, or how unscaled values pass."""
    primitive = equation.primitive
    scaled = any(isinstance(x, Scaled) for x in operands)
    uniform = [x for x in operands if isinstance(x, Uniform)]
    untracked = shard_level() > 0  # programs of shards that JAX tracks would not fit
    if primitive.name in CALLS and (scaled or uniform or untracked):
        return CALLS[primitive.name]
    if scaled or (untracked and primitive.name in LOOPS):
        own = getattr(primitive, "scale_rule", fallback)
        given = rules.get(primitive) or rules.get(primitive.name)
        return LOOPS.get(primitive.name) or given or own
    if uniform and len(uniform) == len(operands):
        return _uniform
    takes = uniform and primitive in _TAKES_SCALE and np.ndim(equation.outvars[0].aval)
    if primitive in rules and (takes or _narrows_scalar(equation, operands)):
        return rules[primitive]
    return _unscaled


def _narrows_scalar(equation: Any, operands: Sequence[Any]) -> bool:
    """Whether a scalar, such as a learning rate, may be more or less than its new dtype holds."""
    if equation.primitive is not p.convert_element_type_p:
        return False
    [x], new = operands, equation.outvars[0].aval
    if not isinstance(x, jax.Array) or x.shape or not is_float(new) or not is_narrow(new.dtype):
        return False
    return jnp.issubdtype(x.dtype, jnp.integer) or (is_float(x) and not is_narrow(x.dtype))


def _unscaled(equation: Any, *operands: Any) -> list[Any]:
    """On true values; a known number stays known in another dtype."""
    casts = equation.primitive is p.convert_element_type_p
    if casts and not isinstance(operands[0], jax.Array) and np.ndim(operands[0]) == 0:
        return [constant(np.asarray(operands[0]).astype(equation.params["new_dtype"]))]
    return bind(equation, list(map(plain, operands)))


def _shared(equation: Any, x: Any) -> list[Any]:
    """A copy, or a cast, of an array: the same for all who read it."""
    key = equation.primitive, *equation.params.values()
    return once(x, key, lambda: _unscaled(equation, x))


def _as_loose_as(operands: Sequence[Any], outputs: Sequence[Any]) -> Sequence[Any]:
    """What is made of plain arrays only stays so."""
    if any(isinstance(x, Scaled) and not x.loose for x in operands):
        return outputs
    return [replace(x, loose=True) if isinstance(x, Scaled) else x for x in outputs]


def _uniform(equation: Any, *operands: Uniform) -> list[Any]:
    """Numbers known while tracing are folded while tracing."""
    aval, primitive = equation.outvars[0].aval, equation.primitive
    if {primitive, primitive.name} & _KEEPS_VALUE and is_float(aval):
        return [Uniform.like(aval, operands[0].value)]
    if primitive not in _FOLDS:
        return bind(equation, list(map(plain, operands)))
    numbers = [np.float32(x.value) for x in operands]
    if primitive is p.integer_pow_p:
        numbers.append(np.float32(equation.params["y"]))
    with np.errstate(all="ignore"):
        return [Uniform.like(aval, float(_FOLDS[primitive](*numbers)))]


_UNSCALED = {_uniform, _unscaled}
"""Rules of values that have no scale."""
