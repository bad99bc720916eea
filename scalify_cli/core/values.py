"""What flows along the edges of a jaxpr under ``scalify``.

* ``Scaled``: data and a scale. ``scale=None`` is *any scale*: zeros, infinities, NaN.
* ``Uniform``: one number repeated, known while tracing; it is split into mantissa and power of two
  only where it meets a scaled value, so nothing is lost to a 16-bit dtype.
* everything else: plain arrays, integers, keys.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from scalify_cli.core.dtypes import cast, is_float, is_narrow, once, wide_dtype
from scalify_cli.core.powers import MAX_EXPONENT, MIN_EXPONENT, exp2_once, power_below
from scalify_cli.core.scale import ONE, Relation, Scale, maximum, minimum
from scalify_cli.core.scaled_array import ScaledArray

_HEADROOM = 7  # binades that values of a narrow dtype give up to a known number beside them


@dataclass(frozen=True, eq=False)
class Scaled:
    """The value ``data * scale`` inside a trace. ``scale=None``: only zeros, infinities or NaN.

    ``stacked``: where the scales of a loop's outputs are that have one an iteration; they are
    brought to one scale only when something else than a loop reads them.

    ``loose``: made of plain arrays and known numbers only; it leaves the program as a plain array.
    """

    data: Any
    scale: Scale | None
    stacked: "Column | None" = None
    loose: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.shape(self.data)

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def with_data(self, data: Any) -> "Scaled":
        return replace(self, data=data)


@dataclass(frozen=True)
class Uniform:
    """A float array of one repeated number that is known while tracing.

    ``sharding``: where JAX tracks how arrays lie on a mesh.
    """

    value: float
    shape: tuple[int, ...]
    dtype: Any
    sharding: Any = field(default=None, compare=False)

    @staticmethod
    def like(aval: Any, value: float) -> "Uniform":
        """One of an array's type."""
        return Uniform(value, aval.shape, aval.dtype, aval.sharding)

    @property
    def any_scale(self) -> bool:
        return self.value == 0 or not math.isfinite(self.value)

    def as_mask(self) -> "Uniform":
        """A number beyond its dtype, such as -1e30 in FP16, is the infinity it is in plain JAX."""
        beyond = abs(self.value) > float(jnp.finfo(self.dtype).max)
        return replace(self, value=math.copysign(math.inf, self.value)) if beyond else self

    def scale_beside(self, scale: "Scale | None") -> "Scale | None":
        """The least scale for this number among values of a scale, which it must not crowd out."""
        _, own = self.split()
        if own is None or scale is None:
            return own
        lowest = own.constant - _top(self.dtype)
        wanted = max(min(own.constant, 0), lowest)
        if not is_narrow(self.dtype) or wanted == lowest:
            return Scale(wanted)
        return maximum([Scale(lowest), minimum([Scale(wanted), scale.shifted(_HEADROOM)])])

    def data_at(self, scale: "Scale | None") -> Any:
        """Its data at a scale; rounding never makes it zero, so that it still guards a division."""
        mantissa, own = self.split()
        if own is None or scale is None or own == scale:
            return self.filled(mantissa)
        ratio = own / scale
        value, least = ratio.factor(mantissa), math.copysign(_least(self.dtype), mantissa)
        if not ratio.static:
            narrow = is_narrow(self.dtype)
            larger = lax.max if mantissa > 0 else lax.min
            value = larger(value, np.float32(least)) if narrow else value
        elif abs(value) > float(jnp.finfo(self.dtype).max):
            value = math.copysign(math.inf, mantissa)
        else:
            value = max(value, least) if mantissa > 0 else min(value, least)
        return self.filled(value)

    def array(self) -> Any:
        return self.filled(self.value)

    def filled(self, value: Any, dtype: Any = None) -> Any:
        """Another number in its place."""
        return lax.full(self.shape, value, dtype or self.dtype, sharding=self.sharding)

    def repeated(self, length: int) -> "Uniform":
        """Some of it, stacked."""
        sharding = self.sharding and self.sharding.update(spec=(None, *self.sharding.spec))
        return replace(self, shape=(length, *self.shape), sharding=sharding)

    def row(self) -> "Uniform":
        """One of its rows."""
        sharding = self.sharding and self.sharding.update(spec=self.sharding.spec[1:])
        return replace(self, shape=self.shape[1:], sharding=sharding)

    def split(self) -> "tuple[float, Scale | None]":
        """``(mantissa, scale)`` with 1 <= |mantissa| < 2."""
        if self.any_scale:
            return self.value, None
        mantissa, exponent = math.frexp(self.value)
        return mantissa * 2, Scale(exponent - 1)


def enter(x: Any) -> Any:
    """An argument of the transform: ``ScaledArray`` becomes ``Scaled``, its scale an exponent."""
    if not isinstance(x, ScaledArray):
        return x
    if isinstance(x.scale, Tracer):
        return Scaled(x.data, Scale.unknown(x.scale))
    return Scaled(x.data, Scale(int(np.frexp(np.float32(x.scale))[1]) - 1))


def leave(x: Any) -> Any:
    """A result of the transform: ``Scaled`` becomes ``ScaledArray``, the rest plain arrays."""
    if isinstance(x, Uniform):
        return x.array()
    if not isinstance(x, Scaled):
        return x
    if x.loose:
        return plain(x)
    x = bounded(unstack(x))
    return ScaledArray.tree_unflatten(None, (x.data, jnp.float32(x.scale.factor())))


