"""What scales are made of other scales, beside products and powers."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax


class Rule(NamedTuple):
    """How exponents make another one.

    ``of_rows`` computes it at run time: of a row for each operand, with a column for each result.
    ``of_ends`` bounds it while tracing: of the least that each operand may be and ``min``, or of
    the most and ``max``.
    """

    of_rows: Callable
    of_ends: Callable


RULES = {
    "maximum": Rule(
        lambda rows: lax.reduce_max(rows, (0,)),
        lambda ends, _: max(ends),
    ),
    "clamp": Rule(
        lambda rows: lax.clamp(rows[1], rows[0], rows[2]),
        lambda ends, _: sorted(ends)[1],
    ),
    "select": Rule(
        lambda rows: lax.select(lax.eq(rows[0], np.int32(0)), rows[1], rows[2]),
        lambda ends, most: most(ends[1:]),
    ),
    "root 2": Rule(
        lambda rows: lax.shift_right_arithmetic(rows[0], lax.full_like(rows[0], 1)),
        lambda ends, _: ends[0] // 2,
    ),
    "root 3": Rule(
        lambda rows: jnp.floor_divide(rows[0], np.int32(3)),
        lambda ends, _: ends[0] // 3,
    ),
}
