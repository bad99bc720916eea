"""One of several scales, which is known at run time: the largest, the smallest, a selected one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from scalify_cli.jaxprs.tracing import once
from scalify_cli.scales.scale import Atom, Scale, derived

_MOST_PARTS = 12  # of a maximum whose operands are compared with others


def maximum(scales: Sequence[Scale]) -> Scale:
    """The largest of some scales."""
    differ = list(dict.fromkeys(scales))
    largest = _largest(differ) if len(differ) > 1 else differ[0]
    below = [0 if x == largest else min(x.relative(largest)[1], 0) for x in scales]
    return largest.of_degree(*_doubt(scales, below))


def _largest(scales: Sequence[Scale]) -> Scale:
    """The same; what is surely not larger than others is left out."""
    parts = list(map(_parts, scales))
    found = parts[0]
    for own in parts[1:]:  # within one of them, none is surely larger than another
        new = [x for x in own if all(x.relative(y)[1] > 0 for y in found)]
        found = [*(y for y in found if all(x.relative(y)[0] < 0 for x in new)), *new]
    whole = [x for x, own in zip(scales, parts, strict=True) if set(own) == set(found)]
    return (whole or found)[0] if whole or len(found) == 1 else derived("maximum", found)


def minimum(scales: Sequence[Scale]) -> Scale:
    """The smallest of some scales."""
    return maximum([scale**-1 for scale in scales]) ** -1


def select(which: Any, first: Scale, second: Scale) -> Scale:
    """``first`` where the scalar ``which`` is 0 or false, else ``second``."""
    index = once(which, "index", lambda: Scale.unknown(jnp.int32(which)))
    atom = Atom(rule="select", operands=[index, first, second])
    return Scale(0, [(atom, 1)], *_doubt([first, second]))


def _doubt(
    scales: Sequence[Scale], below: Sequence[float] = ()
) -> tuple[float, tuple[float, float]]:
    """The degree and the drift of one of some scales, whichever it is.

    Args:
        below: of a scale that is theirs together, how far (0 or less) each is below it at least.
    """
    pairs = list(zip(scales, below or [0] * len(scales), strict=True))
    least = min(x.drift[0] for x, by in pairs if not by)
    most = max(x.drift[1] + by for x, by in pairs)
    return max((x.degree for x in scales), key=abs), (least, max(least, most))


def chosen(scales: Iterable[Scale | None], choose: Callable = maximum) -> Scale | None:
    """The largest, or another choice, of the scales that are not any scale."""
    known = [scale for scale in scales if scale is not None]
    return choose(known) if known else None


def _parts(scale: Scale) -> list[Scale]:
    """What a scale is the largest of: max(a, b)·c is max(a·c, b·c)."""
    for atom, n in scale.terms:
        if n == 1 and atom.rule == "maximum" and len(atom.operands) <= _MOST_PARTS:
            rest = scale / Scale(0, [(atom, 1)])
            return [operand * rest for operand in atom.operands]
    return [scale]
