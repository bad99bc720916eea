"""Scale rules of contractions: s*t*2**floor(log2(sqrt(K))), accumulated wide, then divided."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as p

from scalify_cli.core.dtypes import cast, wide_dtype
from scalify_cli.core.interpreter import bind
from scalify_cli.core.rules.families import binades, opaque
from scalify_cli.core.scale import Scale
from scalify_cli.core.values import Scaled, plain, product_scale, promote, times


def contraction(size):
    """The rule of a bilinear primitive with a ``preferred_element_type``.

    Args:
        size: the number of summed products, from the equation's parameters and data.
    """

    def rule(equation, x, y, *others):
        dtype = equation.outvars[0].aval.dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            return opaque(equation, x, y, *others)
        x, y = promote(x), promote(y)
        shift = binades(size(equation.params, x.data, y.data))
        data = _divided(equation, x.data, y.data, shift, [plain(z) for z in others])
        scale = product_scale(x, y)
        return [Scaled(cast(data, dtype), scale and scale.shifted(shift))]

    return rule


def _divided(equation, x, y, shift, others):
    """The product over 2**shift: in the smaller operand where its dtype has float32's range."""
    dtype = equation.outvars[0].aval.dtype
    wide = dtype if dtype == jnp.bfloat16 else wide_dtype(dtype)  # bfloat16 cannot overflow
    operands = [x, y]
    small = 0 if np.size(x) <= np.size(y) else 1
    halved = operands[small].dtype in (jnp.float32, jnp.float64)
    if halved:
        operands[small] = times(operands[small], Scale(-shift))
    params = {"preferred_element_type": wide}
    if isinstance(equation.params.get("precision"), lax.DotAlgorithmPreset):
        params["precision"] = None  # says how wide to accumulate, which is settled here
    product = bind(equation, [*operands, *others], **params)[0]
    return product if halved else times(product, Scale(-shift))


def dot_size(params, x, y):
    """The number of contracted elements of a ``dot_general``."""
    (contracted, _), _ = params["dimension_numbers"]
    return int(np.prod([np.shape(x)[axis] for axis in contracted]))


def ragged_dot_size(params, x, y):
    """The same for a ``ragged_dot_general``, whose groups share its contracted elements."""
    return dot_size(
        {"dimension_numbers": params["ragged_dot_dimension_numbers"].dot_dimension_numbers}, x, y
    )


def convolution_size(params, x, y):
    """Kernel elements that one output sums over."""
    kernel = np.shape(y)
    return int(np.prod(kernel)) // max(kernel[params["dimension_numbers"].rhs_spec[0]], 1)


RULES = {
    p.dot_general_p: contraction(dot_size),
    p.conv_general_dilated_p: contraction(convolution_size),
    "ragged_dot_general": contraction(ragged_dot_size),
}
