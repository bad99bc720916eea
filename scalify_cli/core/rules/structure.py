"""Scale rules of reductions, indexing and shape changes."""

import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import bind
from scalify_cli.core.rules.families import (
    agrees,
    aligned,
    binades,
    each_passes_through,
    opaque,
    passes_through,
    scale_free,
)
from scalify_cli.core.scaled_array import wide_dtype
from scalify_cli.core.values import Scaled, plain, promote


def sum_rule(equation, x):
    """A sum of n independent terms grows by sqrt(n); it is accumulated in float32, then divided."""
    x = promote(x)
    count = int(np.prod([x.shape[axis] for axis in equation.params["axes"]]))
    shift = binades(count)
    total = bind(equation, [x.data.astype(wide_dtype(x.dtype))])[0]
    if shift:
        total = lax.mul(total, np.asarray(2.0**-shift, total.dtype))
    return [Scaled(total.astype(x.dtype), x.scale and x.scale.shifted(shift))]


def scatter(equation, operand, indices, updates):
    """Updates and operand agree on a scale; a 16-bit sum is accumulated in float32."""
    data, scale = aligned(operand, updates)
    dtype = data[0].dtype
    wide = [x.astype(wide_dtype(dtype)) for x in data]
    result = _SCATTER[equation.primitive](wide[0], plain(indices), wide[1], equation.params)
    return [Scaled(result.astype(dtype), scale)]


def _scatter_with(function):
    def apply(operand, indices, updates, params):
        return function(
            operand,
            indices,
            updates,
            params["dimension_numbers"],
            indices_are_sorted=params["indices_are_sorted"],
            unique_indices=params["unique_indices"],
            mode=params["mode"],
        )

    return apply


_SCATTER = {
    p.scatter_p: _scatter_with(lax.scatter),
    p.scatter_add_p: _scatter_with(lax.scatter_add),
    p.scatter_max_p: _scatter_with(lax.scatter_max),
    p.scatter_min_p: _scatter_with(lax.scatter_min),
}


def dynamic_update(equation, operand, update, *starts):
    """The update takes part at the common scale."""
    data, scale = aligned(operand, update)
    return [Scaled(bind(equation, [*data, *map(plain, starts)])[0], scale)]


def gather(equation, operand, indices):
    """Picks elements; an explicit fill value is a true value."""
    fill = equation.params["fill_value"]
    marks = fill is None or fill == 0 or not np.isfinite(fill)
    return (passes_through if marks else opaque)(equation, operand, indices)


def top_k(equation, x):
    """The largest values keep their scale; their indices are integers."""
    x = promote(x)
    values, indices = bind(equation, [x.data])
    return [x.with_data(values), indices]


def product_rule(equation, x):
    """A product of n values has the n-th power of their scale."""
    x = promote(x)
    count = int(np.prod([x.shape[axis] for axis in equation.params["axes"]]))
    return [Scaled(bind(equation, [x.data])[0], x.scale and x.scale**count)]


RULES = {
    p.reduce_sum_p: sum_rule,
    p.dynamic_update_slice_p: dynamic_update,
    p.reduce_prod_p: product_rule,
    p.gather_p: gather,
    p.top_k_p: top_k,
    p.sort_p: each_passes_through,
    p.argmax_p: scale_free,
    p.argmin_p: scale_free,
    p.concatenate_p: agrees,
    p.pad_p: agrees,
    lax.optimization_barrier_p: each_passes_through,
}
RULES |= dict.fromkeys(_SCATTER, scatter)
RULES |= dict.fromkeys(
    (
        *(p.reshape_p, p.broadcast_in_dim_p, p.transpose_p, p.squeeze_p, p.rev_p, p.slice_p),
        *(p.dynamic_slice_p, p.reduce_max_p, p.reduce_min_p, lax.split_p),
        *(p.cummax_p, p.cummin_p, p.cumsum_p, p.name_p),
        *(p.reduce_window_max_p, p.reduce_window_min_p, p.reduce_window_sum_p),
    ),
    passes_through,
)
