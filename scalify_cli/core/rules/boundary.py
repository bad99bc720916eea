"""How values enter and leave the body of a loop, a branch or a call that is traced anew."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.core.dtypes import is_float, is_narrow, wide_dtype
from scalify_cli.core.powers import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    SMALL_EXPONENT,
    clip,
    exp2,
    log2_floor,
)
from scalify_cli.core.scale import Relation, Scale, exponents, maximum, minimum, relations
from scalify_cli.core.values import (
    Column,
    Scaled,
    Stack,
    Uniform,
    at_scale,
    plain,
    promote,
    times,
    unstack,
)

_LOW, _HIGH = -6, 4  # binades in which a narrow carry's largest magnitude may drift
_LEAST, _MOST = SMALL_EXPONENT, 16  # log2 of the bounds of a wide carry's scale


class Form(NamedTuple):
    """What is static about a value, the rest of which crosses a boundary as arrays.

    ``kind`` is *uniform* (no array), *plain* (one), *known* (data at the scale ``known``) or
    *unknown* (data at a scale that follows by the ``Relation`` ``known`` from a vector of
    exponents, which is shared with other values).
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
        """The array of x in this form; None where there is none."""
        if self.kind == "uniform":
            return None
        return plain(x) if self.kind == "plain" else promote(x).data

    def join(self, data: Any, elements: Sequence[Scale]) -> Any:
        """The value again, on the other side."""
        if self.kind in ("uniform", "plain"):
            return data if self.kind == "plain" else self.known
        return Scaled(data, self.known.of(elements) if self.kind == "unknown" else self.known)


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


def numbered(forms: Iterable[Form]) -> list[Form]:
    """The forms of values that cross again and again: each unknown scale is an exponent."""
    places = itertools.count()
    return [
        Form("unknown", Relation(0, ((next(places), 1),))) if form.kind == "unknown" else form
        for form in forms
    ]


def split(forms: Sequence[Form], values: Iterable[Any]) -> tuple:
    """The arrays of values in numbered forms: their data, and the exponents that are unknown."""
    pairs = list(zip(forms, values, strict=True))
    unknown = [promote(x) for form, x in pairs if form.kind == "unknown"]
    return [form.data(x) for form, x in pairs], exponents([x.scale or _born(x) for x in unknown])


def _born(x: Scaled) -> Scale:
    """Any scale as an exponent: it crowds out no other, and its reciprocal none in a wide dtype."""
    return Scale(MIN_EXPONENT if is_narrow(x.dtype) else _LEAST)


def related(values: Sequence[Any], outside: "Outside | None" = None) -> tuple[list[Form], tuple]:
    """The forms and arrays of some values whose scales stay related on the other side.

    Args:
        outside: what is known there.
    """
    forms = [outside.form(x) if outside else Form.of(x) for x in values]
    pairs = list(zip(forms, values, strict=True))
    scales = [promote(x).scale or Scale() for form, x in pairs if form.kind == "unknown"]
    found, elements = relations(scales)
    own = iter(found)
    forms = [f._replace(known=next(own)) if f.kind == "unknown" else f for f in forms]
    return forms, ([form.data(x) for form, x in pairs], exponents(elements))


def joined(forms: Sequence[Form], arrays: tuple) -> list[Any]:
    """The values again."""
    elements = Scale.elements(arrays[1])
    return [form.join(x, elements) for form, x in zip(forms, arrays[0], strict=True)]


def gathered(forms: Sequence[Form], arrays: tuple, length: int) -> list[Any]:
    """A loop's outputs of all iterations; one exponent an iteration where it is unknown."""
    stack = Stack(arrays[1], [form.known for form in forms if form.kind == "unknown"])
    columns = (Column(stack, i) for i in range(len(forms)))
    return [
        form.known.repeated(length)
        if form.kind == "uniform"
        else Scaled(x, None, stacked=next(columns))
        if form.kind == "unknown"
        else form.join(x, ())
        for form, x in zip(forms, arrays[0], strict=True)
    ]


def unstacked(x: Any) -> Any:
    """x at one scale, if a loop stacked it."""
    return unstack(x) if isinstance(x, Scaled) else x


