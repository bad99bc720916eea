"""The saturating cast, as users call it: one equation of the rounding primitive."""

import jax
import jax.numpy as jnp

from scalify_cli.errors import UserError
from scalify_cli.formats.format import Format
from scalify_cli.formats.primitive import cast_p
from scalify_cli.formats.rounding import CONTAINERS
from scalify_cli.formats.table import find_format

ROUNDINGS = ("nearest", "stochastic", "toward_zero")


def saturating_cast(
    x: jax.Array,
    format: str | Format,
    rounding: str = "nearest",
    key: jax.Array | None = None,
) -> jax.Array:
    """The values of ``x`` as ``format`` would hold them, in the dtype of ``x``.

    Values beyond the largest (infinities too) become the largest, NaN stays NaN, subnormals are
    exact, minus zero is kept where the format has one. A format at least as wide as the dtype
    only saturates. Where the dtype cannot hold the format's bound, the bound is the outermost
    value that both hold. Unsigned e8m0 sends zero and negatives to its smallest value.

    Differentiable as a cast is: the tangent passes within the bounds and is zero beyond them.

    Args:
        x: float32, bfloat16 or float16 of any shape.
        format: a row of ``FORMATS`` or its name.
        rounding: ``nearest`` (ties to even), ``stochastic`` (unbiased within the bounds) or
            ``toward_zero``.
        key: a ``jax.random`` key, needed by ``stochastic`` and unused by the others.

    Raises:
        UserError: unknown format or rounding, another dtype, or no key to be stochastic with.
    """
    x = jnp.asarray(x)
    if rounding not in ROUNDINGS:
        raise UserError(f"unknown rounding {rounding!r}.", f"roundings: {' '.join(ROUNDINGS)}")
    if rounding != "stochastic":
        return _cast(_checked(x), find_format(format), rounding, None)
    if key is None:
        raise UserError("stochastic rounding needs random bits.", "pass key=jax.random.key(0)")
    return stochastic_round(x, format, jax.random.bits(key, x.shape, jnp.uint32))


def stochastic_round(x: jax.Array, format: str | Format, bits: jax.Array) -> jax.Array:
    """Round up or down at random, in proportion to the nearness, given uint32 ``bits`` like ``x``.

    Of the two neighbours of x on the grid, the outer is taken with probability equal to the
    fraction of the step that x has covered, rounded up to a multiple of 2^-24. That is exact for
    every x in the format's normal range.
    """
    return _cast(_checked(x), find_format(format), "stochastic", bits)


def _checked(x: jax.Array) -> jax.Array:
    if x.dtype.name not in CONTAINERS:
        raise UserError(
            f"cannot round {x.dtype.name} to a format.", "cast to float32, bfloat16 or float16"
        )
    return x


def _cast(x: jax.Array, format: Format, rounding: str, bits: jax.Array | None) -> jax.Array:
    return cast_p.bind(*(x,) if bits is None else (x, bits), format=format, rounding=rounding)
