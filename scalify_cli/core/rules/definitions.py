"""Functions of JAX that propagate scales better when they are written in another way.

A function that guards itself against overflow chooses between its arguments times 1 and times
powers of two, which no one scale fits; scales guard it already.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.extend import core as jex

_JAX = Path(jax.__file__).parent


def hypot(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The hypotenuse r, x / r and y / r."""
    longer, shorter = jnp.maximum(abs(x), abs(y)), jnp.minimum(abs(x), abs(y))
    slope = jnp.where(shorter == 0, 0, shorter / longer)
    length = longer * jnp.sqrt(1 + slope * slope)
    length = jnp.where(jnp.isinf(x) | jnp.isinf(y), jnp.inf, length)
    return length, x / length, y / length


def rewritten(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """The program, or another that computes the same."""
    info = closed.jaxpr.debug_info
    if info.func_name not in FUNCTIONS or _JAX not in Path(info.func_filename or "").parents:
        return closed
    function, results = FUNCTIONS[info.func_name]
    same = len(closed.out_avals) == results
    return jax.make_jaxpr(function)(*closed.in_avals) if same else closed


FUNCTIONS = {"_hypot": (hypot, 3)}
"""With the number of their results: a derivative of a function may bear its name."""
