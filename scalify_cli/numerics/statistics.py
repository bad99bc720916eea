"""What a tensor's values look like, and what rounding did to them, in a handful of numbers.

On the device: counts per binade and sums, a pytree of fixed shape that can leave ``jit``, be
stacked by ``scan`` and be merged over layers. On the host: the floats that are logged.

Sums of squares are kept in units of ``4**exponent``, with 2^exponent next to the largest value:
the squares of Adam's second moments would not fit in float32 as they are. Infinities and NaNs are
counted and take no part in sums and maxima, so every logged figure is finite.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.formats import Format, find_format, saturating_cast, widen
from scalify_cli.numerics import bins

SNR_CAP_DB = 200.0
"""What a rounding without any error is reported as; float32 itself has about 150."""

Statistics = dict[str, jax.Array]

BLOCK = 1 << 18
"""Elements looked at together: few enough to stay in a core's cache."""

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INF = np.int32(0x7F800000)
_OVERFLOW, _UNDERFLOW = 1, 2
_ADDED = ("counts", "size", "overflow", "underflow")
_SQUARES = ("sum_squares", "error_squares")


def statistics(
    data: jax.Array,
    scale: jax.Array | float,
    rounded: jax.Array | None = None,
    format: str | Format | None = None,
) -> Statistics:
    """Statistics of the values ``data * scale`` and of the rounding of ``data``.

    Args:
        data: float32, bfloat16 or float16 of any shape.
        scale: a scalar power of two (its exponent is what is used).
        rounded: ``data`` as it was rounded, in the same scale; None: as ``format`` would round it
            to the nearest, or not rounded when there is no format either.
        format: what it was rounded to; it tells what overflows.

    Returns:
        int32 ``counts`` [131] (slots of ``bins``), ``scale_exponent``, ``exponent``, ``size``,
        ``overflow`` (beyond the format's range or infinite), ``underflow`` (non-zero, rounded to
        zero); float32 ``amax`` of the values; ``sum_squares`` of the values and ``error_squares``
        of the roundings, both in units of ``4**exponent``.
    """
    row = None if format is None else find_format(format)
    scale_exponent = _exponent(_magnitude(jnp.asarray(scale, jnp.float32)))
    parts = [part.ravel() for part in (data, rounded) if part is not None]
    counts, exponent, amax, squares = _over_blocks(row, scale_exponent, parts)
    return {
        "counts": jnp.sum(counts, axis=0),
        "scale_exponent": scale_exponent,
        "exponent": jnp.max(exponent) + scale_exponent,
        "size": jnp.int32(data.size),
        "overflow": jnp.sum(counts[_OVERFLOW]),
        "underflow": jnp.sum(counts[_UNDERFLOW]),
        "amax": _times_power_of_two(jnp.max(amax), scale_exponent),
        "sum_squares": _in_one_unit(squares[0], exponent),
        "error_squares": _in_one_unit(squares[1], exponent),
    }


def _over_blocks(row, scale_exponent, parts):
    """What ``_of_block`` returns, stacked over blocks; the counts are summed."""
    size = parts[0].size
    length = min(size, BLOCK)

    def of_block(start: jax.Array):
        inside = jnp.minimum(start, size - length)  # the last block overlaps the one before
        block = [lax.dynamic_slice(part, (inside,), (length,)) for part in parts]
        return _of_block(row, scale_exponent, start - inside, *block)

    starts = np.arange(0, max(size, 1), BLOCK, dtype=np.int32)
    counts, *rest = lax.map(of_block, starts)
    return jnp.sum(counts, axis=0), *rest


@partial(jax.jit, static_argnums=0)
def _of_block(row, scale_exponent, first, data, rounded=None):
    """Counts [fate, slot], exponent, amax and two squares of a block's data from ``first`` on.

    Compiled once for all tensors of a dtype. Blocks because temporaries as large as the tensor
    cost ten times the arithmetic, in page faults.
    """
    if rounded is None:
        rounded = data if row is None else saturating_cast(data, row)
    x, q = _float32(data), _float32(rounded)
    fresh = lax.iota(jnp.int32, x.size) >= first
    counts = _counts(_magnitude(x), scale_exponent, _fate(x, q, row), fresh)
    finite = jnp.where(jnp.isfinite(x) & fresh, x, np.float32(0))
    error = jnp.where(jnp.isfinite(q - x) & fresh, q - x, np.float32(0))
    amax = jnp.max(jnp.abs(finite), initial=0)
    exponent = jnp.clip(_exponent(_magnitude(amax)), -126, 126)
    shrink = _power_of_two(-exponent)
    squares = [jnp.sum(jnp.square(summand * shrink)) for summand in (finite, error)]
    return counts, exponent, amax, squares


