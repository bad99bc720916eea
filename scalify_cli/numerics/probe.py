"""Looks at values as they are computed: ``probe`` marks them, ``evaluate_probed`` runs the program.

The program runs equation by equation, loops iteration by iteration, so that no probe has to be
compiled and every marked value passes the host.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend.core import primitives as p
from jax.interpreters import batching, mlir

from scalify_cli.jaxprs.calls import scan_counts
from scalify_cli.jaxprs.interpreter import bind, evaluate


def probe(see: Callable, data: Any, *details: Any) -> Any:
    """``data``, whose values and details ``see`` will be called with, as numpy arrays."""
    return probe_p.bind(data, *details, see=see)


probe_p = jex.Primitive("probe")
probe_p.def_impl(lambda data, *_, see: data)
probe_p.def_abstract_eval(lambda data, *_, see: data)
mlir.register_lowering(probe_p, mlir.lower_fun(lambda data, *_, see: data, multiple_results=False))
batching.primitive_batchers[probe_p] = lambda operands, axes, see: (
    probe_p.bind(*operands, see=see),
    axes[0],
)


def evaluate_probed(closed: jex.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """The outputs of a program; all of its values are held until it ends."""

    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        return _METHODS.get(equation.primitive, bind)(equation, operands)

    return evaluate(closed.jaxpr, closed.consts, arguments, apply)


def _see(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
    equation.params["see"](*map(np.asarray, operands))
    return operands[:1]


def _remat(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
    return evaluate_probed(jex.ClosedJaxpr(equation.params["jaxpr"], ()), operands)


def _scan(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    first, count = scan_counts(equation)
    consts, carry = operands[:first], operands[first : first + count]
    order = range(params["length"])[:: -1 if params["reverse"] else 1]
    if not order:
        return bind(equation, operands)
    ys = {}
    for i in order:
        slices = [x[i] for x in operands[first + count :]]
        outputs = evaluate_probed(params["jaxpr"], [*consts, *carry, *slices])
        carry, ys[i] = outputs[:count], outputs[count:]
    stacked = zip(*(ys[i] for i in sorted(order)), strict=True)
    return [*carry, *map(jnp.stack, stacked)]


def _while(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    condition, body = operands[:first], operands[first : first + second]
    carry = operands[first + second :]
    while evaluate_probed(params["cond_jaxpr"], [*condition, *carry])[0]:
        carry = evaluate_probed(params["body_jaxpr"], [*body, *carry])
    return carry


def _cond(equation: jex.JaxprEqn, operands: list[Any]) -> list[Any]:
    branches = equation.params["branches"]
    which = min(max(int(operands[0]), 0), len(branches) - 1)
    return evaluate_probed(branches[which], operands[1:])


_METHODS = {
    probe_p: _see,
    p.remat_p: _remat,
    p.scan_p: _scan,
    p.while_p: _while,
    p.cond_p: _cond,
}
