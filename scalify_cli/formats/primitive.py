"""Rounding as a primitive, so that transforms see one equation and not its bit arithmetic.

Under ``scalify`` it rounds the *data* and leaves the scale alone: that is what the format sees.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import ad, batching, mlir

from scalify_cli.formats.rounding import bounds, rounded


class _Cast(jex.Primitive):
    """Brings its own scale rule, which ``scalify`` looks for under this name."""

    scale_rule: Callable


cast_p = _Cast("saturating_cast")


def _function(x: Any, *bits: Any, format: Any, rounding: str) -> Any:
    return rounded(x, format, rounding, bits[0] if bits else None)


def _jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    x, tangent = primals[0], ad.instantiate_zeros(tangents[0])
    low, high = bounds(params["format"], x.dtype)
    tangent = jnp.where((x >= low) & (x <= high), tangent, jnp.zeros_like(tangent))
    return cast_p.bind(*primals, **params), tangent


def _batch(operands: Any, axes: Any, **params: Any) -> tuple[Any, int]:
    sizes = [x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None]
    batched = [
        batching.bdim_at_front(x, axis, sizes[0]) for x, axis in zip(operands, axes, strict=True)
    ]
    return cast_p.bind(*batched, **params), 0


def _scale_rule(equation: Any, x: Any, *bits: Any) -> list[Any]:
    return [x.with_data(cast_p.bind(x.data, *bits, **equation.params))]


cast_p.scale_rule = _scale_rule
cast_p.def_impl(jax.jit(_function, static_argnames=("format", "rounding")))
cast_p.def_abstract_eval(lambda x, *_, **__: x)
mlir.register_lowering(cast_p, mlir.lower_fun(_function, multiple_results=False))
ad.primitive_jvps[cast_p] = _jvp
batching.primitive_batchers[cast_p] = _batch
