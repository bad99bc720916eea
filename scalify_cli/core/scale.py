"""Scales inside a trace: log2 of a power of two, as a symbolic integer expression.

A scale that is known while tracing is a Python integer; one that is not is an *atom*: an int32
scalar, or a maximum, root or clamp of other scales. Everything stays symbolic until data must be
multiplied: x·y/y has x's scale again, equal scales are recognised without a comparison at run time,
and what is needed at run time is computed for many scales at once (``settled``). Exponents are
integers, so no product of scales can overflow.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex
from jax.interpreters import mlir

_BIAS, _MANTISSA_BITS = 127, 23
_MOST_PARTS, _FEW = 24, 3
MIN_EXPONENT, MAX_EXPONENT = -126, 127


class Atom:
    """One int32 exponent unknown while tracing: given as a scalar, or by a rule from scales.

    ``memo`` holds what has been asked of it so far. ``any``: it may be far below every other, as
    that of data which is all infinite.
    """

    def __init__(
        self, value: Any = None, rule: str = "", operands: Sequence["Scale"] = (), any: bool = False
    ):
        self.value, self.any = value, any
        self.rule, self.operands = rule, tuple(operands)
        self.memo: dict = {}
        below = [atom for scale in operands for atom, _ in scale.terms]
        self.depth: int = 1 + max(atom.depth for atom in below) if rule else 0
        self.given: dict[Atom, None] = (
            _merged(atom.given for atom in below) if rule else {self: None}
        )


def _merged(sets: Iterable[dict]) -> dict:
    return {atom: None for atoms in sets for atom in atoms}


class Scale:
    """log2 of a scale: ``constant + sum(coefficient * atom)``."""

    __slots__ = ("constant", "terms")

    def __init__(self, constant: int = 0, terms: tuple[tuple[Atom, int], ...] = ()):
        self.constant = constant
        self.terms = terms

    @staticmethod
    def unknown(exponent: Any, any: bool = False) -> "Scale":
        """The scale 2**exponent for an int32 scalar that is known only at run time."""
        return Scale(0, ((Atom(exponent, any=any), 1),))

    @property
    def static(self) -> bool:
        """Whether the scale is known while tracing."""
        return not self.terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def low(self) -> int:
        """The least code of its factor: 1 where infinite data may meet it (0 would make NaN)."""
        return int(any(atom.any for atom, _ in self.terms))

    @property
    def is_given(self) -> bool:
        """Whether it is one number that came from outside, as it was."""
        return (
            self.constant == 0
            and len(self.terms) == 1
            and self._atom.depth == 0 == self.terms[0][1] - 1
        )

    @property
    def key(self) -> tuple:
        return self.constant, frozenset(self.terms)

    @property
    def _atom(self) -> Atom:
        return self.terms[0][0]

    def __mul__(self, other: "Scale") -> "Scale":
        counts = dict(self.terms)
        for atom, n in other.terms:
            counts[atom] = counts.get(atom, 0) + n
        terms = tuple((atom, n) for atom, n in counts.items() if n)
        return Scale(self.constant + other.constant, terms)

    def __pow__(self, n: int) -> "Scale":
        return Scale(self.constant * n, tuple((atom, k * n) for atom, k in self.terms if n))

    def __truediv__(self, other: "Scale") -> "Scale":
        return self * other**-1

    def shifted(self, binades: int) -> "Scale":
        """This scale times 2**binades."""
        return Scale(self.constant + binades, self.terms)

    def root(self, n: int) -> tuple["Scale", "Scale"]:
        """``(r, rest)`` with ``r**n * rest`` equal to this scale and ``1 <= rest < 2**n``."""
        if all(k % n == 0 for _, k in self.terms):
            quotient, rest = divmod(self.constant, n)
            return Scale(quotient, tuple((atom, k // n) for atom, k in self.terms)), Scale(rest)
        quotient = self._derived(f"root {n}", self)
        return quotient, self / quotient**n

    def clamped(self) -> "Scale":
        """The nearest scale that float32 holds."""
        if self.static:
            return Scale(min(max(self.constant, MIN_EXPONENT), MAX_EXPONENT))
        return self._derived("clamp", self)

    def exponent(self) -> Any:
        """log2 of the scale: a Python int, or an int32 scalar."""
        if self.static:
            return self.constant
        return self._atom.value if self.is_given else self._requested(jnp.int32)

    def factor(self) -> Any:
        """The scale as a float: Python's when static, else a float32 scalar."""
        if self.static:
            return 2.0 ** min(self.constant, MAX_EXPONENT) if self.constant >= MIN_EXPONENT else 0.0
        return self._requested(jnp.float32)

    def _requested(self, dtype: Any) -> Any:
        given = tuple(_merged(atom.given for atom, _ in self.terms))
        request = lambda: exponent_p.bind(  # noqa: E731
            *(atom.value for atom in given), scale=self, given=given, dtype=jnp.dtype(dtype)
        )
        return self._cached((dtype, self.key), request)

    def _derived(self, rule: str, *operands: "Scale") -> "Scale":
        key = (rule, frozenset(scale.key for scale in operands))
        return self._cached(key, lambda: Scale(0, ((Atom(rule=rule, operands=operands), 1),)))

    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        memo = self._atom.memo
        if key not in memo:
            memo[key] = make()
        return memo[key]


