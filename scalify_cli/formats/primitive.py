"""Rounding as a primitive, so that transforms see one equation and not its bit arithmetic.

Under ``scalify`` it rounds the *data* and leaves the scale alone: that is what the format sees.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import ad, batching, mlir

from scalify_cli.formats import cast

cast_p = jex.Primitive("saturating_cast")


def _function(x: Any, *bits: Any, format: Any, rounding: str) -> Any:
    return cast.rounded(x, format, rounding, bits[0] if bits else None)


def _jvp(tangent: Any, x: Any, *bits: Any, format: Any, rounding: str) -> Any:
    low, high = cast.bounds(format, x.dtype)
    return jnp.where((x >= low) & (x <= high), tangent, jnp.zeros_like(tangent))


def _scale_rule(equation: Any, x: Any, *bits: Any) -> list[Any]:
    return [x.with_data(cast_p.bind(x.data, *bits, **equation.params))]


cast_p.scale_rule = _scale_rule
cast_p.def_impl(jax.jit(_function, static_argnames=("format", "rounding")))
cast_p.def_abstract_eval(lambda x, *_, **__: x)
mlir.register_lowering(cast_p, mlir.lower_fun(_function, multiple_results=False))
ad.defjvp(cast_p, _jvp, None)
batching.defbroadcasting(cast_p)
