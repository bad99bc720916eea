"""How values enter and leave the body of a loop, a branch or a call that is traced anew."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.core.scale import MAX_EXPONENT, MIN_EXPONENT, Scale, clip, exp2, log2_floor
from scalify_cli.core.scaled_array import is_float, wide_dtype
from scalify_cli.core.values import Scaled, Uniform, exponent_of, plain, promote, unstack

_LOW, _HIGH = -6, 4  # binades in which a carry's largest magnitude may drift between iterations


class Form(NamedTuple):
    """What is static about a value, the rest of which crosses a boundary as arrays.

    ``kind`` is *uniform* (no array), *plain* (one), *known* (data at the scale ``known``) or
    *unknown* (data and an int32 exponent).
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

    @property
    def width(self) -> int:
        """The number of arrays."""
        return {"uniform": 0, "unknown": 2}.get(self.kind, 1)

    def split(self, x: Any) -> tuple:
        """The arrays of x in this form."""
        if self.kind == "uniform":
            return ()
        if self.kind == "plain":
            return (plain(x),)
        x = promote(x)
        return (x.data,) if self.kind == "known" else (x.data, jnp.int32(exponent_of(x)))

    def join(self, arrays: tuple) -> Any:
        """The value again, on the other side."""
        if self.kind in ("uniform", "plain"):
            return arrays[0] if arrays else self.known
        return Scaled(arrays[0], self.known if len(arrays) == 1 else Scale.unknown(arrays[1]))

    def gather(self, arrays: tuple, length: int) -> Any:
        """A loop's outputs of all iterations; one exponent an iteration where it is unknown."""
        if self.kind == "uniform":
            return replace(self.known, shape=(length, *self.known.shape))
        return Scaled(arrays[0], None, stacked=arrays[1]) if len(arrays) == 2 else self.join(arrays)


def common_form(forms: tuple[Form, ...]) -> Form:
    """The form in which several branches return a value: a scale that they share stays static."""
    if len(set(forms)) == 1:
        return forms[0]
    if not any(form.kind in ("known", "unknown") for form in forms):
        return Form("plain")
    known = {form.known for form in forms if form.kind == "known"}
    known |= {form.known.split()[1] for form in forms if form.kind == "uniform"}
    known -= {None}
    static = len(known) <= 1 and all(form.kind in ("known", "uniform") for form in forms)
    return Form("known", next(iter(known), None)) if static else Form("unknown")


def split(forms: Sequence[Form], values: Iterable[Any]) -> list[tuple]:
    """The arrays of some values."""
    return [form.split(x) for form, x in zip(forms, values, strict=True)]


def joined(forms: Sequence[Any], arrays: Sequence[tuple]) -> list[Any]:
    """The values again; also of a loop's carries and rows, inside it."""
    return [form.join(x) for form, x in zip(forms, arrays, strict=True)]


def unstacked(x: Any) -> Any:
    """x at one scale, if a loop stacked it."""
    return unstack(x) if isinstance(x, Scaled) else x


def outer(values: Iterable[Any]) -> Callable[[], list[Any]]:
    """Values that an inner trace closes over: what it computes from their scales stays there."""
    values = list(map(unstacked, values))
    forms = list(map(Form.of, values))
    arrays = split(forms, values)
    return lambda: joined(forms, arrays)


class Row:
    """A value that a scan runs over."""

    def __init__(self, whole: Any):
        self.form, self.exponent = Form.of(whole), ()
        if isinstance(whole, Scaled) and whole.stacked is not None:
            self.arrays = whole.data, whole.stacked
        else:
            arrays = self.form.split(whole)
            self.arrays, self.exponent = arrays[:1], arrays[1:]

    def join(self, arrays: tuple) -> Any:
        """One iteration's part."""
        if self.form.kind == "uniform":
            return replace(self.form.known, shape=self.form.known.shape[1:])
        return self.form.join((*arrays, *self.exponent))


class Carry:
    """A loop's state: data and an exponent for a float.

    Static rules let a scale drift away from the values by some binades an iteration, so a carry
    is measured at the end of each, and brought back where it has drifted far.
    """

    def __init__(self, initial: Any):
        self.form = Form("unknown" if is_float(initial) else "plain")
        self.arrays = self.form.split(initial)

    def join(self, arrays: tuple) -> Any:
        """The value, from the arrays that go round the loop or come out of it."""
        if self.form.kind == "plain":
            return arrays[0]
        return Scaled(arrays[0], Scale.unknown(arrays[1], any=True))

    def next(self, before: Any, x: Any) -> tuple:
        """The arrays that start the next iteration."""
        unchanged = self.form.kind == "plain" or x is before
        return self.form.split(x) if unchanged else _near_one(promote(x))


def _near_one(x: Scaled) -> tuple:
    """Data whose largest finite magnitude is near 1, and an exponent that float32 holds.

    What is beyond float32 becomes infinite, as it would in plain JAX.
    """
    wide = x.data.astype(wide_dtype(x.dtype))
    largest = log2_floor(jnp.max(jnp.where(jnp.isfinite(wide), jnp.abs(wide), 0), initial=0))
    drift = largest - clip(largest, _LOW, _HIGH)
    exponent = jnp.int32(exponent_of(x))
    held = clip(exponent + drift, MIN_EXPONENT, MAX_EXPONENT)
    wide = wide * exp2(exponent - held).astype(wide.dtype)
    limit = exp2(np.int32(MAX_EXPONENT + 1) - held).astype(wide.dtype)
    infinite = lax.sign(wide) * np.asarray(np.inf, wide.dtype)
    return jnp.where(jnp.abs(wide) < limit, wide, infinite).astype(x.dtype), held


def advanced(carries: Sequence[Carry], before: Sequence[Any], outputs: Sequence[Any]) -> list:
    """The carries' arrays after an iteration, from its first outputs."""
    return [c.next(old, x) for c, old, x in zip(carries, before, outputs, strict=False)]