ONE = Scale()


def maximum(scales: Sequence[Scale]) -> Scale:
    """The largest of some scales; known maxima and differences are folded while tracing."""
    largest: list[Scale] = []
    for scale in (part for x in scales for part in _parts(x)):
        ratios = [(scale / other, i) for i, other in enumerate(largest)]
        known = [(ratio.constant, i) for ratio, i in ratios if ratio.static]
        if not known:
            largest.append(scale)
        elif known[0][0] > 0:
            largest[known[0][1]] = scale
    if len(largest) == 1:
        return largest[0]
    return next(x for x in largest if x.terms)._derived("maximum", *largest)


def minimum(x: Scale, y: Scale) -> Scale:
    """The smaller of two scales."""
    return maximum([x**-1, y**-1]) ** -1


def _parts(scale: Scale) -> list[Scale]:
    """What a scale is the largest of: max(a, b)·c is max(a·c, b·c)."""
    for atom, n in scale.terms:
        if n == 1 and atom.rule == "maximum" and len(atom.operands) <= _MOST_PARTS:
            rest = scale / Scale(0, ((atom, 1),))
            return [operand * rest for operand in atom.operands]
    return [scale]


def select(which: Any, first: Scale, second: Scale) -> Scale:
    """``first`` where the scalar ``which`` is 0 or false, else ``second``."""
    return Scale(
        0, ((Atom(rule="select", operands=(Scale.unknown(jnp.int32(which)), first, second)), 1),)
    )


class Request(NamedTuple):
    """A scale needed at run time: as an int32 exponent or as a float32 factor."""

    scale: Scale
    dtype: Any


class Exponents:
    """The int32 exponents of the atoms of a program, in one vector that grows as they are known."""

    def __init__(self):
        self.given: dict[Atom, Any] = {}
        self.place: dict[Atom, int] = {}
        self.vector: Any = np.zeros(0, np.int32)

    def compute(self, requests: Sequence[Request]) -> list[Any]:
        """The scalars asked for: a few alone, many in a few operations on vectors."""
        levels = self._levels(request.scale for request in requests)
        if not levels and len(requests) <= _FEW:
            return [self._alone(request) for request in requests]
        self._append([atom for atom in self.given if atom not in self.place], self.given.get)
        for atoms in levels:
            self._append(atoms, None)
        results: list[Any] = [None] * len(requests)
        for dtype, convert in ((jnp.int32, lambda e, _: e), (jnp.float32, exp2_once)):
            chosen = [i for i, request in enumerate(requests) if request.dtype == dtype]
            if chosen:
                scales = [requests[i].scale for i in chosen]
                vector = convert(self._sums(scales), [scale.low for scale in scales])
                for i, scalar in zip(chosen, jnp.unstack(vector), strict=False):  # one may be spare
                    results[i] = scalar
        return results

    def _append(self, atoms: Sequence[Atom], value: Any) -> None:
        if not atoms:
            return
        new = jnp.stack([jnp.int32(value(x)) for x in atoms]) if value else self._derived(atoms)
        self.place |= {atom: self.vector.size + i for i, atom in enumerate(atoms)}
        self.vector = lax.concatenate([self.vector, new], 0) if self.vector.size else new

    def _alone(self, request: Request) -> Any:
        exponent: Any = np.int32(request.scale.constant)
        for atom, n in request.scale.terms:
            one = (
                self.given[atom] if atom in self.given else _element(self.vector, self.place[atom])
            )
            exponent = exponent + one * np.int32(n)
        return exponent if request.dtype == jnp.int32 else exp2(exponent, request.scale.low)

    def _levels(self, scales: Iterable[Scale]) -> list[list[Atom]]:
        """The derived atoms still to be computed, each level from those before it."""
        found: dict[Atom, None] = {}
        waiting = [atom for scale in scales for atom, _ in scale.terms]
        while waiting:
            atom = waiting.pop()
            if atom.depth and atom not in found and atom not in self.place:
                found[atom] = None
                waiting += [below for scale in atom.operands for below, _ in scale.terms]
        order = sorted({(atom.depth, atom.rule) for atom in found})
        return [[a for a in found if (a.depth, a.rule) == level] for level in order]

    def _derived(self, atoms: Sequence[Atom]) -> Any:
        """The exponents of derived atoms that share a rule."""
        count = max(len(atom.operands) for atom in atoms)
        padded = [
            atom.operands + atom.operands[:1] * (count - len(atom.operands)) for atom in atoms
        ]
        columns = [scale for scales in zip(*padded, strict=True) for scale in scales]
        sums = lax.slice(self._sums(columns), (0,), (len(columns),))
        return RULES[atoms[0].rule](sums.reshape(count, -1))

    def _sums(self, scales: Sequence[Scale]) -> Any:
        """The exponents of some scales: one product of a vector and a constant matrix.

        At least two columns, because XLA computes narrower products anew wherever they are read.
        """
        matrix = np.zeros((self.vector.size, max(len(scales), 2)), np.int32)
        for column, scale in enumerate(scales):
            for atom, n in scale.terms:
                matrix[self.place[atom], column] = n
        constants = [scale.constant for scale in scales] + [0] * (matrix.shape[1] - len(scales))
        return self.vector @ matrix + np.array(constants, np.int32)


