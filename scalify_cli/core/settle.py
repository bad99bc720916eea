"""Computes the scales that a program needs at run time together, not one by one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex

from scalify_cli.core.interpreter import bind, named
from scalify_cli.core.merge import Shift, Step, merged, sources
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
        self.jaxpr, self.sources = closed.jaxpr, sources(closed.jaxpr)
        self.steps = merged(closed.jaxpr)
        self.waiting = dict(map(_request, filter(_asks, self.steps)))
        self.exponents = Exponents()
        self.values: dict[Any, Any] = {}
        self.write(closed.jaxpr.constvars, closed.consts)
        self.write(closed.jaxpr.invars, arguments)

    def run(self) -> list[Any]:
        for step in self.steps:
            if step.shift:
                with named(step.equation):
                    self.write(step.outputs, [self.shifted(*step.inputs, step.shift)])
            elif step.equation.primitive is not exponent_p:
                operands = self.read(step.inputs)
                with named(step.equation):
                    self.write(step.outputs, bind(step.equation, operands))
        return self.read(self.jaxpr.outvars)

    def shifted(self, x: Any, shift: Shift) -> Any:
        if shift.scale.static:
            return lax.mul(*self.read([x]), np.float32(shift.number * 2.0**shift.scale.constant))
        return lax.mul(*self.read([x, shift]))

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
        given = {key: request.given for key, request in self.waiting.items()}
        ready = [key for key in given if all(self.known(self.sources[s]) for s in given[key])]
        for source in (source for key in ready for source in given[key]):
            self.exponents.given[source] = self.read([self.sources[source]])[0]
        self.write(ready, self.exponents.compute([self.waiting.pop(key) for key in ready]))


def _asks(step: Step) -> bool:
    """Whether a step needs a scale that is unknown while tracing."""
    unknown = step.shift and not step.shift.scale.static
    return bool(unknown) or step.equation.primitive is exponent_p


def _request(step: Step) -> tuple[Any, Request]:
    """What a step asks for, by the name that its value will have."""
    if step.shift:
        return step.shift, Request((step.shift.scale,), np.dtype("float32"), (), step.shift.number)
    params = step.equation.params
    return step.outputs[0], Request(params["scales"], params["dtype"], params["shape"])