class Outside:
    """Values whose scales an inner trace closes over; what it computes from them stays there."""

    def __init__(self, values: Iterable[Any]):
        self.values = list(values)
        unknown = [x.scale for x in self.values if _has_unknown(x)]
        self.relations, self.scales = relations(unknown)
        self.vector = exponents(self.scales)
        self.elements: list[Scale] = []

    def inside(self) -> list[Any]:
        """The values in a new inner trace."""
        self.elements, own = Scale.elements(self.vector), iter(self.relations)
        return [
            replace(x, scale=next(own).of(self.elements)) if _has_unknown(x) else x
            for x in self.values
        ]

    def form(self, x: Any) -> Form:
        """The form in which a result leaves: its scale is known if it is made of these alone."""
        form = Form.of(x)
        if form.kind != "unknown" or x.stacked or not self.elements:
            return form
        scale = x.scale.elsewhere(dict(zip(self.elements, self.scales, strict=True)))
        return Form("known", scale) if scale else form


def _has_unknown(x: Any) -> bool:
    return isinstance(x, Scaled) and x.scale is not None and not x.scale.static


class Rows:
    """What a scan runs over."""

    def __init__(self, values: Sequence[Any]):
        self.columns = [x.stacked if isinstance(x, Scaled) else None for x in values]
        self.stacks = list({c.stack: None for c in self.columns if c})
        self.whole = values
        data = [x.data if isinstance(x, Scaled) else x for x in values]
        self.arrays = (
            [None if isinstance(x, Uniform) else x for x in data],
            [stack.elements for stack in self.stacks],
        )

    def join(self, whole: Sequence[Any], arrays: tuple) -> list[Any]:
        """One iteration's parts.

        Args:
            whole: the values, their scales as the inner trace sees them.
        """
        rows = zip(self.stacks, map(Scale.elements, arrays[1]), strict=True)
        elements = dict(rows)
        return [
            Scaled(data, column.relation.of(elements[column.stack])) if column else _part(x, data)
            for x, column, data in zip(whole, self.columns, arrays[0], strict=True)
        ]


def _part(x: Any, data: Any) -> Any:
    if isinstance(x, Uniform):
        return x.row()
    return Scaled(data, x.scale) if isinstance(x, Scaled) else data


class State:
    """A loop's carries, between its iterations.

    A wide one keeps the scale that it enters with: its dtype has float32's range, and what is
    computed from its scale is the same in each iteration. One that is born as zeros takes the scale
    of what is added. A narrow one is measured at the end of each iteration, and brought back where
    its values have drifted far from their scale.
    """

    def __init__(self, initial: Sequence[Any]):
        floats = [promote(x) if is_float(x) else plain(x) for x in initial]
        self.initial = [_steady(x) if _keeps(x) else x for x in floats]
        self.kept = [x if _keeps(x) else None for x in self.initial]
        drifts = [isinstance(x, Scaled) and not _keeps(x) for x in self.initial]
        self.forms = numbered(Form("unknown" if drifting else "plain") for drifting in drifts)

    def split(self, values: Sequence[Any]) -> tuple:
        """The arrays of the carries."""
        pairs = zip(self.kept, values, strict=True)
        return split(self.forms, [x.data if kept else x for kept, x in pairs])

    def joined(self, kept: Sequence[Any], arrays: tuple) -> list[Any]:
        """The carries again.

        Args:
            kept: those that keep their scale, as the trace that reads them sees it; else None.
        """
        pairs = zip(kept, joined(self.forms, arrays), strict=True)
        return [Scaled(x, old.scale) if old else x for old, x in pairs]

    def advanced(self, before: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The carries after an iteration, from its first outputs."""
        triples = zip(self.initial, before, outputs, strict=False)
        return [
            x
            if x is old or not isinstance(first, Scaled)
            else Scaled(at_scale(promote(x), old.scale), old.scale)
            if _keeps(first)
            else _steady(promote(x))
            for first, old, x in triples
        ]


def _keeps(x: Any) -> bool:
    return isinstance(x, Scaled) and x.scale is not None and not is_narrow(x.dtype)


def _steady(x: Scaled) -> Scaled:
    """x at a scale with room around it.

    The upper bound of a wide one is near, because sums grow to the scale of their largest term:
    x + x⁵ of x at 2^16 is at 2^80, and data 2^-80 is still a normal number.
    """
    if is_narrow(x.dtype):
        return _near_one(x)
    if x.scale is None:
        return x
    held = maximum([minimum([x.scale, Scale(_MOST)]), Scale(_LEAST)])
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
