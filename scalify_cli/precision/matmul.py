"""Matmuls whose operands are rounded: forward format on the way in, backward on cotangents.

The operands stay in the compute dtype and hold values of the narrow format's grid, so one trace
serves every platform. Accelerators receive real float8 operands; the CPU receives the same values
in bfloat16 (every FP8 value is one), which is exact with float32 accumulation and much faster.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import batching, mlir
from jax.sharding import AxisType, PartitionSpec

from scalify_cli.core import tap
from scalify_cli.core.ruled_primitive import RuledPrimitive
from scalify_cli.core.rules.matmul import contraction, dot_size
from scalify_cli.formats import Format, saturating_cast

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


class Rounding(NamedTuple):
    """Formats of one matmul, the name under which its operands can be observed, and where the
    result lies on a mesh that JAX tracks."""

    forward: Format
    backward: Format
    name: str
    sharding: Any = None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rounded_dot(x: Any, y: Any, dimensions: Dimensions, rounding: Rounding) -> jax.Array:
    """``lax.dot_general`` of x and y rounded to the forward format, in x's dtype.

    Its cotangent is rounded to the backward format in both gradient matmuls. The unrounded
    operands are what is kept for them: a parameter is then not copied.
    """
    roles = _roles(y, dimensions)
    x8 = _rounded(x, rounding.forward, f"{rounding.name}.{roles[0]}")
    y8 = _rounded(y, rounding.forward, f"{rounding.name}.{roles[1]}")
    product = _dot(x8, y8, dimensions, rounding.forward, rounding.forward, rounding.sharding)
    return product.astype(x.dtype)


def _forward(x, y, dimensions, rounding):
    return rounded_dot(x, y, dimensions, rounding), (x, y)


def _backward(dimensions, rounding, operands, cotangent):
    x, y = operands
    forward, backward = rounding.forward, rounding.backward
    (x_sum, y_sum), (x_batch, y_batch) = dimensions
    g8 = _rounded(cotangent, backward, f"{rounding.name}.cotangent")
    x8, y8 = saturating_cast(x, forward), saturating_cast(y, forward)
    x_free, y_free = _free(x, x_sum, x_batch), _free(y, y_sum, y_batch)
    batch = tuple(range(len(x_batch)))
    g_x = tuple(range(len(batch), len(batch) + len(x_free)))
    g_y = tuple(range(len(batch) + len(x_free), cotangent.ndim))

    dx_axes = (*x_batch, *x_free, *(x_sum[i] for i in np.argsort(y_sum)))
    dx_sums = (g_y, y_free), (batch, y_batch)
    dx = _dot(g8, y8, dx_sums, backward, forward, tracked_sharding(jax.typeof(x), dx_axes))
    dy_axes = (*y_batch, *(y_sum[i] for i in np.argsort(x_sum)), *y_free)
    dy_sums = (x_free, g_x), (x_batch, batch)
    dy = _dot(x8, g8, dy_sums, forward, backward, tracked_sharding(jax.typeof(y), dy_axes))
    return _arranged(dx.astype(x.dtype), dx_axes), _arranged(dy.astype(y.dtype), dy_axes)


rounded_dot.defvjp(_forward, _backward)


def _rounded(x, format, name):
    return tap(x, name, saturating_cast(x, format), format.name)


def _roles(y, dimensions):
    weight = not dimensions[1][0] and y.ndim == 2
    return ("activation", "weight") if weight else ("left", "right")


def _free(x, *used):
    taken = {axis for axes in used for axis in axes}
    return tuple(axis for axis in range(x.ndim) if axis not in taken)


def _arranged(x, axes):
    """x, whose i-th axis belongs at place ``axes[i]``, in order."""
    order = tuple(int(i) for i in np.argsort(axes))
    return x if order == tuple(range(x.ndim)) else lax.transpose(x, order)


def tracked_sharding(aval: ShapedArray, axes: Sequence[int] | None = None) -> Any:
    """How an array, or it with its axes in another order, lies on a mesh; None: not tracked."""
    sharding = aval.sharding
    if AxisType.Explicit not in (sharding.mesh.axis_types or ()):
        return None
    order = range(aval.ndim) if axes is None else axes
    return sharding.update(spec=PartitionSpec(*(sharding.spec[axis] for axis in order)))


def _dot(x, y, dimensions, x_format, y_format, sharding):
    return rounded_dot_p.bind(
        x,
        y,
        dimension_numbers=dimensions,
        x_format=x_format,
        y_format=y_format,
        preferred_element_type=jnp.dtype(jnp.float32),
        out_sharding=sharding,
    )


def _in_float8(x, y, *, dimension_numbers, x_format, y_format, **options):
    """Float8 operands straight into ``dot_general``: an FP8 GEMM on accelerators that have one."""
    x = x.astype(x_format.dtype) if _is_float8(x_format) else x
    y = y.astype(y_format.dtype) if _is_float8(y_format) else y
    return lax.dot_general(x, y, dimension_numbers, **options)


def _in_bfloat16(x, y, *, dimension_numbers, x_format, y_format, out_sharding, **options):
    """The same products: every value fits bfloat16, and sums are taken in float32.

    What lies on a mesh that JAX tracks cannot become flat, and is multiplied in float32.
    """
    if out_sharding is not None:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return lax.dot_general(x, y, dimension_numbers, out_sharding=out_sharding, **options)
    x = x.astype(jnp.bfloat16) if _fits_bfloat16(x_format) else x
    y = y.astype(jnp.bfloat16) if _fits_bfloat16(y_format) else y
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    x_free, y_free = _free(x, x_sum, x_batch), _free(y, y_sum, y_batch)
    y_last = not x_batch and (*y_free, *y_sum) == tuple(range(y.ndim))
    left = _row_major(x, x_batch, x_free, x_sum)
    right = _row_major(y, y_batch, *((y_free, y_sum) if y_last else (y_sum, y_free)))
    batch = tuple(range(left.ndim - 2))
    inner = len(batch) + 1
    dimensions = ((inner,), (inner - 1 + y_last,)), (batch, batch)
    product = lax.dot_general(left, right, dimensions, **options)
    sizes = [x.shape[i] for i in (*x_batch, *x_free)] + [y.shape[i] for i in y_free]
    return _fixed(product).reshape(sizes)


def _row_major(x, batch, rows, columns):
    """x as [batch, rows, columns], or [rows, columns] where there is one batch only."""
    sizes = [prod(x.shape[i] for i in axes) for axes in (batch, rows, columns)]
    matrices = _fixed(lax.transpose(x, (*batch, *rows, *columns)))
    return matrices.reshape(sizes if sizes[0] != 1 else sizes[1:])


def _fixed(x):
    """x in row-major order, flat: XLA has fast bfloat16 kernels for few layouts only.

    It decides early whether a matmul needs float32 operands, and folds transposes into the matmul
    afterwards. A flat array has one layout, and nothing is folded past the barrier.
    """
    return lax.optimization_barrier(x.ravel())


def _is_float8(format: Format) -> bool:
    return format.dtype is not None and jnp.dtype(format.dtype).itemsize == 1


def _fits_bfloat16(format: Format) -> bool:
    return format.mantissa_bits <= 7


def _shape(x, y, *, dimension_numbers, preferred_element_type, out_sharding, **_):
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    batch = [x.shape[axis] for axis in x_batch]
    free = [x.shape[axis] for axis in _free(x, x_sum, x_batch)]
    free += [y.shape[axis] for axis in _free(y, y_sum, y_batch)]
    shape = (*batch, *free)
    lies = out_sharding or x.sharding.update(spec=PartitionSpec(*[None] * len(shape)))
    # an update of x's type, which in ``shard_map`` tells how shards differ
    return x.update(shape=shape, dtype=preferred_element_type, sharding=lies)


def _batched(operands, axes, *, dimension_numbers, out_sharding, **params):
    """vmap: one more batch dimension, or one more free one."""
    (x, y), (x_axis, y_axis) = operands, axes
    moved = [
        z if axis is None else jnp.moveaxis(z, axis, 0) for z, axis in ((x, x_axis), (y, y_axis))
    ]
    if x_axis is None or y_axis is None:
        moved = [
            jnp.broadcast_to(z, (moved[1 - i].shape[0], *z.shape)) if axis is None else z
            for i, (z, axis) in enumerate(zip(moved, axes, strict=True))
        ]
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    up = lambda dims: tuple(d + 1 for d in dims)  # noqa: E731
    dims = ((up(x_sum), up(y_sum)), ((0, *up(x_batch)), (0, *up(y_batch))))
    lies = out_sharding and out_sharding.update(spec=(None, *out_sharding.spec))
    return rounded_dot_p.bind(*moved, dimension_numbers=dims, out_sharding=lies, **params), 0


rounded_dot_p = RuledPrimitive("rounded_dot_general")
rounded_dot_p.scale_rule = contraction(dot_size)
rounded_dot_p.def_impl(
    jax.jit(
        lambda x, y, **params: rounded_dot_p.bind(x, y, **params),
        static_argnames=(
            *("dimension_numbers", "x_format", "y_format"),
            *("preferred_element_type", "out_sharding"),
        ),
    )
)
rounded_dot_p.def_abstract_eval(_shape)
mlir.register_lowering(rounded_dot_p, mlir.lower_fun(_in_float8, multiple_results=False))
mlir.register_lowering(
    rounded_dot_p, mlir.lower_fun(_in_bfloat16, multiple_results=False), platform="cpu"
)
batching.primitive_batchers[rounded_dot_p] = _batched
