"""Convolutions whose operands are rounded, as those of matmuls are.

No accelerator convolves float8, so the values of the format's grid are convolved in the compute
dtype.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.extend import core as jex

from scalify_cli.core import tap
from scalify_cli.formats import saturating_cast
from scalify_cli.jaxprs.interpreter import bind
from scalify_cli.precision.matmul import Rounding


def rounded_convolution(
    equation: jex.JaxprEqn, operands: Sequence[Any], rounding: Rounding
) -> jax.Array:
    """A ``conv_general_dilated`` of operands rounded to the forward format.

    Its cotangent is rounded to the backward format in both of its gradients.
    """
    name, forward, backward = rounding.name, rounding.forward, rounding.backward
    convolve = partial(_convolve, equation)

    @jax.custom_vjp
    def convolution(x, kernel):
        x8 = tap(x, f"{name}.activation", saturating_cast(x, forward), forward.name)
        kernel8 = tap(kernel, f"{name}.weight", saturating_cast(kernel, forward), forward.name)
        return convolve(x8, kernel8)

    def pull(operands, cotangent):
        g8 = saturating_cast(cotangent, backward)
        g8 = tap(cotangent, f"{name}.cotangent", g8, backward.name)
        return jax.vjp(convolve, *(saturating_cast(x, forward) for x in operands))[1](g8)

    convolution.defvjp(lambda *operands: (convolution(*operands), operands), pull)
    return convolution(*operands)


def _convolve(equation, x, kernel):
    return bind(equation, [x, kernel])[0]
