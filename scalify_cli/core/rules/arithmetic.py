"""Scale rules of elementwise arithmetic."""

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.rules.families import (
    agrees,
    aligned,
    compares,
    compares_sizes,
    in_own_dtype,
    masked,
    opaque,
    passes_through,
    power,
    product,
    quotient,
    root,
    scale_free,
)
from scalify_cli.core.scale import select as select_scale
from scalify_cli.core.values import Scaled, Uniform, plain, promote


def convert(equation, x):
    """Between floats the data is cast; to integers and booleans the true value is."""
    if jnp.issubdtype(equation.params["new_dtype"], jnp.floating):
        return passes_through(equation, x)
    return opaque(equation, x)


def select(equation, which, *cases):
    """A choice by a scalar takes the chosen case's scale; otherwise the cases agree on one."""
    values = [promote(case) for case in masked(cases)]
    scales = [value.scale for value in values if value.scale is not None]
    if jnp.ndim(which) or len(set(scales)) < 2 or len(scales) != 2:
        data, scale = aligned(*values)
        return [Scaled(lax.select_n(plain(which), *data), scale)]
    data = lax.select_n(which, *(value.data for value in values))
    return [Scaled(data, select_scale(which, *scales))]


def general_power(equation, x, y):
    """x**n keeps its scale for an integer n known while tracing; other powers are opaque."""
    whole = isinstance(y, Uniform) and float(y.value).is_integer() and isinstance(x, Scaled)
    if not whole or abs(y.value) > 8:
        return opaque(equation, x, y)
    x, n = promote(x), int(y.value)
    return [Scaled(lax.integer_pow(x.data, n), None if x.scale is None else x.scale**n)]


RULES = {
    p.mul_p: product,
    p.div_p: quotient,
    p.integer_pow_p: power,
    p.square_p: power,
    p.sqrt_p: root(2),
    p.rsqrt_p: root(-2),
    p.cbrt_p: root(3),
    p.pow_p: general_power,
    p.convert_element_type_p: convert,
    p.select_n_p: select,
}
RULES |= dict.fromkeys(
    (p.neg_p, p.abs_p, p.copy_p, p.stop_gradient_p, p.reduce_precision_p), passes_through
)
RULES |= dict.fromkeys((p.add_p, p.sub_p, p.add_jaxvals_p), agrees)
RULES |= dict.fromkeys((p.max_p, p.min_p, p.clamp_p), compares_sizes)
RULES |= dict.fromkeys((p.eq_p, p.ne_p, p.lt_p, p.le_p, p.gt_p, p.ge_p), compares)
RULES |= dict.fromkeys((p.sign_p, p.is_finite_p), scale_free)
RULES |= dict.fromkeys(
    (
        *(p.exp_p, p.exp2_p, p.expm1_p, p.log_p, p.log1p_p, p.logistic_p, p.tanh_p),
        *(p.erf_p, p.erfc_p, p.erf_inv_p, p.sin_p, p.cos_p, p.round_p, p.floor_p),
    ),
    opaque,
)
RULES |= dict.fromkeys((p.bitcast_convert_type_p, p.nextafter_p), in_own_dtype)