def bounded(x: Scaled) -> Any:
    """x at a scale that float32 holds: what lies beyond goes back into the data."""
    scale = Scale(MIN_EXPONENT) if x.scale is None else x.scale
    held = scale if scale.given is not None else scale.clamped()
    return Scaled(x.data if held == scale else times(x.data, scale / held), held)


def constant(x: Any) -> Any:
    """A literal or a captured constant: a float scalar known while tracing becomes ``Uniform``."""
    if isinstance(x, Tracer) or not is_float(x) or np.size(x) != 1:
        return x
    return Uniform(float(np.asarray(x, np.float64).reshape(())), np.shape(x), jnp.result_type(x))


def plain(x: Any) -> Any:
    """The true values, in x's dtype."""
    if isinstance(x, Uniform):
        return x.array()
    return cast(true_values(x), x.dtype) if isinstance(x, Scaled) else x


def true_values(x: Any) -> Any:
    """The true values in float32 (float64 stays): what an opaque function is applied to."""
    if isinstance(x, Uniform):
        return x.filled(x.value, wide_dtype(x.dtype))
    if not isinstance(x, Scaled):
        return cast(x, wide_dtype(x.dtype)) if is_float(x) else x
    x = unstack(x)
    return times(cast(x.data, wide_dtype(x.dtype)), x.scale)


def promote(x: Any) -> Scaled:
    """Any float value as ``Scaled``. A scalar gives its exponent to the scale; arrays get 1."""
    if isinstance(x, Scaled):
        return unstack(x)
    if isinstance(x, Uniform):
        mantissa, scale = x.split()
        return Scaled(x.filled(mantissa), scale)
    if np.size(x) != 1:
        return Scaled(x, ONE)
    return once(x, "split", lambda: _split(x))


def _split(x: Any) -> Scaled:
    wide = cast(x, wide_dtype(x.dtype))
    power = power_below(cast(wide, jnp.float32).reshape(()))
    data = cast(lax.div(wide, cast(power, wide.dtype)), x.dtype)  # not repeated by XLA
    return Scaled(data, Scale.unknown(power))


def times(data: Any, scale: Scale | None) -> Any:
    """``data * scale`` in data's dtype; nothing is emitted for a scale of 1."""
    if scale is None or scale == ONE:
        return data
    normal = -int(jnp.finfo(data.dtype).minexp)
    if is_narrow(data.dtype) and not (scale.static and abs(scale.constant) <= normal):
        return cast(times(cast(data, jnp.float32), scale), data.dtype)
    if scale.static:
        return lax.mul(data, np.asarray(scale.factor(), data.dtype))
    if scale.given is None:
        return scale.applied(data)
    return lax.mul(data, cast(lax.stop_gradient(scale.factor()), data.dtype))


def _top(dtype: Any) -> int:
    """The exponent of a dtype's largest number, or of float32's."""
    return min(int(jnp.finfo(dtype).maxexp) - 1, MAX_EXPONENT)


def _least(dtype: Any) -> float:
    """The smallest number that a machine keeps in arithmetic of a dtype."""
    info = jnp.finfo(dtype)
    return float(info.smallest_subnormal if is_narrow(dtype) else info.tiny)


def at_scale(x: Any, scale: Scale | None) -> Any:
    """x's data expressed at another scale."""
    if isinstance(x, Uniform):
        return x.data_at(scale)
    if not isinstance(x, Scaled):
        return x
    if x.scale is None or scale is None:
        return x.data
    return times(x.data, x.scale / scale)


def product_scale(x: Scaled, y: Scaled) -> Scale | None:
    """The scale of a product; any scale if one factor has any."""
    return None if x.scale is None or y.scale is None else x.scale * y.scale


def chosen(scales: Sequence[Scale | None], choose: Any = maximum) -> Scale | None:
    """The largest, or another choice, of the scales that are not any scale."""
    known = [scale for scale in scales if scale is not None]
    return choose(known) if known else None


class Stack:
    """Int32 exponents [length, count] of a loop's outputs, from which their scales follow."""

    def __init__(self, elements: Any, relations: Sequence[Relation]):
        self.elements, self.relations = elements, relations

    @cached_property
    def exponents(self) -> Any:
        """One an iteration for each output, [length, output]."""
        matrix = np.zeros((self.elements.shape[1], len(self.relations)), np.int32)
        for column, relation in enumerate(self.relations):
            for i, n in relation.terms:
                matrix[i, column] = n
        constants = np.array([relation.constant for relation in self.relations], np.int32)
        return lax.dot(self.elements, matrix) + constants[None]

    @cached_property
    def largest(self) -> list[Scale]:
        """The scale that each output has as a whole."""
        return Scale.elements(self._largest)

    @cached_property
    def _largest(self) -> Any:
        largest = jnp.max(self.exponents, 0, initial=MIN_EXPONENT)
        return lax.clamp(np.int32(MIN_EXPONENT), largest, np.int32(MAX_EXPONENT))

    @cached_property
    def factors(self) -> Any:
        """What brings each iteration to it, [length, output]."""
        return exp2_once(self.exponents - self._largest[None])


class Column(NamedTuple):
    """One output's part of a ``Stack``."""

    stack: Stack
    index: int

    @property
    def relation(self) -> Relation:
        return self.stack.relations[self.index]

    @property
    def exponents(self) -> Any:
        return self.stack.exponents[:, self.index]


def unstack(x: Scaled) -> Scaled:
    """One scale for a loop's stacked outputs: the largest."""
    if x.stacked is None:
        return x
    stack, index = x.stacked
    factors = lax.broadcast_in_dim(stack.factors[:, index], x.shape, (0,))
    data = cast(lax.mul(cast(x.data, jnp.float32), factors), x.dtype)
    return Scaled(data, stack.largest[index])
