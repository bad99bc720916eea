"""Scales inside a trace: log2 of a power of two, as a symbolic integer expression.

A scale that is known while tracing is a Python integer; one that is not is an *atom*: an int32
scalar, or a maximum, root or clamp of other scales. Everything stays symbolic until data must be
multiplied: x·y/y has x's scale again, equal scales are recognised without a comparison at run time,
and what is needed at run time is computed for many scales at once (``settled``). Exponents are
integers, so no product of scales can overflow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from scalify_cli.core.dtypes import once
from scalify_cli.core.exponents import (
    MODERATE,
    RULES,
    Request,
    Source,
    exponent_p,
    merged,
    shift_p,
)
from scalify_cli.core.interpreter import here
from scalify_cli.core.powers import MAX_EXPONENT, MIN_EXPONENT

_MOST_PARTS = 24


class Atom:
    """One int32 exponent unknown while tracing: a source's element, or made of scales by a rule.

    ``memo`` holds what has been asked of it so far.
    """

    def __init__(
        self,
        source: Source | None = None,
        index: int = 0,
        rule: str = "",
        operands: Sequence["Scale"] = (),
    ):
        self.source, self.index = source, index
        self.rule, self.operands = rule, tuple(operands)
        self.memo: dict = {}
        below = [atom for scale in operands for atom, _ in scale.terms]
        self.depth: int = 1 + max(atom.depth for atom in below) if rule else 0
        self.level = (self.depth, rule if rule in RULES else "")
        self.given: dict[Source, None] = (
            {source: None} if source else merged(atom.given for atom in below)
        )


class Scale:
    """log2 of a scale: ``constant + sum(coefficient * atom)``."""

    __slots__ = ("constant", "terms")

    def __init__(self, constant: int = 0, terms: tuple[tuple[Atom, int], ...] = ()):
        self.constant = constant
        self.terms = terms

    @staticmethod
    def unknown(exponent: Any, shared: frozenset = frozenset()) -> "Scale":
        """A scale known only at run time: an int32 scalar is its log2, a float32 scalar itself.

        Args:
            shared: axes along which all shards have the same.
        """
        return Scale._of(Atom(Source(exponent, shared)))

    @staticmethod
    def elements(exponents: Any) -> list["Scale"]:
        """The scales 2**exponent for the elements of an int32 vector."""
        source = Source(exponents)
        return [Scale._of(Atom(source, i)) for i in range(np.size(exponents))]

    @staticmethod
    def _of(atom: Atom) -> "Scale":
        return Scale(0, ((atom, 1),))

    @property
    def static(self) -> bool:
        """Whether the scale is known while tracing."""
        return not self.terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def given(self) -> Any:
        """The float32 scale that it is, as it came from outside; None if it is another."""
        alone = self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1
        source = self._atom.source if alone else None
        return source.array if source and source.array.dtype == jnp.float32 else None

    @property
    def shared(self) -> frozenset:
        """Axes along which all shards are known to have the same; none if it is static."""
        sources = merged(atom.given for atom, _ in self.terms)
        return frozenset.intersection(*(source.shared for source in sources or [Source(None)]))

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
        rule = self._atom.rule if len(self.terms) == 1 and self.terms[0][1] == 1 else ""
        if rule == "clamp" and not self.constant:
            return self
        return self._derived("clamp", *(_parts(self) if rule == "maximum" else [self]))

    def elsewhere(self, known: Mapping["Scale", "Scale"]) -> "Scale | None":
        """This scale where others are known instead of its elements; None: it has more elements.

        Args:
            known: what an element is there.
        """
        scale = Scale(self.constant)
        for atom, n in self.terms:
            there = _elsewhere(atom, known)
            if there is None:
                return None
            scale *= there**n
        return scale

    def exponent(self) -> Any:
        """log2 of the scale: a Python int, or an int32 scalar."""
        return self.constant if self.static else here(self._requested(jnp.int32))

    def factor(self, number: float = 1.0) -> Any:
        """The scale as a float, times a number: Python's when static, else a float32 scalar.

        It is within float32's normal numbers, so that infinite data times it is no NaN.
        """
        if self.static:
            return number * 2.0 ** min(max(self.constant, MIN_EXPONENT), MAX_EXPONENT)
        given = self.given if number == 1 else None
        return here(self._requested(jnp.float32, number) if given is None else given)

    def applied(self, x: Any) -> Any:
        """x times the scale, in its dtype; the scale is not known while tracing."""
        asked = self._cached(("applied", self.key), lambda: Request((self,), None, ()))
        return shift_p.bind(x, *(source.array for source in asked.given), asked=asked)

    def _requested(self, dtype: Any, number: float = 1.0) -> Any:
        key = (dtype, number, self.key)
        return self._cached(key, lambda: _request([self], dtype, (), number))

    def _derived(self, rule: str, *operands: "Scale") -> "Scale":
        key = (rule, frozenset(scale.key for scale in operands))
        return self._cached(key, lambda: Scale._of(Atom(rule=rule, operands=operands)))

    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        memo = self._atom.memo
        if key not in memo:
            memo[key] = make()
        return memo[key]


ONE = Scale()


def maximum(scales: Sequence[Scale]) -> Scale:
    """The largest of some scales; known maxima and differences are folded while tracing."""
    return _joint("maximum", scales)


def moderate(scales: Sequence[Scale]) -> Scale:
    """The largest of some scales, or 2**16 if that is less but not less than all of them.

    For values with float32's range: sums of sums do not follow a scale far from the data.
    """
    known = all(scale.static for scale in scales)
    return _derived("moderate", scales) if known else _joint("moderate", scales)


def _derived(rule: str, scales: Sequence[Scale]) -> Scale:
    """The scale that a rule derives at run time, or while tracing if all are known."""
    if any(scale.terms for scale in scales):
        return next(x for x in scales if x.terms)._derived(rule, *scales)
    known = [scale.constant for scale in scales]
    return Scale(max(min(max(known), MODERATE), min(known)) if rule == "moderate" else max(known))


def _joint(rule: str, scales: Sequence[Scale]) -> Scale:
    largest: list[Scale] = []
    for scale in (part for x in scales for part in _parts(x, rule)):
        ratios = [(scale / other, i) for i, other in enumerate(largest)]
        known = [(ratio.constant, i) for ratio, i in ratios if ratio.static]
        if not known:
            largest.append(scale)
        elif known[0][0] > 0:
            largest[known[0][1]] = scale
    whole = [x for x in scales if set(_parts(x, rule)) == set(largest)]
    if whole or len(largest) == 1:
        return (whole or largest)[0]
    return _derived(rule, largest)


def minimum(scales: Sequence[Scale]) -> Scale:
    """The smallest of some scales."""
    return maximum([scale**-1 for scale in scales]) ** -1


def _parts(scale: Scale, rule: str = "maximum") -> list[Scale]:
    """What a scale is the largest of: max(a, b)·c is max(a·c, b·c)."""
    for atom, n in scale.terms:
        if n == 1 and atom.rule == rule and len(atom.operands) <= _MOST_PARTS:
            rest = scale / Scale._of(atom)
            return [operand * rest for operand in atom.operands]
    return [scale]


def _elsewhere(atom: Atom, known: Mapping[Scale, Scale]) -> Scale | None:
    if atom.source:
        return known.get(Scale._of(atom))
    operands = [scale.elsewhere(known) for scale in atom.operands]
    found = [scale for scale in operands if scale is not None]
    if len(found) < len(operands) or atom.rule not in _REMADE:
        return None
    return _REMADE[atom.rule](found)


class Relation(NamedTuple):
    """A scale as ``constant + sum(n * element)`` of a vector of exponents."""

    constant: int
    terms: tuple[tuple[int, int], ...]

    def of(self, elements: Sequence[Scale]) -> Scale:
        """The scale again."""
        scale = Scale(self.constant)
        for i, n in self.terms:
            scale *= elements[i] ** n
        return scale


def relations(scales: Sequence[Scale]) -> tuple[list[Relation], list[Scale]]:
    """Some scales in terms of as few as they are made of."""
    atoms = list({atom: None for scale in scales for atom, _ in scale.terms})
    place = {atom: i for i, atom in enumerate(atoms)}
    found = [
        Relation(scale.constant, tuple((place[atom], n) for atom, n in scale.terms))
        for scale in scales
    ]
    return found, [Scale._of(atom) for atom in atoms]


def select(which: Any, first: Scale, second: Scale) -> Scale:
    """``first`` where the scalar ``which`` is 0 or false, else ``second``."""
    index = once(which, "index", lambda: Scale.unknown(jnp.int32(which)))
    return Scale._of(Atom(rule="select", operands=(index, first, second)))


def exponents(scales: Sequence[Scale | None]) -> Any:
    """log2 of some scales as an int32 vector, nothing for none; any scale is the smallest."""
    if not scales:
        return ()
    return _request([x or Scale(MIN_EXPONENT) for x in scales], jnp.int32, (len(scales),))


def _request(scales: Any, dtype: Any, shape: tuple[int, ...], number: float = 1.0) -> Any:
    request = Request(tuple(scales), jnp.dtype(dtype), shape, number)
    return exponent_p.bind(*(source.array for source in request.given), asked=request)


_REMADE: dict[str, Callable[[Sequence[Scale]], Scale]] = {
    "maximum": maximum,
    "moderate": lambda scales: _derived("moderate", scales),
    "clamp": lambda scales: maximum(scales).clamped(),
    "root 2": lambda scales: scales[0].root(2)[0],
    "root 3": lambda scales: scales[0].root(3)[0],
}
"""A derived scale made again of others."""
