"""What vanishes or saturates at run time: zeros that are measured, and bounded functions of
infinities, stay what they are in plain JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn

from scalify_cli.core import ScaledArray, as_scaled, rescale, scalify, unscale

DATA = np.float16(np.random.default_rng(3).normal(size=(4, 6)))
INPUTS = {
    "zeros": as_scaled(jnp.float16(DATA * 0)),
    "zeros at 1": ScaledArray(jnp.float16(DATA * 0), 1.0),
    "normal": as_scaled(jnp.float16(DATA)),
    "far": ScaledArray(jnp.float16(np.copysign(np.abs(DATA) + 0.2, DATA)), 2.0**12),
}
VANISHING = {
    "gaussian": lambda x: jnp.exp(-x * x),
    "exponential": lambda x: jnp.exp(-jnp.abs(x) * 9 - 30),
    "erfc": lambda x: lax.erfc(jnp.abs(x) * 9),
    "softplus": lambda x: nn.softplus(-jnp.abs(x) * 9 - 30),
    "expm1": lambda x: jnp.expm1(x - x),
    "cube": lambda x: x**3,
    "product": lambda x: jnp.prod(x - x, 1),
    "difference": lambda x: x - x,
    "kernel": lambda x: jnp.exp(-jnp.sum((x[:, None] - x[None] - 50) ** 2, -1) / 2),
    "rows": lambda x: lax.map(lambda row: jnp.exp(-row * row), x),
    "rescaled": lambda x: rescale(x - x),
}
SATURATING = [jnp.tanh, lax.erf, jnp.arctan, nn.sigmoid, lambda x: jnp.clip(x, -1, 1)]


def check(f, x, **tolerance):
    wanted = jax.jit(f)(unscale(x, jnp.float32))
    for way in (scalify(f), jax.jit(scalify(f))):
        got = np.float32(unscale(way(x), jnp.float32))
        np.testing.assert_allclose(got, wanted, rtol=2.0**-8, **tolerance)


@pytest.mark.parametrize("factor", [4.1, 1e3, 1e12])
@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", VANISHING)
def test_zeros_times_a_number(name, x, factor):
    """XLA multiplies the number and the reciprocal of the zeros' size first."""
    f = VANISHING[name]
    largest = np.max(np.abs(jax.jit(f)(unscale(x, jnp.float32)))) * factor
    check(lambda x: rescale(f(x) * factor), x, atol=2.0**-8 * largest)


@pytest.mark.parametrize("f", SATURATING)
@pytest.mark.parametrize("values", [[-np.inf, np.inf], [0, np.inf], [2.0**-20, -np.inf]])
def test_bounded_functions_of_infinities(f, values):
    check(f, as_scaled(jnp.float16(values)), atol=2.0**-24)


@pytest.mark.parametrize("name", ["zeros", "normal", "far"])
def test_a_small_number_in_float32_goes_back_to_float16(name):
    """Zeros have a scale far below the number that they are added to."""

    def f(x):
        squares = jnp.float32(x * x) + 1e-6
        return squares.astype(x.dtype) @ jnp.ones((6, 2), x.dtype)

    check(f, INPUTS[name])
