"""``with_precision(f, policy)``: f with its matmuls and convolutions rounded.

Its code is untouched; they are found in calls, loops and branches too.

Innermost of the transforms: applied to the loss before it is differentiated, so that the rounding
of cotangents is part of the backward pass.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core import is_float, is_scaled, rescale_cotangent
from scalify_cli.jaxprs.calls import scan_again, switch_again
from scalify_cli.jaxprs.interpreter import ARRAYS, bind, evaluate, scope_of, trace_call
from scalify_cli.jaxprs.meshes import on_mesh_of
from scalify_cli.precision.convolution import rounded_convolution
from scalify_cli.precision.matmul import Rounding, rounded_dot, tracked_sharding
from scalify_cli.precision.norms import norm_inputs
from scalify_cli.precision.recipe import Policy


def with_precision(f: Callable, policy: Policy) -> Callable:
    """f computed in the policy's compute dtype, operands of matmuls and convolutions rounded.

    Args:
        f: any JAX function; floats in its arguments are cast to the compute dtype.
        policy: such as ``load_precision("fp8")``.

    Returns:
        A function with f's signature, to be differentiated; results keep the dtype f gives them.
    """

    @functools.wraps(f)
    def rounded(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(lambda x: _cast(x, policy), (args, kwargs), is_leaf=is_scaled)
        with on_mesh_of((args, kwargs)):
            program = trace_call(f, args, kwargs, is_scaled)
            return program.rebuild(_Transform(policy).run(program.closed, program.arguments))

    return rounded


def _cast(x: Any, policy: Policy) -> Any:
    if not isinstance(x, ARRAYS) or not is_float(x):
        return x
    return jnp.asarray(x, policy.precision.compute_dtype)


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
        rounding = self.rounding(equation, operands)
        if rounding is None:
            return bind(equation, operands)
        output: Any = rounded_dot(*operands, equation.params["dimension_numbers"], rounding)
        return [output.astype(equation.outvars[0].aval.dtype)]

    def convolution(self, equation, operands):
        rounding = self.rounding(equation, operands, "convolution")
        if rounding is None:
            return bind(equation, operands)
        return [rounded_convolution(equation, operands, rounding)]

    def rounding(self, equation, operands, name="matmul") -> Rounding | None:
        """How an equation's operands are rounded; None where they are not."""
        precision, scope = self.policy.precision, self.within(equation)
        floats = all(is_float(x) for x in operands)
        if not (floats and precision.rounds_matmuls) or _matches(scope, precision.exclude):
            return None
        lies = tracked_sharding(equation.outvars[0].aval)
        return Rounding(self.policy.forward, self.policy.backward, scope or name, lies)

    def body(self, equation, closed: jex.ClosedJaxpr) -> Callable[..., list[Any]]:
        """A jaxpr that the equation calls, as a function of its arguments."""
        inner = _Transform(self.policy, self.within(equation))
        return lambda *arguments: inner.run(closed, arguments, called=True)

    def call(self, equation, operands):
        return self.body(equation, equation.params["jaxpr"])(*operands)

    def cond(self, equation, operands):
        branches = [self.body(equation, closed) for closed in equation.params["branches"]]
        return switch_again(equation, operands, branches)

    def while_loop(self, equation, operands):
        params = equation.params
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        holds = self.body(equation, params["cond_jaxpr"])
        body = self.body(equation, params["body_jaxpr"])
        return lax.while_loop(
            lambda carry: holds(*operands[:first], *carry)[0],
            lambda carry: body(*operands[first:last], *carry),
            list(operands[last:]),
        )

    def custom_derivative(self, equation, operands):
        """The function and what its derivative saves are rounded; its derivative is its own."""
        if not _multiplies(equation.params["call_jaxpr"].jaxpr):
            return bind(equation, operands)
        own = lambda *xs: bind(equation, xs)  # noqa: E731
        again = jax.custom_vjp(self.body(equation, equation.params["call_jaxpr"]))

        def forward(*xs):
            closed, shape = jax.make_jaxpr(partial(jax.vjp, own), return_shape=True)(*xs)
            return jax.tree.unflatten(jax.tree.structure(shape), self.body(equation, closed)(*xs))

        again.defvjp(forward, lambda pull, cotangent: pull(cotangent))
        return again(*operands)

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


def _multiplies(jaxpr: jex.Jaxpr) -> bool:
    inner = (x for e in jaxpr.eqns for x in jex.jaxprs_in_params(e.params))
    return any(e.primitive in _MULTIPLY for e in jaxpr.eqns) or any(map(_multiplies, inner))


def _matches(scope: str, excluded: Sequence[str]) -> bool:
    return any(name in scope.split("/") for name in excluded)


_MULTIPLY = {p.dot_general_p, p.conv_general_dilated_p}
_METHODS = {
    p.dot_general_p: _Transform.dot,
    p.conv_general_dilated_p: _Transform.convolution,
    p.jit_p: _Transform.call,
    p.scan_p: _Transform.scan,
    p.remat_p: _Transform.remat,
    p.cond_p: _Transform.cond,
    p.while_p: _Transform.while_loop,
    p.custom_jvp_call_p: _Transform.custom_derivative,
    p.custom_vjp_call_p: _Transform.custom_derivative,
}
