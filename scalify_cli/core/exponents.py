"""Scales needed at run time, computed many at once.

One by one they would be thousands of scalar operations. A program's exponents stand in one int32
vector instead; what is asked for of it are products with constant matrices.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex

from scalify_cli.core.dtypes import cast
from scalify_cli.core.powers import (
    BIAS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    divided,
    exponent_of_power,
)

MODERATE = 16
"""log2 of the scale that a sum has at most, of values with float32's range."""


class Source:
    """Run-time exponents that came from outside: an int32 scalar or vector, or a float32 scale.

    ``shared``: the axes along which all shards are known to have the same.
    """

    def __init__(self, array: Any, shared: frozenset = frozenset()):
        self.array, self.shared = array, shared


def merged(sets: Iterable[dict]) -> dict:
    return {atom: None for atoms in sets for atom in atoms}


@dataclass(eq=False)
class Request:
    """Scales needed at run time: int32 exponents, or factors of a float dtype; shape () or (n,).

    It is a parameter of an equation, which JAX hashes and keeps: each is one of its own.
    """

    scales: tuple[Any, ...]
    dtype: Any
    shape: tuple[int, ...]
    number: float = 1.0  # a factor of a float result

    @property
    def order(self) -> tuple:
        """Factors first, vectors of exponents last."""
        return self.shape, self.dtype == jnp.int32, str(self.dtype)

    @cached_property
    def given(self) -> tuple[Source, ...]:
        """What they are computed from."""
        return tuple(merged(atom.given for scale in self.scales for atom, _ in scale.terms))


class Exponents:
    """The int32 exponents of the atoms of a program, in one vector that grows as they are known.

    Its first element is 1, which constants are multiples of.
    """

    def __init__(self):
        self.given: dict[Source, Any] = {}
        self.place: dict[Any, int] = {}
        self.vector: Any = np.ones(1, np.int32)

    def compute(self, requests: Sequence[Request]) -> list[Any]:
        """What was asked for, in a few operations on vectors."""
        self._include([source for source in self.given if source not in self.place])
        for atoms in self._levels(scale for request in requests for scale in request.scales):
            self._append(self._derived(atoms), atoms)
        order = sorted(range(len(requests)), key=lambda i: requests[i].order)
        results = zip(order, self._together([requests[i] for i in order]), strict=True)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def _together(self, requests: Sequence[Request]) -> list[Any]:
        """Of requests in their order: float scalars, int32 scalars, int32 vectors."""
        scales = [scale for request in requests for scale in request.scales]
        floats = [request for request in requests if request.dtype != jnp.int32]
        single = sum(request.shape == () for request in requests)
        sums, count, results = self._sums(scales, inverse=len(floats)), len(floats), []
        if floats:
            results += _powers(sums if count >= len(scales) else sums[:count], floats)
        if single > count:
            results += jnp.unstack(sums[count:single])
        ends = np.cumsum([single, *(request.shape[0] for request in requests[single:])])
        parts = itertools.pairwise(map(int, ends))
        return results + [sums[start:stop] for start, stop in parts]

    def _include(self, sources: Sequence[Source]) -> None:
        """Adds what came from outside: scales, then single exponents, then vectors of them."""
        values = [(source, self.given[source]) for source in sources]
        floats = [(x, value) for x, value in values if value.dtype == jnp.float32]
        single = [(x, v) for x, v in values if v.dtype != jnp.float32 and v.ndim == 0]
        if floats:
            scales = jnp.stack([value for _, value in floats])
            self._append(exponent_of_power(scales), [x for x, _ in floats])
        if single:
            self._append(
                jnp.stack([jnp.int32(value) for _, value in single]), [x for x, _ in single]
            )
        for source, value in values:
            if value.ndim:
                self._append(value, [source])

    def _append(self, new: Any, members: Sequence[Any]) -> None:
        self.place |= {member: self.vector.size + i for i, member in enumerate(members)}
        self.vector = lax.concatenate([self.vector, new], 0)

    def _levels(self, scales: Iterable[Any]) -> list[list[Any]]:
        """The derived atoms still to be computed, each level from those before it."""
        found: dict[Any, None] = {}
        waiting = [atom for scale in scales for atom, _ in scale.terms]
        while waiting:
            atom = waiting.pop()
            if atom.depth and atom not in found and atom not in self.place:
                found[atom] = None
                waiting += [below for scale in atom.operands for below, _ in scale.terms]
        order = sorted({atom.level for atom in found})
        return [[atom for atom in found if atom.level == level] for level in order]

    def _derived(self, atoms: Sequence[Any]) -> Any:
        """The exponents of derived atoms of one level."""
        count = max(len(atom.operands) for atom in atoms)
        padded = [
            atom.operands + atom.operands[:1] * (count - len(atom.operands)) for atom in atoms
        ]
        columns = [scale for scales in zip(*padded, strict=True) for scale in scales]
        sums = self._sums(columns)[: len(columns)].reshape(count, -1)
        rule = RULES.get(atoms[0].rule)
        return rule(sums) if rule else _largest(sums, [atom.rule for atom in atoms])

    def _sums(self, scales: Sequence[Any], inverse: int = 0) -> Any:
        """The exponents of some scales: one product of the vector and a constant matrix.

        At least two columns, because XLA computes narrower products anew wherever they are read.

        Args:
            inverse: how many of them, from the first, are wanted as the float32 code of 2/scale.
        """
        matrix = np.zeros((self.vector.size, max(len(scales), 2)), np.int32)
        for column, scale in enumerate(scales):
            matrix[0, column] = scale.constant
            for atom, n in scale.terms:
                place = self.place[atom.source or atom]
                matrix[place + atom.index, column] = n
        matrix[:, :inverse] *= -1
        matrix[0, :inverse] += BIAS + 1
        return lax.dot(self.vector, matrix)


