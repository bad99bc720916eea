"""Computes the scales that a program needs at run time together, not one by one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex

from scalify_cli.core.dtypes import made_once
from scalify_cli.core.exponents import Exponents, Request, exponent_p, forget
from scalify_cli.core.interpreter import bind, here, named
from scalify_cli.core.merge import Step, merged, sources


def settled(f: Callable) -> Callable:
    """f with the scales it asks for computed in batches, each when its first member is needed.

    One by one they would be thousands of scalar operations, copied by XLA into every loop.
    """

    @functools.wraps(f)
    def run(*args: Any) -> Any:
        with made_once():
            closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _Evaluation(closed, jax.tree.leaves(args)).run()
        forget(closed.jaxpr)
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return run


class _Evaluation:
    """A jaxpr evaluated in order, its requests for scales put off."""

    def __init__(self, closed: jex.ClosedJaxpr, arguments: Sequence[Any]):
        self.jaxpr, self.sources = closed.jaxpr, sources(closed.jaxpr)
        self.steps = merged(closed.jaxpr)
        self.waiting = dict(map(_request, filter(_asks, self.steps)))
        self.given = {key: request.given for key, request in self.waiting.items()}
        self.exponents = Exponents()
        self.values: dict[Any, Any] = {}
        self.write(closed.jaxpr.constvars, closed.consts)
        self.write(closed.jaxpr.invars, arguments)

    def run(self) -> list[Any]:
        """All that can be computed is, before scales are: they are then computed in few batches."""
        left = [
            s for s in self.steps if s.shift is not None or s.equation.primitive is not exponent_p
        ]
        while left:
            left = self.advance(left)
            if left:
                self.compute_scales()
        return self.read(self.jaxpr.outvars)

    def advance(self, steps: Sequence[Step]) -> list[Step]:
        """Computes what can be; the steps that are left. Effects keep their order."""
        left = []
        for step in steps:
            later = step.effects and any(s.effects for s in left)
            if later or not all(map(self.known, _needs(step))):
                left.append(step)
            else:
                with named(step.equation):
                    self.write(step.outvars, _computed(step, self.read(_needs(step))))
        return left

    def write(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        self.values |= zip(variables, values, strict=True)

    def read(self, atoms: Sequence[Any]) -> list[Any]:
        while not all(map(self.known, atoms)):
            self.compute_scales()
        return [x.val if isinstance(x, jex.Literal) else self.value(x) for x in atoms]

    def value(self, x: Any) -> Any:
        return here(self.values[x]) if x in self.given else self.values[x]

    def known(self, atom: Any) -> bool:
        return isinstance(atom, jex.Literal) or atom in self.values

    def compute_scales(self) -> None:
        """All the scales that can be computed by now."""
        known = {source for source, x in self.sources.items() if self.known(x)}
        ready = [key for key in self.waiting if known.issuperset(self.given[key])]
        for source in (source for key in ready for source in self.given[key]):
            self.exponents.given[source] = here(self.read([self.sources[source]])[0])
        self.write(ready, self.exponents.compute([self.waiting.pop(key) for key in ready]))


def _computed(step: Step, operands: Sequence[Any]) -> list[Any]:
    if step.shift is None:
        return bind(step.equation, operands)
    if step.shift.scale.static:
        factor = step.shift.scale.factor(step.shift.number)
        return [lax.mul(operands[0], np.asarray(factor, operands[0].dtype))]
    x, factor = operands
    return [lax.div(x, factor) if _divides(step) else lax.mul(x, factor)]


def _needs(step: Step) -> Sequence[Any]:
    return [*step.invars, _key(step)] if step.shift is not None and _asks(step) else step.invars


def _asks(step: Step) -> bool:
    """Whether a step needs a scale that is unknown while tracing."""
    unknown = step.shift is not None and not step.shift.scale.static
    return unknown or (step.shift is None and step.equation.primitive is exponent_p)


def _divides(step: Step) -> bool:
    """A scalar is divided by the inverse scale, because XLA repeats a product in each reader."""
    alone = step.shift is not None and step.shift.number == 1
    return alone and np.ndim(step.equation.outvars[0].aval) == 0


def _key(step: Step) -> Any:
    """The name of what a step asks for."""
    if step.shift is None:
        return step.outvars[0]
    return step.shift, _divides(step), step.equation.outvars[0].aval.dtype


def _request(step: Step) -> tuple[Any, Request]:
    """What a step asks for, by its name."""
    if step.shift is None:
        return _key(step), step.equation.params["asked"]
    scale, number = step.shift
    scale = scale**-1 if _divides(step) else scale
    return _key(step), Request((scale,), step.equation.outvars[0].aval.dtype, (), number)
