"""What flows along the edges of a jaxpr under ``scalify``.

* ``Scaled``: data, the scale that propagation gives it, and the unit that the data is in now.
* ``Uniform``: one number repeated, known while tracing, so that no 16-bit dtype rounds it away.
* everything else: plain arrays, integers, keys.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from scalify_cli.core.dtypes import is_float, register_dtype
from scalify_cli.scales.powers import floor_log2
from scalify_cli.scales.scale import ONE, Scale

SQUARE, GUARDED, NONZERO = "square", "guarded", "nonzero"
"""Roles of squares, of what a small number keeps from zero, and of what is made of those."""


@dataclass(eq=False)
class Scaled:
    """The value ``data * unit``, which ``scale`` fits; data at its scale unless a unit is given.

    Args:
        data: in its dtype or, where that is narrow, perhaps in float32.
        scale: None is *any scale*: zeros, infinities and NaN, whose unit does not matter either,
            and what has no elements.
        dtype: of the value.
        loose: whether it is made of plain arrays only, and leaves the program as a plain array.
        role: what products make of it (``rules/families.py``); none if it is empty.
        number: what it repeats, if that is known while tracing.
        picked: where it is made of elements of others, what it was before it was stored.
    """

    data: Any
    scale: Scale | None
    unit: Scale = None  # type: ignore[assignment]
    dtype: Any = None
    loose: bool = False
    role: Any = ""
    number: float | None = None
    picked: "Picked | None" = None

    def __post_init__(self):
        self.scale = None if 0 in self.shape else self.scale
        self.unit = (self.scale or ONE) if self.unit is None else self.unit
        self.dtype = self.data.dtype if self.dtype is None else self.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.data)

    def with_data(self, data: Any) -> "Scaled":
        """Other data in its place, of which no number is known."""
        return replace(self, data=data, number=None)


@dataclass(frozen=True, eq=False)
class Picked:
    """Elements of other arrays, before they were stored; data comes with its unit.

    Args:
        of: the arrays' data.
        before: the elements' own.
        now: what they are stored in; of any other data this says nothing.
    """

    of: tuple[tuple[Any, Scale], ...]
    before: tuple[Any, Scale]
    now: tuple[Any, Scale]


def picked(x: Scaled) -> Picked | None:
    """What x was picked from, if it is still that."""
    if x.picked and x.picked.now[0] is x.data and x.picked.now[1] == x.unit:
        return x.picked
    return None


def picked_as(x: Scaled, new: Scaled) -> Scaled:
    """Another form of x, which is picked from the same."""
    found = picked(x)
    return replace(new, picked=found and replace(found, now=(new.data, new.unit)))


def is_nonzero(x: Scaled) -> bool:
    """Whether what is above zero must stay so where it is stored: the moments of Adam are divided
    by the root of one, and a logarithm's argument may be guarded."""
    return x.role in (SQUARE, GUARDED, NONZERO)


def nonzero(values: Iterable[Scaled]) -> str:
    """The role of what is made of several values, one of which must not be rounded to zero."""
    return NONZERO if any(map(is_nonzero, values)) else ""


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
    def scale(self) -> Scale | None:
        """The power of two at or below it; any scale for zero, infinities and NaN."""
        if self.value == 0 or not math.isfinite(self.value):
            return None
        return Scale.beside(math.log2(abs(self.value)), floor_log2(abs(self.value)))

    def array(self, dtype: Any = None) -> Any:
        return lax.full(self.shape, self.value, dtype or self.dtype, sharding=self.sharding)

    def scalar(self) -> Any:
        """It in the place of an array that it meets elementwise."""
        tracked = self.sharding is not None and not self.sharding.mesh.empty
        dtype = register_dtype(self.dtype)
        return self.array(dtype) if tracked else np.asarray(self.value, dtype)

    def of_shape(self, shape: tuple[int, ...], *spec: Any) -> "Uniform":
        """One of the same number; ``spec`` is what its sharding becomes."""
        sharding = self.sharding and self.sharding.update(spec=spec)
        return replace(self, shape=shape, sharding=sharding)


def constant(x: Any) -> Any:
    """A literal or a captured constant: a float scalar known while tracing becomes ``Uniform``."""
    if isinstance(x, Tracer) or not is_float(x) or np.size(x) != 1:
        return x
    return Uniform(float(np.asarray(x, np.float64).reshape(())), np.shape(x), jnp.result_type(x))