def _largest(rows: Any, rules: Sequence[str]) -> Any:
    """The maxima of columns, each halved or clamped where its rule says so."""
    largest = lax.reduce_max(rows, (0,)) if len(rows) > 1 else rows[0]
    if "root 2" in rules:
        largest = lax.shift_right_arithmetic(
            largest, np.array([r == "root 2" for r in rules], np.int32)
        )
    if "clamp" not in rules:
        return largest
    far = np.array([0 if rule == "clamp" else 2**30 for rule in rules], np.int32)
    return lax.clamp(MIN_EXPONENT - far, largest, MAX_EXPONENT + far)


def _powers(codes: Any, requests: Sequence[Request]) -> list[Any]:
    """What factors were asked for, from the codes of their inverses."""
    dividend = np.full(codes.shape, 2, np.float32)
    dividend[: len(requests)] *= [np.float32(request.number) for request in requests]
    powers, dtypes = divided(dividend, codes), [request.dtype for request in requests]
    rows = {dtype: jnp.unstack(cast(powers, dtype)) for dtype in dict.fromkeys(dtypes)}
    return [rows[dtype][i] for i, dtype in enumerate(dtypes)]


def _moderate(rows: Any) -> Any:
    """Of each column the largest, but no more than ``MODERATE`` or the least."""
    least = lax.reduce_min(rows, (0,))
    return lax.min(lax.reduce_max(rows, (0,)), lax.max(least, np.int32(MODERATE)))


RULES = {
    "moderate": _moderate,
    "select": lambda e: lax.select(lax.eq(e[0], np.int32(0)), e[1], e[2]),
    "root 3": lambda e: jnp.floor_divide(e[0], np.int32(3)),
}
"""What a derived atom is, from its operands' exponents: one row an operand, one column an atom.

Others are the largest of their operands, then halved (*root 2*) or clamped.
"""


exponent_p = jex.Primitive("exponent")
"""A scale asked for; ``settled`` computes many of them together."""
exponent_p.def_abstract_eval(lambda *_, asked: ShapedArray(asked.shape, asked.dtype))

shift_p = jex.Primitive("shift")
"""Its first operand times a scale asked for; ``settled`` merges it with others."""
shift_p.def_abstract_eval(lambda x, *_, asked: x)


def asking(jaxpr: jex.Jaxpr) -> list[tuple[Request, Sequence[Any]]]:
    """What the equations of a jaxpr ask for, and of which variables."""
    found = [(e, e.invars[e.primitive is shift_p :]) for e in jaxpr.eqns]
    return [(e.params["asked"], x) for e, x in found if e.primitive in (exponent_p, shift_p)]


def forget(jaxpr: jex.Jaxpr) -> None:
    """Lets go of a trace that is over: JAX's caches keep the parameters of its equations."""
    for request, _ in asking(jaxpr):
        request.scales = request.given = ()
