"""Programs in programs: where they are, how they are called with others, and changed."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.jaxprs.interpreter import bind, evaluate

CALLED_JAXPR = {
    p.jit_p: "jaxpr",
    p.closed_call_p: "call_jaxpr",
    p.custom_jvp_call_p: "call_jaxpr",
    p.custom_vjp_call_p: "call_jaxpr",
}
"""Primitives that call a closed jaxpr once, and the parameter that holds it."""

OWN_DTYPES = {"pure_callback", "io_callback", p.bitcast_convert_type_p}
"""Callbacks and bits, whose dtypes must not change."""


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
    options = {name: equation.params[name] for name in ("reverse", "unroll")}
    length = None if jax.tree.leaves(rows) else equation.params["length"]  # it may be symbolic
    return lax.scan(body, start, rows, length, **options)


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


def changed(closed: jex.ClosedJaxpr, change: Callable) -> jex.ClosedJaxpr:
    """The program with ``change`` applied to each of its values, types of arguments included; loops
    and branches in it, callbacks and bits are in their own dtypes."""

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
        if equation.primitive in CALLED_JAXPR:
            inner = equation.params[CALLED_JAXPR[equation.primitive]]
            return evaluate(inner.jaxpr, list(map(change, inner.consts)), operands, apply, literal)
        own = {equation.primitive, equation.primitive.name} & OWN_DTYPES
        if own or any(jex.jaxprs_in_params(equation.params)):
            avals: list[Any] = [x.aval for x in equation.invars]
            pairs = zip(operands, avals, strict=True)
            operands = [x if x.dtype == aval.dtype else x.astype(aval.dtype) for x, aval in pairs]
        return list(map(change, bind(equation, operands)))

    def literal(atom: jex.Literal) -> Any:
        return change(np.asarray(atom.val, jnp.result_type(atom.val)))

    def flat(*arguments: Any) -> list[Any]:
        consts = list(map(change, closed.consts))
        return evaluate(closed.jaxpr, consts, arguments, apply, literal)

    return jax.make_jaxpr(flat)(*map(change, closed.in_avals))


def choice(which: Any, avals: Sequence[Any]) -> jex.ClosedJaxpr:
    """The program that takes the second of two lists of arrays where ``which`` holds; its axes are
    the arrays' first ones."""

    def chosen(which: Any, old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
        axes = range(which.ndim)
        return [
            lax.select_n(lax.broadcast_in_dim(which, x.shape, axes), x, y)
            for x, y in zip(old, new, strict=True)
        ]

    return jax.make_jaxpr(chosen)(which, avals, avals)
