"""Evaluates a jaxpr under a table of rules, and knows none of them.

``evaluate`` walks the live equations in order, under their named scopes, and hands each one to
``apply(equation, operands)``. What flows along the edges (arrays, scaled values, taps) is the
transform's business.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

from scalify_cli.jaxprs.meshes import UNTRACKED, varying_alike

Apply = Callable[[jex.JaxprEqn, list[Any]], Sequence[Any]]
ARRAYS = (np.ndarray, np.generic, jax.Array)
"""What a call is traced on; its other leaves are static."""


class Program(NamedTuple):
    """A traced call: its jaxpr, its array arguments, how to rebuild the result and trace anew."""

    closed: jex.ClosedJaxpr
    arguments: list[Any]
    rebuild: Callable[[Sequence[Any]], Any]
    trace: Callable[[Sequence[Any]], jex.ClosedJaxpr]


def trace_call(
    f: Callable, args: tuple, kwargs: dict, is_leaf: Callable[[Any], bool] = lambda x: False
) -> Program:
    """Trace ``f(*args, **kwargs)`` on its array leaves; other leaves (numbers, flags) are static.

    What f returns may have leaves that are no arrays too, such as a model's functions.

    Args:
        is_leaf: what is one argument although it is a pytree, traced with the type of its data.
    """
    arguments, full = _split((args, kwargs), lambda x: is_leaf(x) or isinstance(x, ARRAYS), is_leaf)
    rebuild: Any = None

    def flat(arrays: Sequence[Any]) -> list[Any]:
        nonlocal rebuild
        inner_args, inner_kwargs = full(arrays)
        results, rebuild = _split(f(*inner_args, **inner_kwargs), _is_returnable)
        return results

    avals = [jax.typeof(x.data if is_leaf(x) else x) for x in arguments]
    closed = jax.make_jaxpr(flat)(avals)
    return Program(closed, arguments, rebuild, jax.make_jaxpr(flat))


def _split(
    tree: Any, is_own: Callable[[Any], bool], is_leaf: Callable[[Any], bool] | None = None
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The leaves of one kind, and the function that puts others in their places."""
    leaves, structure = jax.tree.flatten(tree, is_leaf)
    own = [is_own(x) for x in leaves]
    rest = [None if mine else x for x, mine in zip(leaves, own, strict=True)]

    def full(values: Sequence[Any]) -> Any:
        new = iter(values)
        pairs = zip(rest, own, strict=True)
        return jax.tree.unflatten(structure, [next(new) if mine else x for x, mine in pairs])

    return [x for x, mine in zip(leaves, own, strict=True) if mine], full


def _is_returnable(x: Any) -> bool:
    try:
        jax.typeof(x)
    except TypeError:
        return False
    return True


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
    needed, found = set(filter(is_variable, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            found.append(equation)
            needed.update(filter(is_variable, equation.invars))
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


def scope_of(equation: jex.JaxprEqn) -> str:
    """The named scope in which the equation was traced, such as ``block/attention/qkv``."""
    return str(equation.source_info.name_stack)


def bind(equation: jex.JaxprEqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The equation's primitive applied to plain arrays; always a list of outputs."""
    primitive = equation.primitive
    # `get_bind_params` turns the call jaxprs of higher-order primitives back into functions.
    params = primitive.get_bind_params({**equation.params, **changed})
    if primitive.name in UNTRACKED:
        found = [UNTRACKED[primitive.name](x, params) for x in operands]
        if all(x is not None for x in found):
            return found
    meshed = len(operands) > 1 and not jax.sharding.get_abstract_mesh().empty
    if meshed and not any(jex.jaxprs_in_params(equation.params)):
        operands = varying_alike(operands)
    outputs = primitive.bind(*operands, **params)
    return list(outputs) if primitive.multiple_results else [outputs]
