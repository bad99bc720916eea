"""Evaluates a jaxpr under a table of rules, and knows none of them.

``evaluate`` walks the live equations in order, under their named scopes, and hands each one to
``apply(equation, operands)``. What flows along the edges (arrays, scaled values, taps) is the
transform's business.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import primitives as p
from jax.interpreters import mlir
from jax.sharding import AxisType, PartitionSpec

from scalify_cli.core.scaled_array import is_scaled


class RuledPrimitive(jex.Primitive):
    """A primitive of ours that brings its own scale rule."""

    scale_rule: Callable


def marker(name: str, scale_rule: Callable) -> RuledPrimitive:
    """A primitive that is its first operand; rules of transforms give it a meaning."""

    def first(x: Any, *_: Any, **__: Any) -> Any:
        return x

    primitive = RuledPrimitive(name)
    primitive.scale_rule = scale_rule
    primitive.def_impl(first)
    primitive.def_abstract_eval(first)
    mlir.register_lowering(primitive, mlir.lower_fun(first, multiple_results=False))
    return primitive


CALLED_JAXPR = {
    p.jit_p: "jaxpr",
    p.closed_call_p: "call_jaxpr",
    p.custom_jvp_call_p: "call_jaxpr",
    p.custom_vjp_call_p: "call_jaxpr",
}
"""Primitives that call a closed jaxpr once, and the parameter that holds it."""

Apply = Callable[[jex.JaxprEqn, list[Any]], Sequence[Any]]


class Program(NamedTuple):
    """A traced call: its jaxpr, its array arguments, how to rebuild the result and trace anew."""

    closed: jex.ClosedJaxpr
    arguments: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]
    trace: Callable[[Sequence[Any]], jex.ClosedJaxpr]


def trace_call(f: Callable, args: tuple, kwargs: dict, whole: bool = True) -> Program:
    """Trace ``f(*args, **kwargs)`` on its array leaves; other leaves (numbers, flags) are static.

    Args:
        whole: whether a ``ScaledArray`` is one argument, traced with the type of its data, or two.
    """
    is_leaf = is_scaled if whole else None
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=is_leaf)
    dynamic = [i for i, x in enumerate(leaves) if _is_array(x)]

    def flat(arrays: Sequence[Any]) -> Any:
        full = list(leaves)
        for i, array in zip(dynamic, arrays, strict=True):
            full[i] = array
        inner_args, inner_kwargs = jax.tree.unflatten(structure, full)
        return f(*inner_args, **inner_kwargs)

    arguments = [leaves[i] for i in dynamic]
    avals = [jax.typeof(x.data if is_scaled(x) else x) for x in arguments]
    closed, shape = jax.make_jaxpr(flat, return_shape=True)(avals)
    rebuild = partial(jax.tree.unflatten, jax.tree.structure(shape))
    return Program(closed, arguments, rebuild, jax.make_jaxpr(flat))


def _is_array(x: Any) -> bool:
    return is_scaled(x) or isinstance(x, (np.ndarray, np.generic, jax.Array))


def evaluate(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    apply: Apply,
    literal: Callable[[jex.Literal], Any] = lambda atom: atom.val,
    on_value: Callable[[jex.Var, Any], Any] = lambda var, value: value,
) -> list[Any]:
    """The outputs of ``jaxpr``, each equation computed by ``apply``.

    Args:
        consts, arguments: values of ``jaxpr.constvars`` and ``jaxpr.invars``.
        apply: computes the outputs of one equation from its operands.
        literal: turns a literal into a value.
        on_value: may replace an argument or a result before it is read.
    """
    values: dict[jex.Var, Any] = {}

    def read(atom: Any) -> Any:
        return literal(atom) if isinstance(atom, jex.Literal) else values[atom]

    def write(variables: Sequence[Any], results: Sequence[Any]) -> None:
        for variable, result in zip(variables, results, strict=True):
            values[variable] = on_value(variable, result)

    write(jaxpr.constvars, consts)
    write(jaxpr.invars, arguments)
    for equation in live_equations(jaxpr):
        with named(equation):
            write(equation.outvars, apply(equation, [read(atom) for atom in equation.invars]))
    return [read(atom) for atom in jaxpr.outvars]


def live_equations(jaxpr: jex.Jaxpr) -> list[jex.JaxprEqn]:
    """The equations that an output or an effect depends on."""
    return live(jaxpr.eqns, jaxpr.outvars)


def live(equations: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Those that one of the outputs, or an effect, depends on."""
    needed = {atom for atom in outputs if not isinstance(atom, jex.Literal)}
    found = []
    for equation in reversed(equations):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            found.append(equation)
            needed.update(x for x in equation.invars if not isinstance(x, jex.Literal))
    return found[::-1]