def _element(vector: Any, i: int) -> Any:
    return lax.squeeze(lax.slice(vector, (i,), (i + 1,)), (0,))


RULES = {
    "maximum": lambda e: jnp.max(e, 0),
    "select": lambda e: jnp.where(e[0] == 0, e[1], e[2]),
    "clamp": lambda e: lax.clamp(np.int32(MIN_EXPONENT), e[0], np.int32(MAX_EXPONENT)),
    "root 2": lambda e: lax.shift_right_arithmetic(e[0], np.int32(1)),
    "root 3": lambda e: jnp.floor_divide(e[0], np.int32(3)),
}
"""What a derived atom is, from its operands' exponents: one row an operand, one column an atom."""


def _computed(*values: Any, scale: Scale, given: tuple[Atom, ...], dtype: Any) -> Any:
    exponents = Exponents()
    exponents.given |= zip(given, values, strict=True)
    return exponents.compute([Request(scale, dtype)])[0]


exponent_p = jex.Primitive("exponent")
"""A scale asked for; ``settled`` computes many of them together."""
exponent_p.def_impl(_computed)
exponent_p.def_abstract_eval(lambda *_, dtype, **__: ShapedArray((), dtype))
mlir.register_lowering(exponent_p, mlir.lower_fun(_computed, multiple_results=False))


def exp2(exponent: Any, low: int = 0) -> Any:
    """2**exponent as float32, by writing the exponent bits: exact, 0 below the normal numbers.

    With ``low=1`` the smallest normal number there.
    """
    code = lax.clamp(np.int32(low), exponent + np.int32(_BIAS), np.int32(MAX_EXPONENT + _BIAS))
    return lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)


def exp2_once(exponent: Any, low: Sequence[int]) -> Any:
    """``exp2`` with a division, which keeps XLA from repeating it in every loop that reads it."""
    high = np.full(exponent.shape, 2 * _BIAS + 1, np.int32)
    high[: len(low)] -= np.array(low, np.int32)
    code = lax.clamp(np.int32(1), np.int32(_BIAS + 1) - exponent, high)
    inverse = lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)
    return lax.div(np.float32(2), inverse)


def exponent_of_power(x: Any) -> Any:
    """log2 of a float32 scalar that is a power of two, from its exponent bits."""
    bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    return lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)) - np.int32(_BIAS)


def clip(exponent: Any, low: int, high: int) -> Any:
    """An int32 scalar within bounds, in two operations."""
    return lax.min(lax.max(jnp.int32(exponent), np.int32(low)), np.int32(high))


def log2_floor(x: Any) -> Any:
    """Exponent of the power of two at or below |x| (float32); zero gives the smallest scale."""
    bits = lax.bitcast_convert_type(lax.abs(jnp.asarray(x, jnp.float32)), jnp.int32)
    exponent = lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)) - np.int32(_BIAS)
    return clip(exponent, MIN_EXPONENT, MAX_EXPONENT)
