"""Scale rules of contractions: s·t·2**floor(log2(sqrt(K))), accumulated wide."""

from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import is_float, is_narrow, register_dtype
from scalify_cli.core.rules.families import at_one, of_terms, result
from scalify_cli.core.rules.products import multiplied
from scalify_cli.core.storage import plain, promote, stored, true
from scalify_cli.core.values import Scaled
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.scales.scale import ONE


def contraction(size):
    """The rule of a bilinear primitive with a ``preferred_element_type``.

    Narrow operands are narrow in the matmul too; their sums are float32. Integers and flags beside
    floats are as they are.

    Args:
        size: the number of summed products, from the equation's parameters and data.
    """

    def rule(equation, x, y, *others):
        aval = equation.outvars[0].aval
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            return at_one(equation, x, y, *others)
        values = list(map(_operand, (x, y)))
        data = [v.data for v in values]
        params = {"preferred_element_type": register_dtype(aval.dtype)}
        if isinstance(equation.params.get("precision"), lax.DotAlgorithmPreset):
            params["precision"] = None  # says how wide to accumulate, which is settled here
        [product] = bind(equation, [*data, *map(plain, others)], **params)
        scale, unit = multiplied(values, (1, 1))
        grown = scale and scale * of_terms(size(equation.params, *data))
        found = result(aval, product, grown, unit)
        return [found if is_narrow(aval.dtype) else true(found)]

    return rule


def _operand(x: Any) -> Scaled:
    """A narrow one at its scale; of integers, unlike flags, the size is not known."""
    if not is_float(x):
        return Scaled(x, ONE if x.dtype == bool else ONE.vague())
    x = promote(x)
    return stored(x) if is_narrow(x.dtype) else x


def dot_size(params, x, y):
    """The number of contracted elements of a ``dot_general``."""
    (contracted, _), _ = params["dimension_numbers"]
    return prod(np.shape(x)[axis] for axis in contracted)


def ragged_dot_size(params, x, y):
    """The same for a ``ragged_dot_general``, whose groups share its contracted elements."""
    numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return dot_size({"dimension_numbers": numbers}, x, y)


def convolution_size(params, x, y):
    """Kernel elements that one output sums over."""
    kernel = np.shape(y)
    return prod(kernel) // max(kernel[params["dimension_numbers"].rhs_spec[0]], 1)


RULES = {
    p.dot_general_p: contraction(dot_size),
    p.conv_general_dilated_p: contraction(convolution_size),
    "ragged_dot_general": contraction(ragged_dot_size),
}
