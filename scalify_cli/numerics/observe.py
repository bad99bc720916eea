"""``observe(f)``: what f returns, and statistics of its named intermediate values.

Outermost of the transforms: it reads the taps that casts and updates left in the program, those
inside loops merged over the iterations. Everything is computed on the device in the same program;
there are no host callbacks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core import tap_p
from scalify_cli.core.interpreter import CALLED_JAXPR, bind, evaluate, scan_again, trace_call
from scalify_cli.core.scale import exp2
from scalify_cli.numerics.statistics import Statistics, add, merge, statistics


def observe(f: Callable) -> Callable:
    """A function that returns ``(f(*args), statistics)``.

    The statistics are a dict from names such as ``block/attention/qkv.activation`` to what
    ``numerics.statistics`` returns, in the order in which f computes the values.
    """

    @functools.wraps(f)
    def observed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Statistics]]:
        program = trace_call(f, args, kwargs, whole=False)
        collected: dict[str, Statistics] = {}
        outputs = _run(program.closed, program.arguments, collected)
        return program.rebuild(outputs), collected

    return observed


def _run(closed: jex.ClosedJaxpr, arguments: Sequence[Any], collected: dict) -> list[Any]:
    def apply(equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        method = _METHODS.get(equation.primitive, _plain)
        return method(equation, operands, collected)

    return evaluate(closed.jaxpr, closed.consts, arguments, apply)


def _plain(equation, operands, collected):
    return bind(equation, operands)


def _tap(equation, operands, collected):
    rounded, data, exponent = operands
    format = equation.params["format"] or None
    _collect(
        collected,
        equation.params["name"],
        statistics(data, exp2(jnp.asarray(exponent)), rounded, format),
    )
    return [rounded]


def _collect(collected, name, stats):
    collected[name] = add(collected[name], stats) if name in collected else stats


def _call(equation, operands, collected):
    return _run(equation.params[CALLED_JAXPR[equation.primitive]], operands, collected)


def _remat(equation, operands, collected):
    return _run(jex.ClosedJaxpr(equation.params["jaxpr"], ()), operands, collected)


def _scan(equation, operands, collected):
    def run(closed, arguments):
        inside: dict[str, Statistics] = {}
        return _run(closed, arguments, inside), inside

    outputs, inside = scan_again(equation, operands, run)
    for name, stats in inside.items():
        _collect(collected, name, merge(stats))
    return outputs


_METHODS = {
    tap_p: _tap,
    p.remat_p: _remat,
    p.scan_p: _scan,
    **dict.fromkeys(CALLED_JAXPR, _call),
}
