"""Scales inside a trace: log2 of a power of two, as an integer expression.

A scale that is known while tracing is a Python integer; one that is not is an int32 scalar (an
*atom*). Products and quotients of scales stay symbolic sums of atoms, so that x·y/y has x's scale
again, equal scales are recognised without a comparison at run time, and only a *maximum* or a
*factor* emits an operation. Exponents are integers, so no product of scales can overflow.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

_BIAS, _MANTISSA_BITS = 127, 23
MIN_EXPONENT, MAX_EXPONENT = -126, 127


class Atom:
    """One int32 scalar unknown while tracing, with what has been computed from it so far."""

    def __init__(self, value: Any):
        self.value = value
        self.memo: dict = {}


class Scale:
    """log2 of a scale: ``constant + sum(coefficient * atom)``."""

    __slots__ = ("constant", "terms")

    def __init__(self, constant: int = 0, terms: tuple[tuple[Atom, int], ...] = ()):
        self.constant = constant
        self.terms = terms

    @staticmethod
    def unknown(exponent: Any) -> "Scale":
        """The scale 2**exponent for an int32 scalar that is known only at run time."""
        return Scale(0, ((Atom(exponent), 1),))

    @property
    def static(self) -> bool:
        """Whether the scale is known while tracing."""
        return not self.terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def is_atom(self) -> bool:
        """Whether it is one number that came from outside or from a maximum, as it was."""
        return self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1

    @property
    def key(self) -> tuple:
        return self.constant, frozenset(self.terms)

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
        quotient = self._memo(
            ("root", n), lambda e: lax.shift_right_arithmetic(e, np.int32(1)) if n == 2 else e // n
        )
        return quotient, self / quotient**n

    def exponent(self) -> Any:
        """log2 of the scale: a Python int, or an int32 scalar."""
        if self.static:
            return self.constant
        if self.is_atom:
            return self.terms[0][0].value
        return self._memo("exponent", lambda e: e).terms[0][0].value

    def clamped(self) -> "Scale":
        """The nearest scale that float32 holds."""
        if self.static:
            return Scale(min(max(self.constant, MIN_EXPONENT), MAX_EXPONENT))
        return self._memo("clamped", lambda e: clip(e, MIN_EXPONENT, MAX_EXPONENT))

    def factor(self) -> Any:
        """The scale as a float: Python's when static, else a float32 scalar."""
        if self.static:
            return 2.0 ** min(self.constant, MAX_EXPONENT) if self.constant >= MIN_EXPONENT else 0.0
        return self._cached("factor", lambda: exp2(self.exponent()))

    def _cached(self, name: Any, make) -> Any:
        memo = self.terms[0][0].memo
        key = (name, self.key)
        if key not in memo:
            memo[key] = make()
        return memo[key]

    def _memo(self, name: Any, of_exponent) -> "Scale":
        return self._cached(name, lambda: Scale.unknown(of_exponent(self._sum())))

    def _sum(self) -> Any:
        total: Any = None
        for atom, n in self.terms:
            term = atom.value if n == 1 else lax.mul(atom.value, np.int32(n))
            total = term if total is None else lax.add(total, term)
        return lax.add(total, np.int32(self.constant)) if self.constant else total


ONE = Scale()


def maximum(scales: Sequence[Scale]) -> Scale:
    """The largest of some scales; known maxima and differences are folded while tracing."""
    result = scales[0]
    for scale in scales[1:]:
        result = _larger(result, scale)
    return result


def _larger(x: Scale, y: Scale) -> Scale:
    ratio = x / y
    if ratio.static:
        return x if ratio.constant >= 0 else y
    holder = x if x.terms else y
    key = ("maximum", frozenset((x.key, y.key)))
    larger = lambda: lax.max(jnp.int32(x.exponent()), jnp.int32(y.exponent()))  # noqa: E731
    return holder._cached(key, lambda: Scale.unknown(larger()))


def exp2(exponent: Any) -> Any:
    """2**exponent as float32, by writing the exponent bits: exact, 0 below the normal numbers."""
    code = clip(exponent + np.int32(_BIAS), 0, MAX_EXPONENT + _BIAS)
    return lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)


def clip(exponent: Any, low: int, high: int) -> Any:
    """An int32 scalar within bounds, in two operations."""
    return lax.min(lax.max(jnp.int32(exponent), np.int32(low)), np.int32(high))


def log2_floor(x: Any) -> Any:
    """Exponent of the power of two at or below |x| (float32); zero gives the smallest scale."""
    bits = lax.bitcast_convert_type(lax.abs(jnp.asarray(x, jnp.float32)), jnp.int32)
    exponent = lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)) - np.int32(_BIAS)
    return clip(exponent, MIN_EXPONENT, MAX_EXPONENT)
