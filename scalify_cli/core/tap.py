"""A named value in a program, for ``observe`` to read; it costs nothing to anyone else."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching

from scalify_cli.core.ruled_primitive import marker
from scalify_cli.core.storage import promote, stored
from scalify_cli.core.values import Scaled
from scalify_cli.scales.powers import MIN_EXPONENT


def tap(x: Any, name: str, rounded: Any = None, format: str = "") -> Any:
    """``rounded`` (x if not given), with x made visible to ``observe`` under a name.

    Args:
        x: the values before rounding.
        name: such as ``block/attention/qkv.activation``.
        rounded: the values after rounding to ``format``.
        format: the name of a number format; empty when nothing was rounded.
    """
    rounded = x if rounded is None else rounded
    return tap_p.bind(rounded, x, np.int32(0), name=name, format=format)


def _rule(equation: Any, rounded: Any, x: Any, exponent: Any) -> list[Any]:
    rounded, x = stored(promote(rounded)), stored(promote(x))
    exponent = MIN_EXPONENT if x.scale is None else x.scale.exponent()
    data = tap_p.bind(rounded.data, x.data, jnp.asarray(exponent, jnp.int32), **equation.params)
    return [Scaled(data, rounded.scale)]


tap_p = marker("tap", _rule)
ad.defjvp(tap_p, lambda tangent, *_, **__: tangent, None, None)
batching.defbroadcasting(tap_p)
