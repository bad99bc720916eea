"""Scales inside a trace: log2 of a power of two, as a symbolic integer expression.

A scale that is known while tracing is a Python integer; one that is not is an *atom*: an int32
scalar, or a maximum, root or clamp of other scales. Everything stays symbolic until data must be
multiplied: x·y/y has x's scale again, equal scales are recognised without a comparison at run time,
and what is needed at run time is computed for many scales at once (``settled``). Exponents are
integers, so no product of scales can overflow.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend import core as jex
from jax.interpreters import mlir

_BIAS, _MANTISSA_BITS = 127, 23
_INFINITY = 255 << _MANTISSA_BITS
_MOST_PARTS, _FEW = 24, 3
MIN_EXPONENT, MAX_EXPONENT = -126, 127


class Source:
    """Run-time exponents that came from outside: an int32 scalar or vector, or a float32 scale."""

    def __init__(self, array: Any):
        self.array = array


class Atom:
    """One int32 exponent unknown while tracing: a source's element, or made of scales by a rule.

    ``memo`` holds what has been asked of it so far. ``any``: it may be far below every other, as
    that of data which is all infinite.
    """

    def __init__(
        self,
        source: Source | None = None,
        index: int = 0,
        rule: str = "",
        operands: Sequence["Scale"] = (),
        any: bool = False,
    ):
        self.source, self.index, self.any = source, index, any
        self.rule, self.operands = rule, tuple(operands)
        self.memo: dict = {}
        below = [atom for scale in operands for atom, _ in scale.terms]
        self.depth: int = 1 + max(atom.depth for atom in below) if rule else 0
        self.level = (self.depth, rule if rule in RULES else "")
        self.given: dict[Source, None] = (
            {source: None} if source else _merged(atom.given for atom in below)
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
    def unknown(exponent: Any) -> "Scale":
        """A scale known only at run time: an int32 scalar is its log2, a float32 scalar itself."""
        return Scale._of(Atom(Source(exponent)))

    @staticmethod
    def elements(exponents: Any, any: bool = False) -> list["Scale"]:
        """The scales 2**exponent for the elements of an int32 vector."""
        source = Source(exponents)
        return [Scale._of(Atom(source, i, any=any)) for i in range(np.size(exponents))]

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
    def low(self) -> int:
        """The least code of its factor: 1 where infinite data may meet it (0 would make NaN)."""
        return int(any(atom.any for atom, _ in self.terms))

    @property
    def given(self) -> Any:
        """The float32 scale that it is, as it came from outside; None if it is another."""
        alone = self.constant == 0 and len(self.terms) == 1 and self.terms[0][1] == 1
        source = self._atom.source if alone else None
        return source.array if source and source.array.dtype == jnp.float32 else None

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
        alone = len(self.terms) == 1 and self.terms[0][1] == 1 and self._atom.rule == "maximum"
        return self._derived("clamp", *(_parts(self) if alone else [self]))

    def exponent(self) -> Any:
        """log2 of the scale: a Python int, or an int32 scalar."""
        return self.constant if self.static else self._requested(jnp.int32)

    def factor(self, number: float = 1.0) -> Any:
        """The scale as a float, times a number: Python's when static, else a float32 scalar.

        With a number it is never zero.
        """
        if self.static:
            exponent = min(self.constant, MAX_EXPONENT)
            return number * 2.0**exponent if exponent >= MIN_EXPONENT else 0.0
        given = self.given if number == 1 else None
        return self._requested(jnp.float32, number) if given is None else given

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
    largest: list[Scale] = []
    for scale in (part for x in scales for part in _parts(x)):
        ratios = [(scale / other, i) for i, other in enumerate(largest)]
        known = [(ratio.constant, i) for ratio, i in ratios if ratio.static]
        if not known:
            largest.append(scale)
        elif known[0][0] > 0:
            largest[known[0][1]] = scale
    whole = [x for x in scales if set(_parts(x)) == set(largest)]
    if whole or len(largest) == 1:
        return (whole or largest)[0]
    return next(x for x in largest if x.terms)._derived("maximum", *largest)


def minimum(x: Scale, y: Scale) -> Scale:
    """The smaller of two scales."""
    return maximum([x**-1, y**-1]) ** -1


def _parts(scale: Scale) -> list[Scale]:
    """What a scale is the largest of: max(a, b)·c is max(a·c, b·c)."""
    for atom, n in scale.terms:
        if n == 1 and atom.rule == "maximum" and len(atom.operands) <= _MOST_PARTS:
            rest = scale / Scale._of(atom)
            return [operand * rest for operand in atom.operands]
    return [scale]


def select(which: Any, first: Scale, second: Scale) -> Scale:
    """``first`` where the scalar ``which`` is 0 or false, else ``second``."""
    return Scale._of(Atom(rule="select", operands=(Scale.unknown(jnp.int32(which)), first, second)))


def exponents(scales: Sequence[Scale | None]) -> Any:
    """log2 of some scales as an int32 vector, nothing for none; any scale is the smallest."""
    if not scales:
        return ()
    return _request([x or Scale(MIN_EXPONENT) for x in scales], jnp.int32, (len(scales),))


def _request(scales: Any, dtype: Any, shape: tuple[int, ...], number: float = 1.0) -> Any:
    request = Request(tuple(scales), jnp.dtype(dtype), shape, number)
    arrays = (source.array for source in request.given)
    return exponent_p.bind(*arrays, given=request.given, **request._asdict())


class Request(NamedTuple):
    """Scales needed at run time: int32 exponents or float32 factors, of shape () or (n,)."""

    scales: tuple[Scale, ...]
    dtype: Any
    shape: tuple[int, ...]
    number: float = 1.0  # a factor of a float32 result

    @property
    def low(self) -> int:
        """1 where the float may not be zero."""
        return 1 if self.number != 1 else self.scales[0].low

    @property
    def order(self) -> tuple:
        """Float32 scalars first, vectors last."""
        return self.shape, self.dtype != jnp.float32

    @property
    def given(self) -> tuple[Source, ...]:
        """What they are computed from."""
        return tuple(_merged(atom.given for scale in self.scales for atom, _ in scale.terms))


class Exponents:
    """The int32 exponents of the atoms of a program, in one vector that grows as they are known.

    Its first element is 1, which constants are multiples of.
    """

    def __init__(self):
        self.given: dict[Source, Any] = {}
        self.place: dict[Any, int] = {}
        self.vector: Any = np.ones(1, np.int32)

    def compute(self, requests: Sequence[Request]) -> list[Any]:
        """What was asked for: a few scalars alone, many in a few operations on vectors."""
        levels = self._levels(scale for request in requests for scale in request.scales)
        scalars = all(request.shape == () for request in requests)
        if scalars and not levels and len(requests) <= _FEW:
            return [self._alone(request) for request in requests]
        self._include([source for source in self.given if source not in self.place])
        for atoms in levels:
            self._append(self._derived(atoms), atoms)
        order = sorted(range(len(requests)), key=lambda i: requests[i].order)
        results = zip(order, self._together([requests[i] for i in order]), strict=True)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def _together(self, requests: Sequence[Request]) -> list[Any]:
        """Of requests in their order: float32 scalars, int32 scalars, int32 vectors."""
        scales = [scale for request in requests for scale in request.scales]
        floats = [request for request in requests if request.dtype == jnp.float32]
        single = sum(request.shape == () for request in requests)
        sums, count, results = self._sums(scales, inverse=len(floats)), len(floats), []
        if floats:
            codes = sums if count >= len(scales) else sums[:count]
            results += _scalars(_powers(codes, floats))[:count]
        if single > count:
            results += _scalars(sums[count:single])
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

    def _alone(self, request: Request) -> Any:
        [scale] = request.scales
        exponent: Any = np.int32(scale.constant)
        for atom, n in scale.terms:
            exponent = exponent + self._one(atom) * np.int32(n)
        if request.dtype == jnp.int32:
            return exponent
        factor = exp2(exponent, request.low)
        return factor if request.number == 1 else factor * np.float32(request.number)

    def _one(self, atom: Atom) -> Any:
        if not atom.source:
            return _element(self.vector, self.place[atom])
        value = self.given[atom.source]
        if value.dtype == jnp.float32:
            return exponent_of_power(value)
        return _element(value, atom.index) if value.ndim else value

    def _position(self, atom: Atom) -> int:
        return self.place[atom.source] + atom.index if atom.source else self.place[atom]

    def _levels(self, scales: Iterable[Scale]) -> list[list[Atom]]:
        """The derived atoms still to be computed, each level from those before it."""
        found: dict[Atom, None] = {}
        waiting = [atom for scale in scales for atom, _ in scale.terms]
        while waiting:
            atom = waiting.pop()
            if atom.depth and atom not in found and atom not in self.place:
                found[atom] = None
                waiting += [below for scale in atom.operands for below, _ in scale.terms]
        order = sorted({atom.level for atom in found})
        return [[atom for atom in found if atom.level == level] for level in order]

    def _derived(self, atoms: Sequence[Atom]) -> Any:
        """The exponents of derived atoms of one level."""
        count = max(len(atom.operands) for atom in atoms)
        padded = [
            atom.operands + atom.operands[:1] * (count - len(atom.operands)) for atom in atoms
        ]
        columns = [scale for scales in zip(*padded, strict=True) for scale in scales]
        sums = self._sums(columns)[: len(columns)].reshape(count, -1)
        rule = RULES.get(atoms[0].rule)
        return rule(sums) if rule else _largest(sums, [atom.rule for atom in atoms])

    def _sums(self, scales: Sequence[Scale], inverse: int = 0) -> Any:
        """The exponents of some scales: one product of the vector and a constant matrix.

        At least two columns, because XLA computes narrower products anew wherever they are read.

        Args:
            inverse: how many of them, from the first, are wanted as the float32 code of 2/scale.
        """
        matrix = np.zeros((self.vector.size, max(len(scales), 2)), np.int32)
        for column, scale in enumerate(scales):
            matrix[0, column] = scale.constant
            for atom, n in scale.terms:
                matrix[self._position(atom), column] = n
        matrix[:, :inverse] *= -1
        matrix[0, :inverse] += _BIAS + 1
        return lax.dot(self.vector, matrix)


def _scalars(vector: Any) -> list[Any]:
    return list(jnp.unstack(vector))


def _largest(rows: Any, rules: Sequence[str]) -> Any:
    """The maxima of columns, each halved or clamped where its rule says so."""
    largest = jnp.max(rows, 0) if len(rows) > 1 else rows[0]
    if "root 2" in rules:
        largest = lax.shift_right_arithmetic(largest, np.int32([r == "root 2" for r in rules]))
    if "clamp" not in rules:
        return largest
    far = np.int32([0 if rule == "clamp" else 2**30 for rule in rules])
    return lax.clamp(MIN_EXPONENT - far, largest, MAX_EXPONENT + far)


def _powers(codes: Any, requests: Sequence[Request]) -> Any:
    """What float32 scalars were asked for, from the codes of their inverses."""
    least, dividend = np.zeros(codes.shape, np.int32), np.full(codes.shape, 2, np.float32)
    for i, request in enumerate(requests):
        least[i], dividend[i] = request.low, 2 * np.float32(request.number)
    return _divided(dividend, codes, least)


def _element(vector: Any, i: int) -> Any:
    return lax.squeeze(lax.slice(vector, (i,), (i + 1,)), (0,))


RULES = {
    "select": lambda e: jnp.where(e[0] == 0, e[1], e[2]),
    "root 3": lambda e: jnp.floor_divide(e[0], np.int32(3)),
}
"""What a derived atom is, from its operands' exponents: one row an operand, one column an atom.