def is_variable(x: Any) -> bool:
    """Whether what an equation reads is no literal."""
    return isinstance(x, jex.Var)


@contextmanager
def named(equation: jex.JaxprEqn) -> Iterator[None]:
    """Gives new equations this one's named scope, source line, and mesh, where it has its own."""
    source = equation.source_info
    scope = source_info_util.current_name_stack() + source.name_stack
    with source_info_util.user_context(source.traceback, name_stack=scope), equation.ctx.manager:
        yield


def here(exponents: Any) -> Any:
    """Scales where they are read: a part of a program may see the mesh as another kind."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return exponents
    own = jax.typeof(exponents).sharding.mesh
    tracked = AxisType.Explicit in (*own.axis_types, *mesh.axis_types)
    moves = tracked and own != mesh and not own.empty
    return jax.sharding.reshard(exponents, PartitionSpec()) if moves else exponents


def scope_of(equation: jex.JaxprEqn) -> str:
    """The named scope in which the equation was traced, such as ``block/attention/qkv``."""
    return str(equation.source_info.name_stack)


def bind(equation: jex.JaxprEqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The equation's primitive applied to plain arrays; always a list of outputs."""
    primitive = equation.primitive
    # `get_bind_params` turns the call jaxprs of higher-order primitives back into functions.
    params = primitive.get_bind_params({**equation.params, **changed})
    if primitive.name == "pvary" and varies(operands[0], params["axes"]):
        return list(operands)  # a scale that is computed together with others varies as they do
    if primitive.name in _UNTRACKED and not varying_axes(operands[0]):
        return [_UNTRACKED[primitive.name](operands[0], params)]
    outputs = primitive.bind(*operands, **params)
    return list(outputs) if primitive.multiple_results else [outputs]


_UNTRACKED: dict[str, Callable] = {
    "psum_invariant": lambda x, params: lax.psum(x, params["axes"]),
    "all_gather_invariant": lambda x, params: lax.all_gather(
        x, params["axis_name"], axis=params["all_gather_dimension"], tiled=params["tiled"]
    ),
}
"""What JAX calls otherwise where it does not track how shards differ."""


def varies(x: Any, axes: Sequence[Any]) -> bool:
    """Whether JAX has tracked, inside ``shard_map``, that x differs between the shards."""
    return not varying_axes(x).isdisjoint(axes)


def varying_axes(x: Any) -> frozenset:
    """The axes of ``shard_map`` that JAX has tracked x to differ along."""
    kind = jax.typeof(x)
    tracked = getattr(kind, "mat", None)  # a plain set in JAX before 0.10
    return tracked.varying if tracked else getattr(kind, "vma", frozenset())


def scan_counts(equation: jex.JaxprEqn) -> tuple[int, int]:
    """How many operands of a ``scan`` are constants, and how many carries.

    Read off the ranks, as JAX's parameters for it differ by version: what is scanned over or
    stacked has a dimension less inside.
    """
    body = equation.params["jaxpr"]

    def sliced(outer: Sequence[Any], inner: Sequence[Any]) -> int:
        return sum(x.aval.ndim != aval.ndim for x, aval in zip(outer, inner, strict=True))

    count = len(equation.outvars) - sliced(equation.outvars, body.out_avals)
    return len(equation.invars) - sliced(equation.invars, body.in_avals) - count, count


def scan_again(
    equation: jex.JaxprEqn, operands: Sequence[Any], run: Callable[..., tuple[list[Any], Any]]
) -> tuple[list[Any], Any]:
    """A ``scan`` equation with its body evaluated by ``run(closed, arguments)``.

    Returns:
        The equation's outputs, and the second result of ``run`` stacked over the iterations.
    """
    first, count = scan_counts(equation)

    def body(carry, slices):
        outputs, extra = run(equation.params["jaxpr"], [*operands[:first], *carry, *slices])
        return outputs[:count], (outputs[count:], extra)

    start, rows = list(operands[first : first + count]), list(operands[first + count :])
    carry, (stacked, extra) = scan_with(equation, body, start, rows)
    return [*carry, *stacked], extra


def scan_with(equation: jex.JaxprEqn, body: Callable, start: Any, rows: Any) -> tuple[Any, Any]:
    """Another body in the loop of a ``scan`` equation."""
    options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    return lax.scan(body, start, rows, **options)


def switch_again(
    equation: jex.JaxprEqn, operands: Sequence[Any], branches: Sequence[Callable]
) -> Any:
    """What a ``cond`` equation returns with other functions as its branches."""
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return lax.switch(operands[0], branches, *operands[1:])
    pairs = zip(platforms, branches, strict=True)
    per_platform = {name: f for names, f in pairs for name in names or ("default",)}
    return lax.platform_dependent(*operands[1:], **per_platform)
