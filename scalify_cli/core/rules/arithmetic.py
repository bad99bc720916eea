"""Scale rules of elementwise functions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, is_narrow, register_dtype
from scalify_cli.core.rules.families import (
    BELOW,
    BOUNDED,
    DECAYING,
    POSITIVE,
    SHARE,
    added,
    agrees,
    at_one,
    equality,
    opaque,
    passes_through,
    picks,
    result,
    scale_free,
    smallest,
    subtracted,
    vague,
)
from scalify_cli.core.rules.products import (
    factors,
    far,
    perhaps_above,
    power,
    product,
    quotient,
    root,
    signed,
)
from scalify_cli.core.storage import aligned, at, promote, register, stored
from scalify_cli.core.values import SQUARE, Scaled, nonzero
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.choices import chosen, maximum, minimum
from scalify_cli.scales.choices import select as select_scale
from scalify_cli.scales.scale import ONE, Scale

_MOST_UNITS = 5  # the largest power that is one of units too; others are of true values


def convert(equation, x):
    """Between floats the data is cast; to other types the true value is."""
    if not jnp.issubdtype(equation.params["new_dtype"], jnp.floating):
        return at_one(equation, x)
    aval = equation.outvars[0].aval
    x = x if isinstance(x, Scaled) else promote(cast(x, register_dtype(aval.dtype)))
    if is_narrow(aval.dtype):
        return [result(aval, register(x), x.scale, x.unit, x.role)]
    return [result(aval, at(x, ONE), x.scale, role=x.role)]


def larger(equation, x, y):
    """The larger of two; with 0 it is what is positive of the other."""
    [z] = picks(-1, -1)(equation, x, y)
    return [replace(z, role=POSITIVE) if 0 in (x.number, y.number) else z]


def select(equation, which, *cases):
    """A choice by a scalar takes the chosen case's scale; otherwise the cases agree on one."""
    if jnp.ndim(which) or len({x.scale for x in cases} - {None}) != len(cases) or len(cases) > 2:
        return picks()(equation, which, *cases)
    aval, scale = equation.outvars[0].aval, select_scale(which, *(x.scale for x in cases))
    if all(x.data.dtype == aval.dtype and is_narrow(aval.dtype) for x in cases):
        return [Scaled(lax.select_n(which, *(stored(x).data for x in cases)), scale)]
    data, unit = aligned(cases)
    return [result(aval, lax.select_n(which, *data), scale, unit, nonzero(cases))]


def general_power(equation, x, y):
    """Powers known while tracing: integers and halves keep their scale; others are opaque."""
    number = y.number if isinstance(y, Scaled) else None
    n = 0.25 if number is None else number
    if abs(n) == 0.5:
        return root(int(2 * n) * 2, lambda data: lax.pow(data, lax.full_like(data, n)))(equation, x)
    if not (0 <= n <= _MOST_UNITS and float(n).is_integer()):
        return vague(equation, x, y)
    [x], scale, unit = factors([x], [int(n)])
    data, aval = lax.integer_pow(register(x), int(n)), equation.outvars[0].aval
    return [result(aval, data, perhaps_above(scale, aval.dtype) if far(n) else scale, unit)]


def exponential(equation, x):
    """Near 1 of a softmax's differences; of what is squared and negative it vanishes where that is
    large."""
    [y] = (at_one if x.role == BELOW else vague)(equation, x)
    return [replace(y, role={BELOW: SHARE, SQUARE: DECAYING}.get(x.role, ""))]


def next_after(equation, x, y):
    """The neighbour among the numbers that the data can hold."""
    x = stored(x)
    towards = cast(at(y, x.unit), x.dtype)
    return [x.with_data(bind(equation, [x.data, towards])[0])]


def rounds(equation, x):
    """What is rounded is the data."""
    return passes_through(equation, stored(x))


def with_one(choose, degree=1):
    """The larger or smaller one of 1 and a power of the operand's scale."""
    return lambda *scales: chosen([ONE, *(x and x**degree for x in scales)], choose)


def bounded(*scales):
    """The smaller one of 1 and the operand's scale; of infinities it is 1 whatever that is."""
    scale = with_one(minimum)(*scales)
    return scale and scale.shifted(0, 0, most=-scale.bounds[0])


def of_polynomial(*scales):
    """The largest of the terms' scales; coefficients follow the argument, from the constant."""
    x, *coefficients = scales or (ONE, ONE)
    return chosen(c and x and c * x**i if i else c for i, c in enumerate(coefficients))


RULES: dict[Any, Callable] = {
    p.mul_p: product,
    p.div_p: quotient,
    p.integer_pow_p: power,
    p.square_p: power,
    p.sqrt_p: root(2, lax.sqrt),
    p.rsqrt_p: root(-2, lax.rsqrt),
    p.cbrt_p: root(3, lax.cbrt),
    p.pow_p: general_power,
    p.rem_p: agrees(smallest),
    p.nextafter_p: next_after,
    p.convert_element_type_p: convert,
    p.reduce_precision_p: rounds,
    p.select_n_p: select,
    p.max_p: larger,
    p.min_p: picks(1, 1),
    p.clamp_p: picks(-1, 0, 1),
}
RULES |= dict.fromkeys((p.copy_p, p.stop_gradient_p), passes_through)
RULES |= dict.fromkeys((p.neg_p, p.abs_p), signed)
RULES |= dict.fromkeys((p.sign_p, p.is_finite_p), scale_free)
RULES |= dict.fromkeys((p.add_p, p.add_jaxvals_p), added)
RULES |= dict.fromkeys(
    (p.sub_p, p.lt_p, p.le_p, p.gt_p, p.ge_p, p.eq_to_p, p.lt_to_p, p.le_to_p), subtracted
)
RULES |= dict.fromkeys((p.eq_p, p.ne_p), equality)
SHRINKING = (
    *(p.sin_p, p.tanh_p, p.erf_p, p.erf_inv_p, p.log1p_p, p.bessel_i1e_p),
    *(p.asin_p, p.asinh_p, p.atanh_p),
)
"""|f(x)| is about |x| at most."""
NEAR_ONE = (
    *(p.log_p, p.cos_p, p.acos_p, p.acosh_p, p.bessel_i0e_p),
    *(p.regularized_incomplete_beta_p, p.igamma_p, p.igammac_p),
    "log2",  # by name: the older JAX divides two logarithms instead
)
ANY_SIZE = (
    *(p.expm1_p, p.atan2_p, p.tan_p, p.sinh_p, p.cosh_p),
    *(p.lgamma_p, p.digamma_p, p.polygamma_p, p.zeta_p, p.igamma_grad_a_p),
)
RULES |= dict.fromkeys(SHRINKING, opaque(with_one(minimum)))
RULES |= dict.fromkeys((p.round_p, p.floor_p, p.ceil_p), opaque(with_one(maximum)))
RULES |= dict.fromkeys(NEAR_ONE, opaque(lambda *_: Scale(degree=3)))
RULES |= dict.fromkeys(ANY_SIZE, vague)
RULES |= dict.fromkeys((p.tanh_p, p.erf_p), opaque(bounded, BOUNDED))
RULES |= {p.atan_p: opaque(bounded)}
RULES |= dict.fromkeys((p.exp_p, p.exp2_p), exponential)
RULES |= {p.logistic_p: opaque(lambda *_: ONE.vague(), BOUNDED)}
RULES |= {p.erfc_p: opaque(lambda *_: Scale(1).vague(), BOUNDED)}
RULES |= {
    "one_minus_square": opaque(with_one(maximum, 2), DECAYING),  # of the newest JAX
    "polynomial": opaque(of_polynomial),
}
