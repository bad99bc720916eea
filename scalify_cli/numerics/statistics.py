"""What tensors' values look like, and what rounding did to them, in a handful of numbers.

On the device: counts per binade, maxima and sums of several tensors from one piece of code (a
``Pool``), so that looking at one more costs next to nothing to compile. It can leave ``jit`` and be
stacked by ``scan``. On the host, in float64: the figures that are logged.

Infinities and NaNs are counted and take no part in sums and maxima, so every figure is finite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.formats import find_format, widen
from scalify_cli.jaxprs.meshes import replicated
from scalify_cli.numerics import bins

SNR_CAP_DB = 200.0
"""What a rounding without any error is reported as; float32 itself has about 150."""

ROW = 1 << 12
"""Elements that share a maximum and sums; tensors of a pool are filled up to whole rows."""

BLOCK = 64 * ROW
"""Elements looked at together: few enough to stay in a core's cache."""

Statistics = dict[str, Any]

_MAGNITUDE, _INF, _NORMAL = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(0x00800000)
_HELD, _OVERFLOW, _UNDERFLOW = range(3)
_BINADES = np.arange(-149, 128)
_SLOTS = 1 + _BINADES.size + 2  # zero, float32's binades, infinity, NaN


class Tap(NamedTuple):
    """A tensor to look at: ``data * 2**exponent``, and ``data`` as ``format`` rounded it.

    Both are float arrays of one shape; without a format nothing but infinities overflows.
    """

    name: str
    data: jax.Array
    rounded: jax.Array
    exponent: jax.Array | int = 0
    format: str = ""


@dataclass(frozen=True)
class Pool:
    """What leaves the device about a few tensors; all may have leading axes of iterations.

    ``counts`` int32 [tensors * 3 fates * 280 slots of the data] and ``exponents`` int32 [tensors];
    ``data`` and ``errors`` (``rounded - data``) are pairs of float32 [blocks, rows], a row being
    4096 elements of one tensor: amax, and the sum of squares of elements times ``_shrink(amax)``.
    """

    counts: Any
    exponents: Any
    data: Any
    errors: Any
    names: tuple[str, ...]
    sizes: tuple[int, ...]


jax.tree_util.register_dataclass(
    Pool, ["counts", "exponents", "data", "errors"], ["names", "sizes"]
)


def measure(taps: Sequence[Tap]) -> Pool:
    """Look at tensors of one dtype: several are copied together, a large one is read in place."""
    sizes = tuple(tap.data.size for tap in taps)
    starts, owners = _layout(sizes)
    parts = _joined([tap.data for tap in taps]), _joined([tap.rounded for tap in taps])
    inside = np.minimum(starts, parts[0].size - owners.shape[1] * ROW)
    ranges = np.array([_range(tap.format) for tap in taps], np.float32)[owners]

    def of_block(counts: jax.Array, block: Any) -> Any:
        start, stale, owner, low, high = block
        x, q = (_rows(part, start, stale, owner.size) for part in parts)
        slot = _slot(x) + _SLOTS * (_fate(x, q, low, high) + 3 * owner)
        return counts.at[slot.ravel()].add(1, mode="promise_in_bounds"), (_sums(x), _sums(q - x))

    zeros = jnp.zeros(len(taps) * 3 * _SLOTS, jnp.int32)
    by_row = (x[..., None] for x in (owners, ranges[..., 0], ranges[..., 1]))
    counts, (data, errors) = lax.scan(of_block, zeros, (inside, starts - inside, *by_row))
    exponents = jnp.stack([jnp.asarray(tap.exponent, jnp.int32) for tap in taps])
    names = tuple(tap.name for tap in taps)
    return Pool(counts, exponents, data, errors, names, sizes)


def statistics(pools: Sequence[Pool], name: str) -> Statistics:
    """All that was measured under a name, taken together; on the host.

    Returns:
        ``counts`` int64 [131] (slots of ``bins``), ``scale_exponent`` (the largest), ``size``,
        ``overflow`` (elements beyond the format's range or infinite), ``underflow`` (non-zero,
        rounded to zero); ``amax`` and ``sum_squares`` of the values, ``error_squares`` of the
        roundings.

    Raises:
        KeyError: nothing has that name.
    """
    places = [(pool, i) for pool in pools for i, own in enumerate(pool.names) if own == name]
    if not places:
        raise KeyError(name)
    parts = [_of_tensor(*place) for place in places]
    added = {key: sum(part[key] for part in parts) for key in parts[0]}
    return added | {key: max(part[key] for part in parts) for key in ("amax", "scale_exponent")}


def summarise(stats: Mapping[str, Any]) -> dict[str, float]:
    """The logged figures of one tensor, all finite.

    ``scale``, ``rms`` and ``amax`` of the values; ``underflow`` and ``overflow`` as shares of all
    elements; ``snr_db`` = 10 log10(Σ value² / Σ error²), at most ``SNR_CAP_DB`` in size.
    """
    size = max(stats["size"], 1)
    counted = size - int(stats["counts"][bins.INF]) - int(stats["counts"][bins.NAN])
    return {
        "scale": 2.0 ** stats["scale_exponent"],
        "rms": math.sqrt(stats["sum_squares"] / max(counted, 1)),
        "amax": stats["amax"],
        "underflow": stats["underflow"] / size,
        "overflow": stats["overflow"] / size,
        "snr_db": _decibels(stats["sum_squares"], stats["error_squares"]),
    }


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return SNR_CAP_DB
    cap = 10 ** (SNR_CAP_DB / 10)
    return 10 * math.log10(min(max(signal / noise, 1 / cap), cap))


