"""``rescale``: choose a scale anew from the data; outside ``scalify`` it does nothing.

Scalify, section 3.3 (Algorithm 4). Static propagation drifts in the backward pass, so a few points
(the backward of norms, the gradients before the optimizer) measure their data instead.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching

from scalify_cli.core.dtypes import cast, register_dtype, wide_dtype
from scalify_cli.core.ruled_primitive import marker
from scalify_cli.core.values import Scaled
from scalify_cli.scales.powers import MAX_EXPONENT, MIN_EXPONENT, exp2, log2_floor
from scalify_cli.scales.scale import Scale

NORMS = {
    "l2": lambda x: jnp.sqrt(jnp.mean(jnp.square(x))),
    "l1": lambda x: jnp.mean(jnp.abs(x)),
    "max": lambda x: jnp.max(jnp.abs(x), initial=0),
}


def rescale(x: Any, norm: str = "l2", headroom: int = 0) -> Any:
    """The same values, under ``scalify`` with a scale that brings the data's norm into [1, 2).

    Args:
        x: an array, or a pytree of arrays.
        norm: ``l2`` (root mean square), ``l1`` (mean magnitude) or ``max``.
        headroom: binades to lift the data above that, for a format's full range.

    Raises:
        ValueError: the norm is unknown.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; choose from {', '.join(NORMS)}.")
    return jax.tree.map(lambda y: rescale_p.bind(y, norm=norm, headroom=headroom), x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def rescale_cotangent(x: Any, norm: str = "l2") -> Any:
    """x itself; its cotangent is rescaled on the way back."""
    return x


rescale_cotangent.defvjp(
    lambda x, norm: (x, None), lambda norm, _, cotangent: (rescale(cotangent, norm),)
)


def _rule(equation: Any, x: Any) -> list[Any]:
    if x.scale is None:
        return [x]
    wide = cast(x.data, wide_dtype(x.dtype))
    size = NORMS[equation.params["norm"]](wide)
    change = jnp.clip(log2_floor(size) - equation.params["headroom"], MIN_EXPONENT, -MIN_EXPONENT)
    change = jnp.where(jnp.isfinite(size) & (size > 0), change, 0)
    moved = jnp.where(size == 0, MIN_EXPONENT - x.scale.exponent(), change)
    scale = (x.scale * Scale.unknown(moved, 2 * MAX_EXPONENT)).of_degree(1)
    return [Scaled(cast(wide * exp2(-change), register_dtype(x.dtype)), scale, dtype=x.dtype)]


rescale_p = marker("rescale", _rule)
ad.defjvp(rescale_p, lambda tangent, x, **_: tangent)
batching.defvectorized(rescale_p)
