"""Scale rules of reductions, indexing and shape changes."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, wide_dtype
from scalify_cli.core.interpreter import bind
from scalify_cli.core.rules.families import (
    aligned,
    binades,
    each_passes_through,
    follows,
    in_own_dtype,
    opaque,
    passes_through,
    picks,
    to_the,
)
from scalify_cli.core.scale import Scale
from scalify_cli.core.values import Scaled, Uniform, plain, promote, times, true_values


def sums(count):
    """A sum of n independent terms grows by sqrt(n); it is accumulated in float32, then divided.

    Args:
        count: the number of summed terms, from the equation's parameters and the operand's shape.
    """

    def rule(equation, x):
        x = promote(x)
        shift = binades(int(np.prod(count(equation.params, x.shape))))
        total = bind(equation, [cast(x.data, wide_dtype(x.dtype))])[0]
        data = cast(times(total, Scale(-shift)), x.dtype)
        return [Scaled(data, x.scale and x.scale.shifted(shift))]

    return rule


def reduce_product(equation, x):
    """A product of n values has the n-th power of their scale."""
    x = promote(x)
    count = int(np.prod([x.shape[axis] for axis in equation.params["axes"]]))
    return [Scaled(bind(equation, [x.data])[0], to_the(x.scale, count))]


def scatter(yielding):
    """Updates and operand agree on a scale; a 16-bit sum is accumulated in float32."""

    def rule(equation, operand, indices, updates):
        data, scale = aligned(equation, operand, updates, yielding=yielding)
        return [Scaled(_scattered(equation, data[0], indices, data[1]), scale)]

    return rule


def scatter_set(equation, operand, indices, updates):
    """Replaces elements by updates, or by any function of themselves."""
    program = equation.params["update_jaxpr"]
    replaces = program is None or program.outvars[0] is program.invars[1]
    rule = scatter(yielding=True) if replaces else in_own_dtype
    return rule(equation, operand, indices, updates)


def scatter_product(equation, operand, indices, updates):
    """Only some elements are multiplied: the factors are true values, the scale the operand's."""
    x = promote(operand)
    data = _scattered(equation, x.data, indices, true_values(updates))
    return [x.with_data(data)]


def _scattered(equation, operand, indices, updates):
    """In float32, cast to the equation's dtype."""
    names = ("indices_are_sorted", "unique_indices", "mode")
    options = {name: equation.params[name] for name in names}
    wide = wide_dtype(operand.dtype)
    result = _SCATTER[equation.primitive](
        operand.astype(wide),
        plain(indices),
        updates.astype(wide),
        equation.params["dimension_numbers"],
        **options,
    )
    return result.astype(operand.dtype)


def gather(equation, operand, indices):
    """Picks elements; a fill value is chosen where a gather of marks says so."""
    fill = equation.params["fill_value"]
    if fill is None or fill == 0 or not np.isfinite(fill):
        return passes_through(equation, operand, indices)
    [picked] = passes_through(equation, operand, indices)
    marks = jnp.zeros_like(operand.data, jnp.int8)
    outside = bind(equation, [marks, plain(indices)], fill_value=1)[0] == 1
    filled = Uniform.like(equation.outvars[0].aval, float(fill))
    data, scale = aligned(equation, picked, filled, yielding=True)
    return [Scaled(jnp.where(outside, data[1], data[0]), scale)]


_SCATTER = {
    p.scatter_p: lax.scatter,
    p.scatter_add_p: lax.scatter_add,
    lax.scatter_sub_p: lax.scatter_sub,
    p.scatter_mul_p: lax.scatter_mul,
    p.scatter_max_p: lax.scatter_max,
    p.scatter_min_p: lax.scatter_min,
}

RULES = {
    p.reduce_sum_p: sums(lambda params, shape: [shape[axis] for axis in params["axes"]]),
    p.cumsum_p: sums(lambda params, shape: shape[params["axis"]]),
    p.reduce_window_sum_p: sums(lambda params, shape: params["window_dimensions"]),
    p.reduce_prod_p: reduce_product,
    p.gather_p: gather,
    p.scatter_p: scatter_set,
    p.scatter_mul_p: scatter_product,
}
RULES |= dict.fromkeys((p.scatter_add_p, lax.scatter_sub_p), scatter(yielding=False))
RULES |= dict.fromkeys((p.scatter_max_p, p.scatter_min_p), scatter(yielding=True))
RULES |= dict.fromkeys((p.concatenate_p, p.pad_p, lax.stack_p, p.dynamic_update_slice_p), picks())
RULES |= dict.fromkeys((p.select_and_scatter_add_p, p.select_and_gather_add_p), follows)
RULES |= dict.fromkeys(
    (p.sort_p, lax.optimization_barrier_p, p.device_put_p, p.sharding_constraint_p),
    each_passes_through,
)
RULES |= dict.fromkeys(
    (
        *(p.reshape_p, p.broadcast_in_dim_p, p.transpose_p, p.squeeze_p, p.rev_p, p.slice_p),
        *(p.dynamic_slice_p, p.reduce_max_p, p.reduce_min_p, p.cummax_p, p.cummin_p),
        *(lax.split_p, lax.unstack_p, lax.tile_p, p.name_p, p.top_k_p, p.approx_top_k_p),
        *(p.reduce_window_max_p, p.reduce_window_min_p, p.argmax_p, p.argmin_p),
    ),
    passes_through,
)
RULES |= dict.fromkeys((p.cumprod_p, p.cumlogsumexp_p), opaque)
RULES[p.bitcast_convert_type_p] = in_own_dtype
