"""Scale rules of elementwise functions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import bind
from scalify_cli.core.rules.families import (
    agrees,
    compares,
    in_float32,
    opaque,
    passes_through,
    picks,
    power,
    product,
    quotient,
    root,
    saturates,
    scale_free,
    to_the,
)
from scalify_cli.core.scale import maximum, minimum
from scalify_cli.core.scale import select as select_scale
from scalify_cli.core.values import Scaled, Uniform, at_scale, promote


def convert(equation, x):
    """Between floats the data is cast; to other types the true value is."""
    if jnp.issubdtype(equation.params["new_dtype"], jnp.floating):
        return passes_through(equation, x)
    return opaque(equation, x)


def select(equation, which, *cases):
    """A choice by a scalar takes the chosen case's scale; otherwise the cases agree on one."""
    values = [promote(case) for case in cases]
    scales = [value.scale for value in values if value.scale is not None]
    if jnp.ndim(which) or len(set(scales)) < 2 or len(scales) != 2:
        return picks()(equation, which, *cases)
    data = lax.select_n(which, *(value.data for value in values))
    return [Scaled(data, select_scale(which, *scales))]


def general_power(equation, x, y):
    """Powers known while tracing: integers and halves keep their scale; others are opaque."""
    n = y.value if isinstance(y, Uniform) and isinstance(x, Scaled) else 0.25
    if abs(n) == 0.5:
        return (SQRT if n > 0 else RSQRT)(equation, x)
    if abs(n) > 8 or not float(n).is_integer():
        return opaque(equation, x, y)
    x = promote(x)
    return [Scaled(lax.integer_pow(x.data, int(n)), to_the(x.scale, int(n)))]


def remainder(equation, x, y):
    """Taken in float32; smaller than either operand, it takes the smaller scale."""
    x, y = promote(x), promote(y)
    if x.scale is None or y.scale is None:
        return [
            Scaled(bind(equation, [x.data, y.data])[0], y.scale if x.scale is None else x.scale)
        ]
    larger, smaller = maximum([x.scale, y.scale]), minimum([x.scale, y.scale])
    wide = [at_scale(in_float32(v), larger) for v in (x, y)]
    rest = Scaled(bind(equation, wide)[0], larger)
    return [Scaled(at_scale(rest, smaller).astype(x.dtype), smaller)]


def next_after(equation, x, y):
    """The neighbour among the numbers that the data can hold."""
    x, y = promote(x), promote(y)
    return [x.with_data(bind(equation, [x.data, at_scale(y, x.scale)])[0])]


SQRT, RSQRT = root(2, lax.sqrt), root(-2, lax.rsqrt)
RULES: dict[Any, Callable] = {
    p.mul_p: product,
    p.div_p: quotient,
    p.integer_pow_p: power,
    p.square_p: power,
    p.sqrt_p: SQRT,
    p.rsqrt_p: RSQRT,
    p.cbrt_p: root(3, lax.cbrt),
    p.pow_p: general_power,
    p.rem_p: remainder,
    p.nextafter_p: next_after,
    p.convert_element_type_p: convert,
    p.select_n_p: select,
}
RULES |= dict.fromkeys(
    (p.neg_p, p.abs_p, p.copy_p, p.stop_gradient_p, p.reduce_precision_p), passes_through
)
RULES |= dict.fromkeys((p.add_p, p.sub_p, p.add_jaxvals_p), agrees)
RULES |= {p.max_p: picks(-1, -1), p.min_p: picks(1, 1), p.clamp_p: picks(-1, 0, 1)}
RULES |= dict.fromkeys(
    (
        *(p.eq_p, p.ne_p, p.lt_p, p.le_p, p.gt_p, p.ge_p),
        *(p.eq_to_p, p.lt_to_p, p.le_to_p),
    ),
    compares,
)
RULES |= dict.fromkeys((p.sign_p, p.is_finite_p), scale_free)
SATURATING = frozenset(
    (
        *(p.sin_p, p.tanh_p, p.erf_p, p.erf_inv_p, p.log1p_p, p.bessel_i1e_p),
        *(p.asin_p, p.atan_p, p.asinh_p, p.atanh_p),
    )
)
OPAQUE = frozenset(
    (
        *(p.exp_p, p.exp2_p, p.expm1_p, p.log_p, p.logistic_p, p.erfc_p, p.atan2_p),
        *(p.cos_p, p.tan_p, p.acos_p, p.sinh_p, p.cosh_p, p.acosh_p, p.bessel_i0e_p),
        *(p.lgamma_p, p.digamma_p, p.polygamma_p, p.zeta_p, p.regularized_incomplete_beta_p),
        *(p.igamma_p, p.igammac_p, p.igamma_grad_a_p),
    )
)
RULES |= dict.fromkeys(SATURATING, saturates(shrinks=True))
RULES |= dict.fromkeys((p.round_p, p.floor_p, p.ceil_p), saturates(shrinks=False))
RULES |= dict.fromkeys(OPAQUE, opaque)
RULES["log2"] = opaque  # by name: the older JAX divides two logarithms instead
