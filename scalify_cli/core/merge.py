"""Merges the multiplications by scales that the rules of several equations leave behind.

A rule knows its own operands only: a sum is brought to one scale, then to another for the sum it is
part of, then to one that float32 holds. Here a multiplication by a scale moves back through sums,
products and quotients into one that is there already, and takes a known number along. Only where
data has float32's range: the place of a power of two in a product changes no bit there.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.extend.core import primitives as p

from scalify_cli.core.exponents import Source, asking, shift_p
from scalify_cli.core.interpreter import is_variable, live, live_equations
from scalify_cli.core.scale import Scale

_SUMS = {p.add_p, p.sub_p, p.add_jaxvals_p}
_PRODUCTS, _QUOTIENTS = {p.mul_p, shift_p}, {p.div_p}
_DTYPES = (jnp.float32, jnp.bfloat16)


class Shift(NamedTuple):
    """Multiplication by ``number * scale``."""

    scale: Scale
    number: float = 1.0


class Step(NamedTuple):
    """An equation on other variables; with ``shift``, its one input times that instead."""

    equation: Any
    invars: Sequence[Any]
    outvars: Sequence[Any]
    shift: Shift | None = None

    @property
    def effects(self) -> Any:
        return self.equation.effects


def merged(jaxpr: jex.Jaxpr) -> list[Step]:
    """The live equations of a jaxpr, multiplications by scales merged."""
    return live(_Merger(jaxpr).steps, jaxpr.outvars)


def sources(jaxpr: jex.Jaxpr) -> dict[Source, Any]:
    """The variables of the exponents that came from outside."""
    pairs = (zip(asked.given, operands, strict=True) for asked, operands in asking(jaxpr))
    return {source: x for pair in pairs for source, x in pair}


class _Merger:
    def __init__(self, jaxpr: jex.Jaxpr):
        equations = live_equations(jaxpr)
        reads = (x for e in equations for x in e.invars)
        self.uses = Counter(filter(is_variable, (*reads, *jaxpr.outvars)))
        self.makers: dict[Any, Step] = {}
        self.steps: list[Step] = []
        for equation in equations:
            self.add(equation)

    def add(self, equation: Any) -> None:
        if equation.primitive is shift_p:
            [scale] = equation.params["asked"].scales
            self.multiply(equation, equation.invars[0], Shift(scale), *equation.outvars)
        else:
            self.write(Step(equation, equation.invars, equation.outvars))

    def maker(self, x: Any) -> Step | None:
        return None if isinstance(x, jex.Literal) else self.makers.get(x)

    def write(self, step: Step) -> None:
        self.steps.append(step)
        self.makers |= dict.fromkeys(step.outvars, step)

    def multiply(
        self, equation: Any, x: Any, shift: Shift, out: Any, *, sure: bool = False
    ) -> None:
        """Computes ``x * shift`` as the variable ``out``, where it costs least.

        Args:
            sure: whether x is known to take it.
        """
        maker = self.maker(x)
        if maker is None or not (sure or self.takes(x, shift)):
            return self.write(Step(equation, [x], [out], shift))
        found = _as_shift(maker)
        if found:
            x, found = found
            both = Shift(found.scale * shift.scale, found.number * shift.number)
            return self.write(Step(equation, [x], [out], both))
        inputs = list(maker.invars)
        for i in (0, 1) if _is_single(maker, _SUMS) else self.places(maker, shift):
            if not isinstance(inputs[i], jex.Literal):
                inputs[i] = object()
                self.multiply(equation, maker.invars[i], shift, inputs[i], sure=True)
        return self.write(Step(maker.equation, inputs, [out]))

    def takes(self, x: Any, shift: Shift) -> bool:
        """Whether a multiplication of x adds nothing to how x is computed."""
        maker = self.maker(x)
        if maker is None:
            return isinstance(x, jex.Literal) and np.ndim(x.val) == 0 and x.val == 0
        if self.uses[x] > 1:
            return False
        found = _as_shift(maker)
        if found:
            return 1 in (found[1].number, shift.number)
        return bool(self.places(maker, shift))

    def places(self, maker: Step, shift: Shift) -> Sequence[int]:
        """The operands to multiply instead of a result; none where that would cost more."""
        if _is_single(maker, _SUMS):
            return (0, 1) if all(self.takes(x, shift) for x in maker.invars) else ()
        if _is_single(maker, _PRODUCTS):
            ranks = (np.ndim(x.aval) for x in maker.equation.invars)
            takers = (i for i, r in enumerate(ranks) if r and self.takes(maker.invars[i], shift))
            return tuple(itertools.islice(takers, 1))
        divides = _is_single(maker, _QUOTIENTS) and self.takes(maker.invars[0], shift)
        return (0,) if divides else ()


def _is_single(step: Step, primitives: Collection[Any]) -> bool:
    """Whether a step applies one of these in a dtype that is merged in."""
    equation = step.equation
    known = not step.shift and equation.primitive in primitives
    return known and equation.outvars[0].aval.dtype in _DTYPES


def _as_shift(step: Step) -> tuple[Any, Shift] | None:
    """What a step multiplies and by what, if it does no more than that."""
    if step.shift:
        return step.invars[0], step.shift
    numbers = [i for i, x in enumerate(step.invars) if isinstance(x, jex.Literal)]
    if len(numbers) != 1 or not _is_single(step, _PRODUCTS):
        return None
    [i] = numbers
    known = np.ndim(step.invars[i].val) == 0 and step.invars[i].val != 0
    return (step.invars[1 - i], Shift(Scale(), float(step.invars[i].val))) if known else None
