"""Powers of two in float32, by their bits: exact, and a few integer operations each."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

BIAS, _MANTISSA_BITS = 127, 23
_INFINITY = 255 << _MANTISSA_BITS
MIN_EXPONENT, MAX_EXPONENT = -126, 127
SMALL_EXPONENT = -40  # of zeros in a wide dtype: far below others, but 1/0 crowds out none


def exp2(exponent: Any) -> Any:
    """2**exponent as float32, by writing the exponent bits: exact within the normal numbers.

    Below them it is the smallest: 0 would make NaN of the infinities that it multiplies.
    """
    code = lax.clamp(np.int32(1), exponent + np.int32(BIAS), np.int32(MAX_EXPONENT + BIAS))
    return lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)


def exp2_once(exponent: Any) -> Any:
    """``exp2`` by a division: XLA does not repeat it in every loop that reads it."""
    return divided(np.float32(2), np.int32(BIAS + 1) - exponent)


def divided(dividend: Any, code: Any) -> Any:
    """``dividend`` over the float32 of an exponent code, limited so that 2/2**x is ``exp2(x)``."""
    code = lax.clamp(np.int32(1), code, np.int32(2 * BIAS))
    inverse = lax.bitcast_convert_type(lax.shift_left(code, np.int32(_MANTISSA_BITS)), jnp.float32)
    return lax.div(jnp.broadcast_to(dividend, code.shape), inverse)


def exponent_of_power(x: Any) -> Any:
    """log2 of float32 powers of two, from their exponent bits."""
    bits = lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    return lax.sub(lax.shift_right_logical(bits, np.int32(_MANTISSA_BITS)), np.int32(BIAS))


def clip(exponent: Any, low: int, high: int) -> Any:
    """An int32 scalar within bounds, in two operations."""
    return lax.min(lax.max(jnp.int32(exponent), np.int32(low)), np.int32(high))


def power_below(x: Any) -> Any:
    """The power of two at or below |x| (float32), the smallest for zero, infinities and NaN."""
    infinity = np.int32(_INFINITY)
    bits = lax.bitwise_and(lax.bitcast_convert_type(x, jnp.int32), infinity)
    bits = lax.select(lax.eq(bits, infinity), lax.full_like(bits, 0), bits)
    return lax.max(lax.bitcast_convert_type(bits, jnp.float32), np.float32(2.0**MIN_EXPONENT))


def log2_floor(x: Any) -> Any:
    """Exponent of the power of two at or below |x| (float32); zero gives the smallest scale."""
    exponent = exponent_of_power(lax.abs(jnp.asarray(x, jnp.float32)))  # rounds down
    return clip(exponent, MIN_EXPONENT, MAX_EXPONENT)
