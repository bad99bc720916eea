"""Scales inside a trace: log2 of a power of two, as a symbolic integer expression.

A scale that is known while tracing is a Python integer; one that is not is a sum of *atoms*: int32
scalars, and maxima, roots or choices of other scales. Everything stays symbolic until data must be
multiplied: x·y/y has x's scale again, equal scales are recognised without a comparison at run time,
and what is needed at run time is computed for many scales at once (``settled``). Exponents are
integers, so no product of scales can overflow.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp

from scalify_cli.jaxprs.meshes import here
from scalify_cli.jaxprs.tracing import level, once
from scalify_cli.scales.powers import (
    BIAS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    exponent_of_power,
    inverse_power,
)
from scalify_cli.scales.rules import RULES
from scalify_cli.scales.settle import requested

_TRUSTED, _VAGUE = 8, 1 << 10  # degrees
_NO_DRIFT = (0.0, 0.0)
_serial = itertools.count()


class Atom:
    """One int32 exponent unknown while tracing: an array that came from outside (an int32 scalar,
    a float32 scale, or the size of data), or what a rule makes of other scales.

    ``level`` is that of the trace that it is made in, ``bounds`` are the least and the most that it
    may be, and ``memo`` holds what has been made of it so far.
    """

    def __init__(
        self,
        array: Any = None,
        rule: str = "",
        operands: Sequence["Scale"] = (),
        bounds: tuple[int, int] = (MIN_EXPONENT, MAX_EXPONENT),
        is_size: bool = False,
    ):
        self.is_size = is_size
        self.array, self.rule, self.operands = array, rule, tuple(operands)
        self.serial = next(_serial)
        below = {atom: None for scale in operands for atom, _ in scale.terms}
        self.level: int = max((atom.level for atom in below), default=level())
        self.depth: int = 1 + max((atom.depth for atom in below), default=-1)
        self.sources: dict[Atom, None] = {x: None for atom in below for x in atom.sources}
        self.sources |= {} if rule else {self: None}
        if rule:
            least, most = zip(*(scale.bounds for scale in operands), strict=True)
            bounds = RULES[rule].of_ends(least, min), RULES[rule].of_ends(most, max)
        self.bounds = bounds
        self.memo: dict[Any, Atom] = {}

    @property
    def is_factor(self) -> bool:
        """Whether its array is the scale itself."""
        return not (self.is_size or self.rule) and self.array.dtype == jnp.float32


class Scale:
    """log2 of a scale: ``constant + sum(coefficient * atom)``.

    Args:
        degree: how many scales of arguments it is a product of. Data that is not near 1 in them is
            far from it in a product of many.
        drift: the least and the most binades that the data has been moved above it by what made it
            since its size was known, where all that was summed has one sign.

    Equal scales may differ in degree and drift.
    """

    __slots__ = ("constant", "degree", "drift", "terms")

    def __init__(
        self,
        constant: int = 0,
        terms: Iterable[tuple[Atom, int]] = (),
        degree: float = 0,
        drift: tuple[float, float] = _NO_DRIFT,
    ):
        self.constant, self.degree, self.drift = constant, degree, drift
        self.terms = tuple(terms)  # in the order of their making

    @staticmethod
    def unknown(exponent: Any, bound: int = MAX_EXPONENT) -> "Scale":
        """A scale known only at run time: an int32 scalar is its log2, a float32 scalar itself.

        Args:
            bound: of the exponent and its negative; float32 holds scales from outside.
        """
        return Scale(0, [(Atom(exponent, bounds=(-bound, bound)), 1)], 1)

    @staticmethod
    def of_size(size: Any, least: int = MIN_EXPONENT) -> "Scale":
        """The power of two at or below a float32 scalar, from 2**least on."""
        return Scale(0, [(Atom(size, bounds=(least, MAX_EXPONENT), is_size=True), 1)], 1)

    @staticmethod
    def beside(exact: float, constant: int) -> "Scale":
        """2**constant, of data that is 2**exact."""
        return Scale(constant, drift=(exact - constant, exact - constant))

    @property
    def static(self) -> bool:
        """Whether the scale is known while tracing."""
        return not self.terms

    @property
    def level(self) -> int:
        """The deepest trace that it is made in; 0 if it is static."""
        return max((atom.level for atom, _ in self.terms), default=0)

    @property
    def alone(self) -> Atom | None:
        """The atom that it is, if it is no more."""
        [(atom, n), *others] = self.terms or [(None, 0)]
        return atom if n == 1 and not others and self.constant == 0 else None

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the most that it may be, whatever its atoms are."""
        return self.relative(ONE)

    @property
    def reach(self) -> int:
        """How many binades from 1 it is if none of its atoms is more than 40 from 1."""
        return abs(self.constant) + 40 * sum(abs(n) for _, n in self.terms)

    def relative(self, other: "Scale") -> tuple[int, int]:
        """The bounds of this scale over another."""
        counts = dict(self.terms)
        for atom, n in other.terms:
            counts[atom] = counts.get(atom, 0) - n
        least = most = self.constant - other.constant
        for atom, n in counts.items():
            first, last = atom.bounds if n > 0 else atom.bounds[::-1]
            least, most = least + n * first, most + n * last
        return least, most

    def within(self, least: int, most: int) -> bool:
        """Whether it is known to be from 2**least to 2**most."""
        own = self.bounds
        return least <= own[0] and own[1] <= most

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scale):
            return NotImplemented
        return self.constant == other.constant and self.terms == other.terms

    def __hash__(self) -> int:
        return hash((self.constant, self.terms))

    def __mul__(self, other: "Scale") -> "Scale":
        counts = dict(self.terms)
        for atom, n in other.terms:
            counts[atom] = counts.get(atom, 0) + n
        terms = sorted((x for x in counts.items() if x[1]), key=lambda x: x[0].serial)
        vague = _VAGUE in (self.degree, other.degree)
        degree = _VAGUE if vague else self.degree + other.degree
        drift = self.drift[0] + other.drift[0], self.drift[1] + other.drift[1]
        return Scale(self.constant + other.constant, terms, degree, drift)

    def __pow__(self, n: int) -> "Scale":
        terms = ((atom, k * n) for atom, k in self.terms if n)
        degree = _VAGUE if n and self.degree == _VAGUE else self.degree * n
        return Scale(self.constant * n, terms, degree, _times(self.drift, n))

    def __truediv__(self, other: "Scale") -> "Scale":
        return self * other**-1

    def shifted(self, binades: int, least: float = 0, most: float | None = None) -> "Scale":
        """This scale times 2**binades, of data from ``least`` to ``most`` (the same, unless given)
        binades further above it."""
        drift = self.drift[0] + least, self.drift[1] + (least if most is None else most)
        return Scale(self.constant + binades, self.terms, self.degree, drift)

    @property
    def trusted(self) -> bool:
        """Whether what propagation gives may be taken for the size of the data."""
        return abs(self.degree) <= _TRUSTED

    def of_degree(self, degree: float, drift: tuple[float, float] = _NO_DRIFT) -> "Scale":
        """The same scale, known to be of another degree and drift."""
        same = (degree, drift) == (self.degree, self.drift)
        return self if same else Scale(self.constant, self.terms, degree, drift)

    def vague(self) -> "Scale":
        """The same scale of data that may be of any size."""
        return self.of_degree(_VAGUE)

    def root(self, n: int) -> "Scale":
        """The largest power of two whose n-th power this scale is not less than."""
        degree = _VAGUE if self.degree == _VAGUE else self.degree / n
        if all(k % n == 0 for _, k in self.terms):
            terms = ((atom, k // n) for atom, k in self.terms)
            return Scale(self.constant // n, terms, degree, _times(self.drift, 1 / n))
        return derived(f"root {n}", [self]).of_degree(degree, _times(self.drift, 1 / n))

    def parts(self) -> list["Scale"]:
        """Scales whose product it is, where float32 may not hold it: each of two atoms at most."""
        far = abs(self.constant) > MAX_EXPONENT or sum(abs(n) for _, n in self.terms) > 2
        if not far or len({n > 0 for _, n in self.terms}) > 1:
            return [self]
        terms = self.terms[1::2] if len(self.terms) > 1 else [(x, n // 2) for x, n in self.terms]
        half = Scale(self.constant // 2, (x for x in terms if x[1]))
        return [*half.parts(), *(self / half).parts()]

    def clamped(self, least: int, most: int) -> "Scale":
        """The nearest scale from 2**least to 2**most."""
        if self.within(least, most):
            return self
        if self.static:
            return Scale(min(max(self.constant, least), most), (), self.degree, self.drift)
        found = derived("clamp", [self, Scale(least), Scale(most)])
        return found.of_degree(self.degree, self.drift)

    def exponent(self) -> Any:
        """log2 of the scale: a Python int, or an int32 scalar."""
        return self.constant if self.static else exponent_of_power(self.factor())

    def factor(self) -> Any:
        """The scale as a float: Python's when static, else a float32 scalar.

        It is within float32's normal numbers, so that infinite data times it is no NaN.
        """
        if self.static:
            return math.ldexp(1, min(max(self.constant, MIN_EXPONENT), BIAS))
        own, inverse = self.alone, (self**-1).alone
        if own and own.is_factor:
            return here(own.array)
        if inverse and inverse.is_size:
            size, least = inverse.array, inverse.bounds[0]
            return once(inverse, "inverse", lambda: inverse_power(here(size), least))
        return once(self.terms[0][0], self, lambda: requested(self))


ONE = Scale()


def sources_of(scales: Iterable[Scale]) -> list[Atom]:
    """What scales are made of that came from outside."""
    return list({source: None for x in scales for atom, _ in x.terms for source in atom.sources})


@contextmanager
def read_as(sources: Sequence[Atom], arrays: Sequence[Any]) -> Iterator[None]:
    """Other arrays in the place of those that came from outside, where those cannot be read."""
    outer = [atom.array for atom in sources]
    _place(sources, arrays)
    try:
        yield
    finally:
        _place(sources, outer)


def _place(sources: Sequence[Atom], arrays: Sequence[Any]) -> None:
    for atom, array in zip(sources, arrays, strict=True):
        atom.array = array


def derived(rule: str, scales: Sequence[Scale]) -> Scale:
    """What a rule makes of some scales at run time; the same again for the same ones."""
    [(first, _), *_] = (term for scale in scales for term in scale.terms)
    key = rule, frozenset(scales)
    if key not in first.memo:
        first.memo[key] = Atom(rule=rule, operands=scales)
    return Scale(0, [(first.memo[key], 1)])


def _times(drift: tuple[float, float], n: float) -> tuple[float, float]:
    ends = drift[0] * n, drift[1] * n
    return min(ends), max(ends)
