"""Scale rules of contractions: s*t*2**floor(log2(sqrt(K))), accumulated wide, then divided."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.interpreter import bind
from scalify_cli.core.rules.families import binades
from scalify_cli.core.scaled_array import wide_dtype
from scalify_cli.core.values import Scaled, product_scale, promote


def contraction(size, accumulate):
    """The rule of a bilinear primitive.

    Args:
        size: the number of summed products, from the equation's parameters and data.
        accumulate: parameters that make the primitive return float32 for narrow operands.
    """

    def rule(equation, x, y):
        x, y = promote(x), promote(y)
        shift = binades(size(equation.params, x.data, y.data))
        data = _divided(equation, x.data, y.data, shift, accumulate)
        scale = product_scale(x, y)
        scale = scale and scale.shifted(shift)
        return [Scaled(data.astype(equation.outvars[0].aval.dtype), scale)]

    return rule


def _divided(equation, x, y, shift, accumulate):
    """The product over 2**shift: in the smaller operand where its dtype has float32's range."""
    dtype = equation.outvars[0].aval.dtype
    wide = dtype if dtype == jnp.bfloat16 else wide_dtype(dtype)  # bfloat16 cannot overflow
    operands = [x, y]
    small = 0 if np.size(x) <= np.size(y) else 1
    if operands[small].dtype in (jnp.float32, jnp.float64):
        operands[small] = _halved(operands[small], shift)
        return bind(equation, operands, **accumulate(wide))[0]
    return _halved(bind(equation, operands, **accumulate(wide))[0], shift)


def _halved(data, times):
    return lax.mul(data, np.asarray(2.0**-times, data.dtype)) if times else data


def dot_size(params, x, y):
    """The number of contracted elements of a ``dot_general``."""
    (contracted, _), _ = params["dimension_numbers"]
    return int(np.prod([np.shape(x)[axis] for axis in contracted]))


def convolution_size(params, x, y):
    """Kernel elements that one output sums over."""
    kernel = np.shape(y)
    return int(np.prod(kernel)) // kernel[params["dimension_numbers"].rhs_spec[0]]


def _preferred(dtype):
    return {"preferred_element_type": dtype}


RULES = {
    p.dot_general_p: contraction(dot_size, _preferred),
    p.conv_general_dilated_p: contraction(convolution_size, _preferred),
}
