"""Evaluates a jaxpr under a table of rules, and knows none of them.

``evaluate`` walks the live equations in order, under their named scopes, and hands each one to
``apply(equation, operands)``. What flows along the edges (arrays, scaled values, taps) is the
transform's business.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
from jax.extend import core as jex

Apply = Callable[[jex.JaxprEqn, list[Any]], Sequence[Any]]


def evaluate(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    apply: Apply,
    literal: Callable[[jex.Literal], Any] = lambda atom: atom.val,
) -> list[Any]:
    """The outputs of ``jaxpr``, each equation computed by ``apply``.

    Args:
        consts, arguments: values of ``jaxpr.constvars`` and ``jaxpr.invars``.
        apply: computes the outputs of one equation from its operands.
        literal: turns a literal into a value.
    """
    values: dict[jex.Var, Any] = {}

    def read(atom: Any) -> Any:
        return literal(atom) if isinstance(atom, jex.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in live_equations(jaxpr):
        with named(equation):
            outputs = apply(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def live_equations(jaxpr: jex.Jaxpr) -> list[jex.JaxprEqn]:
    """The equations that an output or an effect depends on."""
    needed = {atom for atom in jaxpr.outvars if isinstance(atom, jex.Var)}
    live = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            live.append(equation)
            needed.update(atom for atom in equation.invars if isinstance(atom, jex.Var))
    return live[::-1]


def named(equation: jex.JaxprEqn) -> Any:
    """The context that gives new equations this one's named scope."""
    scope = scope_of(equation)
    return jax.named_scope(scope) if scope else nullcontext()


def scope_of(equation: jex.JaxprEqn) -> str:
    """The named scope in which the equation was traced, such as ``block/attention/qkv``."""
    return str(equation.source_info.name_stack)


def bind(equation: jex.JaxprEqn, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The equation's primitive applied to plain arrays; always a list of outputs."""
    primitive = equation.primitive
    # `get_bind_params` turns the call jaxprs of higher-order primitives back into functions.
    params = primitive.get_bind_params({**equation.params, **changed})
    outputs = primitive.bind(*operands, **params)
    return list(outputs) if primitive.multiple_results else [outputs]
