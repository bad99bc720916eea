"""``with_precision(f, policy)``: f with its matmuls rounded, its code untouched.

Innermost of the transforms: applied to the loss before it is differentiated, so that the rounding
of cotangents is part of the backward pass.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core import is_float, is_scaled, rescale_cotangent
from scalify_cli.core.interpreter import bind, evaluate, scan_again, scope_of, trace_call
from scalify_cli.precision.matmul import Rounding, rounded_dot
from scalify_cli.precision.norms import norm_inputs
from scalify_cli.precision.recipe import Policy


def with_precision(f: Callable, policy: Policy) -> Callable:
    """f computed in the policy's compute dtype with its matmuls' operands rounded.

    Args:
        f: any JAX function; floats in its arguments are cast to the compute dtype.
        policy: such as ``load_precision("fp8")``.

    Returns:
        A function with f's signature, to be differentiated; results keep the dtype f gives them.
    """

    @functools.wraps(f)
    def rounded(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(lambda x: _cast(x, policy), (args, kwargs), is_leaf=is_scaled)
        program = trace_call(f, args, kwargs)
        return program.rebuild(_Transform(policy).run(program.closed, program.arguments))

    return rounded


def _cast(x: Any, policy: Policy) -> Any:
    if not isinstance(x, jax.Array) or not is_float(x):
        return x
    return x.astype(policy.precision.compute_dtype)


class _Transform:
    """Evaluates a jaxpr with its matmuls replaced, below the named scope ``scope``."""

    def __init__(self, policy: Policy, scope: str = ""):
        self.policy = policy
        self.scope = scope

    def run(
        self, closed: jex.ClosedJaxpr, arguments: Sequence[Any], called: bool = False
    ) -> list[Any]:
        """Evaluate the jaxpr; the arguments of a called one are its caller's to look after."""
        norm = self.policy.norm("norm_backward")
        inputs = norm_inputs(closed.jaxpr) if norm else set()
        inputs -= set(closed.jaxpr.invars) if called else set()

        def on_value(var, value):
            return rescale_cotangent(value, norm) if norm and var in inputs else value

        return evaluate(closed.jaxpr, closed.consts, arguments, self.apply, on_value=on_value)

    def apply(self, equation: jex.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        method = _METHODS.get(equation.primitive)
        return method(self, equation, operands) if method else bind(equation, operands)

    def dot(self, equation, operands):
        precision, scope = self.policy.precision, self.within(equation)
        floats = all(is_float(x) for x in operands)
        if not (floats and precision.rounds_matmuls) or _matches(scope, precision.exclude):
            return bind(equation, operands)
        rounding = Rounding(self.policy.forward, self.policy.backward, scope or "matmul")
        output: Any = rounded_dot(*operands, equation.params["dimension_numbers"], rounding)
        return [output.astype(equation.outvars[0].aval.dtype)]

    def call(self, equation, operands):
        inner = equation.params["jaxpr"]
        return _Transform(self.policy, self.within(equation)).run(inner, operands, called=True)

    def scan(self, equation, operands):
        inner = _Transform(self.policy, self.within(equation))
        return scan_again(equation, operands, lambda *call: (inner.run(*call), None))[0]

    def remat(self, equation, operands):
        params, inner = equation.params, _Transform(self.policy, self.within(equation))
        closed = jex.ClosedJaxpr(params["jaxpr"], ())
        again = jax.checkpoint(
            lambda *xs: inner.run(closed, xs),
            prevent_cse=params["prevent_cse"],
            policy=params["policy"],
        )
        return again(*operands)

    def within(self, equation: jex.JaxprEqn) -> str:
        """The equation's named scope, those of the loops around it included."""
        parts = f"{self.scope}/{scope_of(equation)}".split("/")
        return "/".join(part for part in parts if part and "->" not in part)  # einsum's own name


def _matches(scope: str, excluded: Sequence[str]) -> bool:
    return any(name in scope.split("/") for name in excluded)


_METHODS = {
    p.dot_general_p: _Transform.dot,
    p.jit_p: _Transform.call,
    p.scan_p: _Transform.scan,
    p.remat_p: _Transform.remat,
}
