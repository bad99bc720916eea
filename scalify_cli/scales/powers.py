"""Powers of two in float32, by their bits: exact, and a few integer operations each."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

BIAS, _MANTISSA_BITS = 127, 23
MIN_EXPONENT, MAX_EXPONENT = -126, 126
"""Of a scale whose reciprocal is a normal number too."""
ZEROS = -80
"""log2 of the scale of zeros that are measured: XLA multiplies the factors of a product first, and
zero times infinity is no zero."""


def inverse_exp2(code: Any) -> Any:
    """2 over the float32 with an exponent code: by a division, which XLA repeats in no reader.

    The code of x is ``BIAS + 1 - x`` for ``2**x``, which stays within float32's normal numbers:
    0 would make NaN of the infinities that it multiplies.
    """
    code = lax.clamp(np.int32(1), code, np.int32(2 * BIAS))
    inverse = lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)
    return lax.div(jnp.full_like(inverse, 2), inverse)


def inverse_power(size: Any, least: int) -> Any:
    """1 over the power of two at or below a float32, held to 2**least and 2**126, that of zeros to
    2**ZEROS; by a division too."""
    lowest = lax.select(size > 0, np.float32(2.0**least), np.float32(2.0 ** max(least, ZEROS)))
    size = lax.clamp(lowest, size, np.float32(2.0**MAX_EXPONENT))
    exponent = lax.bitcast_convert_type(size, jnp.int32) & np.int32(0xFF << _MANTISSA_BITS)
    power = lax.bitcast_convert_type(exponent, jnp.float32)
    return lax.div(jnp.full_like(power, 1), power)


def exp2(exponent: Any) -> Any:
    """2**exponent as float32, exact within the normal numbers and the nearest of them outside."""
    return inverse_exp2(np.int32(BIAS + 1) - exponent)


def exponent_of_power(x: Any) -> Any:
    """log2 of float32 powers of two, from their exponent bits."""
    bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    return lax.sub(lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)), np.int32(BIAS))


def log2_floor(x: Any) -> Any:
    """Exponent of the power of two at or below |x| (float32); the smallest for 0, inf and NaN."""
    exponent = exponent_of_power(lax.abs(jnp.asarray(x, jnp.float32)))  # rounds down
    finite = lax.le(exponent, np.int32(BIAS))
    exponent = lax.select(finite, exponent, lax.full_like(exponent, MIN_EXPONENT))
    return lax.clamp(np.int32(MIN_EXPONENT), exponent, np.int32(MAX_EXPONENT))


def floor_log2(number: float) -> int:
    """The same of a positive number that is known while tracing, without bounds."""
    return math.frexp(number)[1] - 1
