"""Arithmetic that rounds to the grid of a format and stays in the array's own dtype.

No value ever leaves float32, so no compiler can mistake the rounding for a round trip to delete.
Formats with a narrow exponent are rounded by adding and taking away the power of two whose unit
in the last place is the grid's step at each element (a constant would be folded away). Formats
that share float32's exponent range are rounded on the encoding, exact even where the processor
flushes float32 subnormals to zero.

For x in ``[format.min, format.max]`` the nearest rounding returns the q on the grid that
minimises |x - q|, and of two such the one with an even significand; outside, the bound it passed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.formats.format import Format
from scalify_cli.formats.table import FORMATS, find_format

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_EXPONENT = np.uint32(0x7F800000)
CONTAINERS = {
    name: FORMATS[row]
    for name, row in {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.items()
}


def rounded(x: jax.Array, format: Format, rounding: str, bits: jax.Array | None) -> jax.Array:
    """What the rounding primitive computes."""
    return _narrow(_round_float32(widen(x), format, rounding, bits, x.dtype), x.dtype)


def round_to_grid(x: jax.Array, format: str | Format) -> jax.Array:
    """``saturating_cast`` to the nearest, for float32 only and without a gradient of its own.

    The form to lower a rounding primitive to: nine elementwise operations that fuse.
    """
    return _round_float32(x, find_format(format), "nearest", None, x.dtype)


def bounds(format: Format, dtype: jnp.dtype) -> tuple[float, float]:
    """The lowest and largest values that the format and the dtype both hold."""
    info = jnp.finfo(dtype)
    mantissa_bits = min(format.mantissa_bits, info.nmant)
    high = _truncate(min(format.max, float(info.max)), mantissa_bits)
    if format.kind == "power":
        return max(format.min, float(info.smallest_subnormal)), high
    return (format.min if format.kind == "integer" else -high), high


def _truncate(value: float, mantissa_bits: int) -> float:
    fraction, exponent = np.frexp(value)
    steps = 2.0 ** (mantissa_bits + 1)
    return float(np.ldexp(np.floor(fraction * steps) / steps, exponent))


def widen(x: jax.Array) -> jax.Array:
    """To float32 exactly; bfloat16 by its bits, as processors convert its subnormals to zero."""
    if x.dtype == jnp.bfloat16:
        return _float(lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16)
    return x.astype(jnp.float32)


def _narrow(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if dtype == jnp.bfloat16:
        return lax.bitcast_convert_type((_bits(x) >> 16).astype(jnp.uint16), jnp.bfloat16)
    return x.astype(dtype)


def _round_float32(x, format, rounding, bits, dtype):
    """Round float32 ``x``, whose values are those of ``dtype``, to the values of both."""
    low, high = bounds(format, dtype)
    held = _holds(format, CONTAINERS[jnp.dtype(dtype).name])
    if format.exponent_bits == 8:
        x = _clamp_encoding(x, low, high)
        return x if held else _round_encoding(x, format, rounding, bits)
    x = lax.clamp(np.float32(low), x, np.float32(high))
    if held:
        return x
    return _signed_like(_round_magnitude(jnp.abs(x), format, rounding, bits), x, format)


def _holds(format: Format, other: Format) -> bool:
    """Whether every value of ``other`` within the bounds is a value of ``format``."""
    finer = format.mantissa_bits >= other.mantissa_bits
    return finer and format.min_normal <= other.min_normal


def _clamp_encoding(x, low, high):
    """``lax.clamp`` that does not flush the subnormals of float32: their order is their bits'."""
    code = lax.bitcast_convert_type(x, jnp.int32)
    if low > 0:  # negative values are negative integers
        clamped = lax.clamp(_int_bits(low), code, _int_bits(high))
    else:
        clamped = jnp.minimum(code & _MAGNITUDE, _int_bits(high)) | (code & ~_MAGNITUDE)
    return jnp.where(jnp.isnan(x), x, lax.bitcast_convert_type(clamped, jnp.float32))


def _round_encoding(x, format, rounding, bits):
    """For formats with the exponents of float32: round the mantissa field and let it carry."""
    code = _bits(x)
    drop = np.uint32(23 - format.mantissa_bits)
    if format.kind == "power":  # 2^-127 is a subnormal of float32: its one bit is lower
        drop = jnp.where(code < 0x00800000, drop - 1, drop)
    step = np.uint32(1) << drop
    if rounding == "nearest":
        odd = (code >> drop) & 1 if format.mantissa_bits else np.uint32(1)
        code = code + (step >> 1) - 1 + odd
    elif rounding == "stochastic":
        code = code + (bits >> (32 - drop))
    return jnp.where(jnp.isnan(x), x, _float(code & ~(step - 1)))


def _round_magnitude(x, format, rounding, bits):
    """For formats with a narrower exponent: ``x`` is non-negative and within the bounds."""
    power = _float(_bits(x) & _EXPONENT)  # 2^⌊log2 x⌋
    power = jnp.maximum(power, np.float32(format.min_normal))
    shift = power * np.float32(2.0 ** (23 - format.mantissa_bits))
    nearest = (x + shift) - shift
    if rounding == "nearest":
        return nearest
    step = power * np.float32(2.0**-format.mantissa_bits)
    lower = nearest - jnp.where(nearest > x, step, np.float32(0))
    if rounding == "toward_zero":
        return lower
    dice = (bits >> 8).astype(jnp.int32).astype(jnp.float32) * (step * np.float32(2.0**-24))
    return lower + jnp.where(dice < x - lower, step, np.float32(0))


def _signed_like(magnitude, x, format):
    signed = _float(_bits(magnitude) | (_bits(x) & _SIGN))
    if format.has_negative_zero:
        return signed
    return jnp.where(magnitude == 0, np.float32(0), signed)


def _int_bits(value: float) -> np.int32:
    return np.float32(value).view(np.int32)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _float(code: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(code, jnp.float32)
