"""Scale rules of reductions, indexing and shape changes."""

from dataclasses import replace
from math import log2, prod

import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.rules.families import (
    SHARE,
    TOTAL,
    Largest,
    of_picked,
    of_sum,
    of_terms,
    passes_through,
    picks,
    result,
    vague,
    with_sources,
)
from scalify_cli.core.rules.products import factors
from scalify_cli.core.rules.programs import combined
from scalify_cli.core.storage import aligned, at, register
from scalify_cli.core.values import SQUARE, Scaled, Uniform
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.choices import chosen
from scalify_cli.scales.scale import ONE


def sums(count):
    """A sum of n independent terms grows by sqrt(n), one of squares by n; narrow ones are added up
    in float32.

    Args:
        count: the number of summed terms, from the equation's parameters and the operand's shape.
    """

    def rule(equation, x):
        [total] = bind(equation, [register(x)])
        grown = of_terms(prod(count(equation.params, x.shape)), x.role == SQUARE)
        scale = x.scale and x.scale * grown
        role = TOTAL if x.role == SHARE else ""
        return [result(equation.outvars[0].aval, total, scale, x.unit, role)]

    return rule


def largest(equation, x):
    """It passes through; a softmax subtracts it."""
    [y] = passes_through(equation, x)
    return [with_sources(replace(y, role=Largest(x.data)), x)]


def least(equation, x):
    """It passes through."""
    [y] = passes_through(equation, x)
    return [with_sources(y, x)]


def reduce_product(equation, x):
    """A product of n values has the n-th power of their scale, which few of them need be near."""
    count = prod(x.shape[axis] for axis in equation.params["axes"])
    [x], scale, unit = factors([x], [count])
    [data] = bind(equation, [x.data])
    return [result(equation.outvars[0].aval, data, scale and scale.vague(), unit)]


def scatter(scale, sums=False):
    """Updates and operand agree on a unit; narrow ones are added up in float32.

    Args:
        scale: of the result, from its dtype and the two.
        sums: whether all updates may be added to one element.
    """

    def rule(equation, operand, indices, updates):
        (data, new), unit = aligned([operand, updates])
        aval = equation.outvars[0].aval
        size = scale(aval.dtype, operand, updates)
        if sums and size and isinstance(new.size, int):
            size = size.shifted(0, 0, most=log2(max(prod(indices.shape[:-1]), 1)))
        found = result(aval, _scattered(equation, data, new, indices), size, unit)
        return [found if sums else with_sources(found, operand, updates)]

    return rule


def scatter_set(equation, operand, indices, updates):
    """Replaces elements by updates, or by any function of themselves."""
    program = equation.params["update_jaxpr"]
    replaces = program is None or program.outvars[0] is program.invars[1]
    rule = scatter(of_picked()) if replaces else combined
    return rule(equation, operand, indices, updates)


def scatter_product(equation, x, indices, updates):
    """Only some elements are multiplied, by true values."""
    data = _scattered(equation, register(x), at(updates, ONE), indices)
    return [result(equation.outvars[0].aval, data, x.scale and x.scale.vague(), x.unit)]


def _scattered(equation, operand, updates, indices):
    """In the dtype of its operands, which need not be the equation's."""
    names = ("indices_are_sorted", "unique_indices", "mode")
    options = {name: equation.params[name] for name in names}
    numbers = equation.params["dimension_numbers"]
    return _SCATTER[equation.primitive](operand, indices, updates, numbers, **options)


def gather(equation, x, indices):
    """Picks elements; what it fills in is a true value."""
    fill = equation.params["fill_value"]
    if fill is None or fill == 0 or not np.isfinite(fill):
        return passes_through(equation, x, indices)
    aval = equation.outvars[0].aval
    [data] = bind(equation, [at(x, ONE), indices])
    return [result(aval, data, chosen([x.scale, Uniform.like(aval, float(fill)).scale]))]


def selected(equation, x, *others):
    """f(s*x, t*y) = s*f(x, y): of the other floats only their order matters."""
    [data] = bind(equation, [register(v) if isinstance(v, Scaled) else v for v in (x, *others)])
    return [result(equation.outvars[0].aval, data, x.scale, x.unit)]


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
    p.cumsum_p: sums(lambda params, shape: [shape[params["axis"]]]),
    p.reduce_window_sum_p: sums(lambda params, shape: params["window_dimensions"]),
    p.reduce_prod_p: reduce_product,
    p.reduce_max_p: largest,
    p.reduce_min_p: least,
    p.gather_p: gather,
    p.scatter_p: scatter_set,
    p.scatter_mul_p: scatter_product,
}
RULES |= dict.fromkeys((p.scatter_add_p, lax.scatter_sub_p), scatter(of_sum, sums=True))
RULES |= dict.fromkeys((p.scatter_max_p, p.scatter_min_p), scatter(of_picked()))
RULES |= dict.fromkeys((p.concatenate_p, p.pad_p, lax.stack_p, p.dynamic_update_slice_p), picks())
RULES |= dict.fromkeys((p.select_and_scatter_add_p, p.select_and_gather_add_p), selected)
RULES |= dict.fromkeys(
    (
        *(p.sort_p, lax.optimization_barrier_p, p.device_put_p, p.sharding_constraint_p),
        *(p.reshape_p, p.broadcast_in_dim_p, p.transpose_p, p.squeeze_p, p.rev_p, p.slice_p),
        *(p.dynamic_slice_p, p.cummax_p, p.cummin_p),
        *(lax.split_p, lax.unstack_p, lax.tile_p, p.name_p, p.top_k_p, p.approx_top_k_p),
        *(p.reduce_window_max_p, p.reduce_window_min_p, p.argmax_p, p.argmin_p),
    ),
    passes_through,
)
RULES |= dict.fromkeys((p.cumprod_p, p.cumlogsumexp_p), vague)
