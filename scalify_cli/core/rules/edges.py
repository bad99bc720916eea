"""What crosses the edge of a body of a loop, a branch or a call that is traced anew.

What leaves a body leaves with its scale where that is made of scales from outside; otherwise as
true values that are measured there: a loop that squares its carry would square its scale too. So a
loop's stacked outputs, saved activations among them, are as narrow as plain JAX's where their
scales are known.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.core.dtypes import cast, is_float, is_narrow
from scalify_cli.core.storage import (
    held,
    measured,
    promote,
    register,
    scale_array,
    sized,
    stored,
    times,
    true,
)
from scalify_cli.core.values import Scaled, nonzero
from scalify_cli.jaxprs.meshes import varying_as, varying_axes
from scalify_cli.jaxprs.tracing import level
from scalify_cli.scales.powers import MAX_EXPONENT
from scalify_cli.scales.scale import ONE, Scale

UNKNOWN, OWN = Scale(1 << 20), Scale(1 << 21)
"""In place of a scale that only the inside of a body knows; and that each iteration has its own."""


def leaving(x: Any, alone: bool = True, stacked: bool = False) -> tuple[Any, Any]:
    """What is known outside of a value that leaves a body, and its array.

    Args:
        alone: whether nothing else must be of the array's type.
        stacked: whether it is one of many: a narrow one then leaves with a scale of its own.

    Returns:
        A ``Scaled`` without data, None for what is no float; and the array.
    """
    if not is_float(x):
        return None, x
    loose, x = not isinstance(x, Scaled) or x.loose, promote(x)
    role = x.role if isinstance(x.role, str) else ""  # others are of arrays that stay inside
    x = sized(replace(x, loose=loose, role=role, number=None, picked=None))
    known, narrow = x.scale is None or x.scale.level < level(), is_narrow(x.dtype)
    if narrow and stacked and x.scale and not known:
        x = stored(held(x))
        return replace(x, data=None, scale=OWN), (x.data, scale_array(x))
    x = stored(x) if narrow and known and alone else x
    if not alone or x.unit.level == level():
        x = true(x)
    return replace(x, data=None, scale=x.scale if known else UNKNOWN), x.data


def left(values: Sequence[Any], forms: list[Any], **options: bool) -> list[Any]:
    """The arrays that leave a body, and in ``forms`` what is known of them outside."""
    pairs = [leaving(x, **options) for x in values]
    forms[:] = [form for form, _ in pairs]
    return [array for _, array in pairs]


def arrived(form: Any, array: Any) -> Any:
    """The value again, outside."""
    if form is None or form.scale != UNKNOWN:
        return array if form is None else form.with_data(array)
    value = measured(array, form.dtype, form.unit)
    return replace(value, loose=form.loose, role=nonzero([form]))


def apart(arrays: Sequence[Any]) -> tuple[list[Any], dict[tuple, Any]]:
    """The arrays that leave an iteration, and the scales of those that have their own: in one
    array for all data that differs along the same axes."""
    scales: dict[tuple, list[Any]] = {}
    for data, scale in (x for x in arrays if isinstance(x, tuple)):
        scales.setdefault(_axes(data), []).append(varying_as(scale, data))
    data = [x[0] if isinstance(x, tuple) else x for x in arrays]
    return data, {axes: jnp.stack(group) for axes, group in scales.items()}


def _axes(data: Any) -> tuple:
    return tuple(sorted(varying_axes(data)))


def joined(forms: Sequence[Any], stacks: Sequence[Any], scales: dict[tuple, Any]) -> list[Any]:
    """The values again, after the loop; a stack of data with scales of their own at the largest."""

    def each(scales: Any) -> Iterator[tuple[Any, Any]]:
        largest = lax.reduce_max(scales, (0,))
        above = lax.min(lax.div(largest[None], scales), np.float32(2.0**MAX_EXPONENT))
        return zip(jnp.unstack(largest), jnp.unstack(above, axis=1), strict=True)

    own = {axes: each(group) for axes, group in scales.items()}

    def value(form: Any, data: Any) -> Any:
        if form is None or form.scale != OWN:
            return arrived(form, data)
        most, by = next(own[_axes(data)])
        scale = Scale.unknown(most)
        rows = lax.div(cast(data, jnp.float32), lax.broadcast_in_dim(by, data.shape, (0,)))
        return replace(form, data=rows, scale=scale, unit=scale)

    return list(map(value, forms, stacks))


class Carry:
    """What goes round a loop.

    A wide float goes as true values, and keeps the scale that it enters with: it is the same in
    each iteration then. A narrow one goes with its scale, and is measured where an iteration
    changes its scale, as is a wide one that enters as zeros.
    """

    def __init__(self, initial: Any):
        self.value = promote(initial) if is_float(initial) else None
        self.narrow = self.value is not None and is_narrow(self.value.dtype)
        self.scale = self.value and self.value.scale
        self.form: Any = None
        self.start = self.leave(initial)

    def inside(self, arrays: Any) -> Any:
        """The value at the start of an iteration."""
        if self.value is None:
            return arrays
        if self.narrow:
            self.scale = Scale.unknown(arrays[1])
            return Scaled(arrays[0], self.scale)
        if self.value.scale is None:
            return measured(arrays, self.value.dtype)
        return Scaled(arrays, self.value.scale.vague(), ONE)

    def leave(self, x: Any) -> Any:
        """Its arrays at the end of an iteration."""
        if not self.narrow:
            self.form, array = leaving(x, alone=False)
            return array
        x = promote(x)
        new = held(x) if self._keeps(x) else measured(_true_data(x), x.dtype)
        x = stored(replace(new, role=x.role))
        return x.data, varying_as(scale_array(x), x.data)

    def _keeps(self, x: Scaled) -> bool:
        """Whether its size is that at the start of the iteration."""
        own, new = self.scale, x.scale
        if own is None or new is None or own != new:
            return False
        return (own.degree, own.drift) == (new.degree, new.drift)

    def after(self, arrays: Any) -> Any:
        """The value that the loop ends with."""
        zeros = self.value and self.value.scale is None and not self.narrow
        return arrived(replace(self.form, loose=False), arrays) if zeros else self.inside(arrays)


def _true_data(x: Scaled) -> Any:
    """Data in the unit 1, by two products: float32 may not hold the unit."""
    unit = ONE if x.scale is None else x.unit
    return times(times(register(x), Scale(unit.constant)), Scale(0, unit.terms))