Others are the largest of their operands, then halved (*root 2*) or clamped.
"""


def _computed(*values: Any, given: tuple[Source, ...], **request: Any) -> Any:
    exponents = Exponents()
    exponents.given |= zip(given, values, strict=True)
    return exponents.compute([Request(**request)])[0]


exponent_p = jex.Primitive("exponent")
"""A scale asked for; ``settled`` computes many of them together."""
exponent_p.def_impl(_computed)
exponent_p.def_abstract_eval(lambda *_, dtype, shape, **__: ShapedArray(shape, dtype))
mlir.register_lowering(exponent_p, mlir.lower_fun(_computed, multiple_results=False))


def exp2(exponent: Any, low: int = 0) -> Any:
    """2**exponent as float32, by writing the exponent bits: exact, 0 below the normal numbers.

    With ``low=1`` the smallest normal number there.
    """
    code = lax.clamp(np.int32(low), exponent + np.int32(_BIAS), np.int32(MAX_EXPONENT + _BIAS))
    return lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)


def exp2_once(exponent: Any) -> Any:
    """``exp2``, never 0, by a division: XLA does not repeat it in every loop that reads it."""
    return _divided(np.float32(2), np.int32(_BIAS + 1) - exponent, np.int32(1))


def _divided(dividend: Any, code: Any, least: Any) -> Any:
    """``dividend`` over the float32 of an exponent code, limited so that 2/2**x is ``exp2(x)``."""
    high = np.int32(2 * _BIAS + 1) - least
    code = lax.clamp(np.int32(1), code, high)
    inverse = lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)
    return lax.div(jnp.broadcast_to(dividend, code.shape), inverse)


def exponent_of_power(x: Any) -> Any:
    """log2 of float32 powers of two, from their exponent bits."""
    bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    return lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)) - np.int32(_BIAS)


def clip(exponent: Any, low: int, high: int) -> Any:
    """An int32 scalar within bounds, in two operations."""
    return lax.min(lax.max(jnp.int32(exponent), np.int32(low)), np.int32(high))


def power_below(x: Any) -> Any:
    """The power of two at or below |x| (float32), the smallest for zero, infinities and NaN."""
    bits = lax.bitcast_convert_type(x, jnp.int32) & np.int32(_INFINITY)
    power = lax.bitcast_convert_type(jnp.where(bits == _INFINITY, 0, bits), jnp.float32)
    return lax.max(power, np.float32(2.0**MIN_EXPONENT))


def log2_floor(x: Any) -> Any:
    """Exponent of the power of two at or below |x| (float32); zero gives the smallest scale."""
    bits = lax.bitcast_convert_type(lax.abs(jnp.asarray(x, jnp.float32)), jnp.int32)
    exponent = lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)) - np.int32(_BIAS)
    return clip(exponent, MIN_EXPONENT, MAX_EXPONENT)
