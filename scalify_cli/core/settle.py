"""Computes the scales that a program needs at run time together, not one by one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from scalify_cli.core.interpreter import bind, live_equations, named
from scalify_cli.core.scale import Exponents, Request, exponent_p


def settled(f: Callable) -> Callable:
    """f with the scales it asks for computed in batches, each when its first member is needed.

    One by one they would be thousands of scalar operations, copied by XLA into every loop.
    """

    @functools.wraps(f)
    def run(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _Evaluation(closed, jax.tree.leaves(args)).run()
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


class _Evaluation:
    """A jaxpr evaluated in order, its requests for scales put off."""

    def __init__(self, closed: jex.ClosedJaxpr, arguments: Sequence[Any]):
        self.jaxpr = closed.jaxpr
        self.equations = live_equations(closed.jaxpr)
        self.waiting = [e for e in self.equations if e.primitive is exponent_p]
        self.exponents = Exponents()
        self.values: dict[Any, Any] = {}
        self.write(closed.jaxpr.constvars, closed.consts)
        self.write(closed.jaxpr.invars, arguments)

    def run(self) -> list[Any]:
        for equation in self.equations:
            if equation.primitive is not exponent_p:
                operands = self.read(equation.invars)
                with named(equation):
                    self.write(equation.outvars, bind(equation, operands))
        return self.read(self.jaxpr.outvars)

    def write(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        self.values |= zip(variables, values, strict=True)

    def read(self, atoms: Sequence[Any]) -> list[Any]:
        while not all(map(self.known, atoms)):
            self.compute_scales()
        return [x.val if isinstance(x, jex.Literal) else self.values[x] for x in atoms]

    def known(self, atom: Any) -> bool:
        return isinstance(atom, jex.Literal) or atom in self.values

    def compute_scales(self) -> None:
        """All the scales that can be computed by now."""
        ready = [e for e in self.waiting if all(map(self.known, e.invars))]
        self.waiting = [e for e in self.waiting if e not in ready]
        for equation in ready:
            self.exponents.given |= zip(
                equation.params["given"], self.read(equation.invars), strict=True
            )
        names = Request._fields
        requests = [Request(*(e.params[name] for name in names)) for e in ready]
        self.write([e.outvars[0] for e in ready], self.exponents.compute(requests))