def _layout(sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where each block starts, int32 [blocks], and whose its rows are, int32 [blocks, rows].

    The last block starts early enough to be whole; what it repeats counts as zeros.
    """
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), [_row_count(size) for size in sizes])
    rows = min(owner.size, BLOCK // ROW)
    first = np.arange(0, owner.size, rows, dtype=np.int32)
    return first * ROW, owner[np.minimum(first, owner.size - rows)[:, None] + np.arange(rows)]


def _row_count(size: int) -> int:
    return max(1, -(-size // ROW))


def _joined(tensors: Sequence[jax.Array]) -> jax.Array:
    """One after the other, each filled up with zeros to whole rows."""
    tensors = list(map(replicated, tensors))
    if len(tensors) == 1 and tensors[0].size >= BLOCK:
        return tensors[0].ravel()
    return jnp.concatenate(
        [jnp.pad(x.ravel(), (0, _row_count(x.size) * ROW - x.size)) for x in tensors]
    )


def _range(format: str) -> tuple[float, float]:
    if not format:
        return float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    row = find_format(format)
    return row.min if row.signed else -math.inf, row.max


def _rows(part: jax.Array, start: jax.Array, stale: jax.Array, count: int) -> jax.Array:
    """Elements from ``start`` on in float32 [count, ROW], the first ``stale`` of them as zeros."""
    block = lax.dynamic_slice(part, (start,), (count * ROW,))
    block = widen(block) if block.dtype == jnp.bfloat16 else block.astype(jnp.float32)
    return jnp.where(lax.iota(jnp.int32, block.size) >= stale, block, 0).reshape(count, ROW)


def _magnitude(x: jax.Array) -> jax.Array:
    """The encoding of |x|, an integer that grows with |x|."""
    return lax.bitcast_convert_type(x, jnp.int32) & _MAGNITUDE


def _slot(x: jax.Array) -> jax.Array:
    """0 for zero, 1 + k for 2^(k - 149) <= |x| < 2^(k - 148), then infinity and NaN."""
    magnitude = _magnitude(x)
    integer = magnitude.astype(jnp.float32)  # subnormals are integers times 2^-149
    subnormal = jnp.maximum((_magnitude(integer) >> 23) - 126, 0)
    slot = jnp.where(magnitude < _NORMAL, subnormal, (magnitude >> 23) + 23)
    return slot + (magnitude > _INF).astype(jnp.int32)


def _fate(x: jax.Array, q: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """What became of each element: held, or one of the two losses."""
    overflows = jnp.isinf(q) | (x > high) | (x < low)
    underflows = (_magnitude(q) == 0) & (_magnitude(x) != 0)
    return jnp.where(overflows, _OVERFLOW, jnp.where(underflows, _UNDERFLOW, _HELD))


def _sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest magnitude and the sum of squares of each row.

    Rows are brought near 1 first: the squares of Adam's second moments do not fit in float32.
    """
    amax = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), axis=1)
    near_one = jnp.where(jnp.isfinite(x), x * _shrink(amax)[:, None], 0)
    return amax, jnp.sum(jnp.square(near_one), axis=1)


def _shrink(amax: Any) -> Any:
    """The power of two that brings a float32 between 1 and 4, if one does."""
    return (0x7F000000 - (amax.view(np.int32) & _INF)).clip(_NORMAL).view(np.float32)


def _of_tensor(pool: Pool, index: int) -> Statistics:
    """One tensor of a pool, over all iterations."""
    owned, tensors, size = _layout(pool.sizes)[1] == index, len(pool.sizes), pool.sizes[index]
    exponents = np.asarray(pool.exponents).reshape(-1, tensors)[:, index]
    counts = np.asarray(pool.counts, np.int64).reshape(-1, tensors, 3, _SLOTS)[:, index]
    counts[:, _HELD, 0] -= np.sum(owned) * ROW - size
    (amax, sums), (most, errors) = (
        [np.asarray(x).reshape(-1, *owned.shape)[:, owned] for x in pair]
        for pair in (pool.data, pool.errors)
    )
    scale = np.ldexp(1.0, exponents)[:, None]
    return {
        "counts": _binned(np.sum(counts, axis=1), exponents),
        "scale_exponent": int(np.max(exponents)),
        "size": len(counts) * size,
        "overflow": int(np.sum(counts[:, _OVERFLOW])),
        "underflow": int(np.sum(counts[:, _UNDERFLOW])),
        "amax": float(np.max(amax * scale)),
        "sum_squares": float(np.sum(sums * np.square(scale / _shrink(amax)))),
        "error_squares": float(np.sum(errors * np.square(scale / _shrink(most)))),
    }


def _binned(counts: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Counts in the slots of ``bins``, from those of the data and the exponents of its scale."""
    binade = np.clip(_BINADES + exponents[:, None], bins.LOWEST, bins.HIGHEST)
    binned = np.zeros(bins.SLOTS, np.int64)
    binned[[bins.ZERO, bins.INF, bins.NAN]] = np.sum(counts[:, [0, -2, -1]], axis=0)
    np.add.at(binned, binade - bins.LOWEST + bins.FIRST, counts[:, 1:-2])
    return binned
