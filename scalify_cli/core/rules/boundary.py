"""How values enter and leave the body of a loop, a branch or a call that is traced anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.core.powers import MAX_EXPONENT, MIN_EXPONENT, clip, exp2, log2_floor
from scalify_cli.core.scale import Scale, exponents, maximum, minimum, relations
from scalify_cli.core.scaled_array import is_float, wide_dtype
from scalify_cli.core.values import (
    Column,
    Scaled,
    Stack,
    Uniform,
    is_narrow,
    plain,
    promote,
    times,
    unstack,
)

_LOW, _HIGH = -6, 4  # binades in which a narrow carry's largest magnitude may drift
_LEAST, _MOST = -60, 16  # log2 of the bounds of a wide carry's scale


class Form(NamedTuple):
    """What is static about a value, the rest of which crosses a boundary as arrays.

    ``kind`` is *uniform* (no array), *plain* (one), *known* (data at the scale ``known``) or
    *unknown* (data, and an exponent in a vector shared with other values: its own, or one that
    follows from some of them by the ``Relation`` ``known``).
    """

    kind: str
    known: Any = None

    @staticmethod
    def of(x: Any) -> "Form":
        if isinstance(x, Uniform):
            return Form("uniform", x)
        if not isinstance(x, Scaled):
            return Form("plain")
        static = x.stacked is None and (x.scale is None or x.scale.static)
        return Form("known", x.scale) if static else Form("unknown")

    def data(self, x: Any) -> Any:
        """The array of x in this form."""
        return plain(x) if self.kind == "plain" else promote(x).data

    def join(self, data: Any, scale: Scale | None) -> Any:
        """The value again, on the other side."""
        if self.kind in ("uniform", "plain"):
            return data if self.kind == "plain" else self.known
        return Scaled(data, self.known if self.kind == "known" else scale)


def common_form(forms: tuple[Form, ...]) -> Form:
    """The form in which several branches return a value: a scale that they share stays static."""
    if any(form.kind == "unknown" for form in forms):
        return Form("unknown")
    if len(set(forms)) == 1:
        return forms[0]
    if not any(form.kind == "known" for form in forms):
        return Form("plain")
    known = {form.known for form in forms if form.kind == "known"}
    known |= {form.known.split()[1] for form in forms if form.kind == "uniform"}
    known -= {None}
    static = len(known) <= 1 and all(form.kind in ("known", "uniform") for form in forms)
    return Form("known", next(iter(known), None)) if static else Form("unknown")


def split(forms: Sequence[Form], values: Iterable[Any]) -> tuple:
    """The arrays of some values: their data, and a vector of the exponents that are unknown."""
    pairs = [pair for pair in zip(forms, values, strict=True) if pair[0].kind != "uniform"]
    unknown = [promote(x) for form, x in pairs if form.kind == "unknown"]
    return [form.data(x) for form, x in pairs], exponents([x.scale or _born(x) for x in unknown])


def _born(x: Scaled) -> Scale:
    """Any scale as an exponent: it crowds out no other, and its reciprocal none in a wide dtype."""
    return Scale(MIN_EXPONENT if is_narrow(x.dtype) else _LEAST)


def related(values: Sequence[Any]) -> tuple[list[Form], tuple]:
    """The forms and arrays of some values whose scales stay related on the other side."""
    forms = list(map(Form.of, values))
    pairs = [pair for pair in zip(forms, values, strict=True) if pair[0].kind != "uniform"]
    unknown = [promote(x).scale or Scale() for form, x in pairs if form.kind == "unknown"]
    found, elements = relations(unknown)
    own = iter(found)
    forms = [f._replace(known=next(own)) if f.kind == "unknown" else f for f in forms]
    return forms, ([form.data(x) for form, x in pairs], exponents(elements))


def joined(forms: Sequence[Form], arrays: tuple) -> list[Any]:
    """The values again."""
    data, elements = iter(arrays[0]), Scale.elements(arrays[1])
    own = iter(elements)
    return [
        form.join(
            None if form.kind == "uniform" else next(data),
            None
            if form.kind != "unknown"
            else form.known.of(elements)
            if form.known
            else next(own),
        )
        for form in forms
    ]


def gathered(forms: Sequence[Form], arrays: tuple, length: int) -> list[Any]:
    """A loop's outputs of all iterations; one exponent an iteration where it is unknown."""
    unknown = [form.known for form in forms if form.kind == "unknown"]
    data, stack = iter(arrays[0]), Stack(arrays[1], unknown)
    columns = (Column(stack, i) for i in range(len(forms)))
    return [
        replace(form.known, shape=(length, *form.known.shape))
        if form.kind == "uniform"
        else Scaled(next(data), None, stacked=next(columns))
        if form.kind == "unknown"
        else form.join(next(data), None)
        for form in forms
    ]


