"""A number format is a row of six facts; every other property follows from them."""

from dataclasses import dataclass

import numpy as np

KINDS = ("ieee", "fn", "fnuz", "finite", "integer", "power")


@dataclass(frozen=True)
class Format:
    """A binary number format of at most 32 bits.

    Args:
        name: key in ``FORMATS``.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the mantissa field, without the implicit bit.
        bias: exponent bias. Integers are fixed point: all subnormal, with a step of one.
        kind: what the special codes are. ``ieee``: infinities and NaNs fill the last binade.
            ``fn``: one NaN per sign, no infinity. ``fnuz``: one NaN, in the place of minus zero.
            ``finite``: none. ``integer``: two's complement. ``power``: unsigned powers of two
            and one NaN, no zero.
        dtype: the container that holds it, None where numpy knows none.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    kind: str
    dtype: np.dtype | None

    @property
    def signed(self) -> bool:
        return self.kind != "power"

    @property
    def has_inf(self) -> bool:
        return self.kind == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.kind not in ("finite", "integer")

    @property
    def has_negative_zero(self) -> bool:
        return self.kind in ("ieee", "fn", "finite")

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def max(self) -> float:
        """The largest finite value."""
        if self.kind == "integer":
            return 2.0**self.mantissa_bits - 1
        top = 2**self.exponent_bits - 1 - self.bias
        if self.kind == "power":
            return 2.0 ** (top - 1)
        if self.kind == "ieee":
            top -= 1
        steps_below = 2 if self.kind == "fn" else 1
        return 2.0**top * (2.0 - steps_below * 2.0**-self.mantissa_bits)

    @property
    def min(self) -> float:
        """The lowest finite value: ``-max``, but for two's complement and unsigned formats."""
        if self.kind == "power":
            return self.min_normal
        return -self.max - (self.kind == "integer")

    @property
    def min_normal(self) -> float:
        """The smallest positive value at full precision."""
        return 2.0 ** (-self.bias if self.kind == "power" else 1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        """The smallest positive value."""
        return self.min_normal * 2.0**-self.mantissa_bits