def merge(stacked: Statistics) -> Statistics:
    """Statistics of the whole from those of its parts, stacked along the first axis.

    ``scale_exponent`` is the largest of the parts'.
    """
    exponent = stacked["exponent"]
    added = {name: jnp.sum(stacked[name], axis=0) for name in _ADDED}
    squares = {name: _in_one_unit(stacked[name], exponent) for name in _SQUARES}
    largest = {name: jnp.max(stacked[name], axis=0) for name in ("amax", "scale_exponent")}
    return {**added, **squares, **largest, "exponent": jnp.max(exponent, axis=0)}


def add(first: Statistics, second: Statistics) -> Statistics:
    """Statistics of two tensors taken together."""
    return merge(jax.tree.map(lambda *parts: jnp.stack(parts), first, second))


def summarise(stats: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The logged figures of one tensor, all finite.

    ``scale``, ``rms`` and ``amax`` of the values; ``underflow`` and ``overflow`` as shares of all
    elements; ``snr_db`` = 10 log10(Σ value² / Σ error²), at most ``SNR_CAP_DB`` in size.
    """
    size = max(int(stats["size"]), 1)
    counted = size - int(stats["counts"][bins.INF]) - int(stats["counts"][bins.NAN])
    mean_square = float(stats["sum_squares"]) / max(counted, 1)
    return {
        "scale": 2.0 ** int(stats["scale_exponent"]),
        "rms": math.sqrt(mean_square) * 2.0 ** int(stats["exponent"]),
        "amax": float(stats["amax"]),
        "underflow": int(stats["underflow"]) / size,
        "overflow": int(stats["overflow"]) / size,
        "snr_db": _decibels(float(stats["sum_squares"]), float(stats["error_squares"])),
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return SNR_CAP_DB
    cap = 10 ** (SNR_CAP_DB / 10)
    return 10 * math.log10(min(max(signal / noise, 1 / cap), cap))


def _counts(magnitude, scale_exponent, fate, fresh) -> jax.Array:
    """Counts [fate, slot] in one scatter of ones.

    On a CPU that takes 3 ns an element, where comparing with every slot takes 30, and a reduction
    for each fate would double it.
    """
    binade = jnp.clip(_exponent(magnitude) + scale_exponent, bins.LOWEST, bins.HIGHEST)
    slot = binade - bins.LOWEST + bins.FIRST
    slot = jnp.where(magnitude == 0, bins.ZERO, slot)
    slot = jnp.where(magnitude == _INF, bins.INF, slot)
    slot = jnp.where(magnitude > _INF, bins.NAN, slot)
    flat = (slot + bins.SLOTS * fate).ravel()
    counts = jnp.zeros(3 * bins.SLOTS, jnp.int32)
    counts = counts.at[flat].add(fresh.astype(jnp.int32), mode="promise_in_bounds")
    return counts.reshape(3, bins.SLOTS)


def _fate(x: jax.Array, q: jax.Array, row: Format | None) -> jax.Array:
    """What became of each element: 0 held, or one of the two losses."""
    overflows = jnp.isinf(x) | jnp.isinf(q)
    if row is not None:
        low = row.min if row.signed else -math.inf
        overflows = overflows | (x > row.max) | (x < low)
    underflows = (_magnitude(q) == 0) & (_magnitude(x) != 0)
    return jnp.where(overflows, _OVERFLOW, jnp.where(underflows, _UNDERFLOW, 0))


def _in_one_unit(squares: jax.Array, exponent: jax.Array) -> jax.Array:
    """The sum over the first axis, in units of the largest exponent."""
    below = jnp.maximum(exponent - jnp.max(exponent, axis=0), -63)
    return jnp.sum(squares * _power_of_two(2 * below), axis=0)


def _float32(x: jax.Array) -> jax.Array:
    return widen(x) if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)


def _magnitude(x: jax.Array) -> jax.Array:
    """The encoding of |x|, an integer that grows with |x|."""
    return lax.bitcast_convert_type(x, jnp.int32) & _MAGNITUDE


def _exponent(magnitude: jax.Array) -> jax.Array:
    """⌊log2 |x|⌋ of a finite non-zero float32; its subnormals are integers times 2^-149."""
    below = (_magnitude(magnitude.astype(jnp.float32)) >> 23) - 127 - 149
    normal = (magnitude >> 23) - 127
    return jnp.where(normal == -127, below, normal)


def _times_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    scaled = x * _power_of_two(jnp.clip(exponent, -126, 127))
    return jnp.minimum(scaled, jnp.finfo(jnp.float32).max)


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent in float32, for exponents from -126 to 127."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