def unstacked(x: Any) -> Any:
    """x at one scale, if a loop stacked it."""
    return unstack(x) if isinstance(x, Scaled) else x


def outer(values: Iterable[Any]) -> Callable[[], list[Any]]:
    """Values that an inner trace closes over: what it computes from their scales stays there."""
    forms, arrays = related(list(map(unstacked, values)))
    return lambda: joined(forms, arrays)


class Rows:
    """What a scan runs over."""

    def __init__(self, values: Sequence[Any]):
        self.columns = [x.stacked if isinstance(x, Scaled) else None for x in values]
        pairs = zip(values, self.columns, strict=True)
        whole = [replace(x, stacked=None) if column else x for x, column in pairs]
        self.stacks = list({c.stack: None for c in self.columns if c})
        self.forms, (data, self.outside) = related(whole)
        self.arrays = data, [stack.elements for stack in self.stacks]

    def join(self, arrays: tuple) -> list[Any]:
        """One iteration's parts."""
        data, rows = arrays
        elements = dict(zip(self.stacks, map(Scale.elements, rows), strict=True))
        parts = joined(self.forms, (data, self.outside))
        return [
            Scaled(x.data, column.relation.of(elements[column.stack])) if column else _part(x)
            for x, column in zip(parts, self.columns, strict=True)
        ]


def _part(x: Any) -> Any:
    return replace(x, shape=x.shape[1:]) if isinstance(x, Uniform) else x


def carried(initial: Sequence[Any]) -> list[Form]:
    """The forms of a loop's state: data and an exponent for a float."""
    return [Form("unknown" if is_float(x) else "plain") for x in initial]


def advanced(forms: Sequence[Form], before: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The state after an iteration, from its first outputs.

    Static rules let a scale drift away from the values by some binades an iteration. A dtype with
    float32's range has room for that as long as the scale stays within bounds, of which the upper
    is near, because sums grow to the scale of their largest term: x + x⁵ of x at 2^16 is at 2^80,
    and data 2^-80 is still a normal number. A narrow one is
    measured at the end of each iteration, and brought back where it has drifted far.
    """
    return [
        x if form.kind == "plain" or x is old else _steady(promote(x))
        for form, old, x in zip(forms, before, outputs, strict=False)
    ]


def _steady(x: Scaled) -> Scaled:
    if is_narrow(x.dtype):
        return _near_one(x)
    if x.scale is None:
        return x
    held = maximum([minimum(x.scale, Scale(_MOST)), Scale(_LEAST)])
    return Scaled(times(x.data, x.scale / held), held)


def _near_one(x: Scaled) -> Scaled:
    """x with its largest finite magnitude near 1, at a scale that float32 holds.

    What is beyond float32 becomes infinite, as it would in plain JAX.
    """
    wide = x.data.astype(wide_dtype(x.dtype))
    largest = log2_floor(jnp.max(jnp.where(jnp.isfinite(wide), jnp.abs(wide), 0), initial=0))
    drift = largest - clip(largest, _LOW, _HIGH)
    exponent = jnp.int32(MIN_EXPONENT if x.scale is None else x.scale.exponent())
    held = clip(exponent + drift, MIN_EXPONENT, MAX_EXPONENT)
    wide = wide * exp2(exponent - held).astype(wide.dtype)
    limit = exp2(np.int32(MAX_EXPONENT + 1) - held).astype(wide.dtype)
    infinite = lax.sign(wide) * np.asarray(np.inf, wide.dtype)
    data = jnp.where(jnp.abs(wide) < limit, wide, infinite).astype(x.dtype)
    return Scaled(data, Scale.unknown(held))
