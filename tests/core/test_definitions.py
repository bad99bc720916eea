"""Functions whose own way of computing would lose what the scales keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalify_cli.core import ScaledArray, scalify, unscale

DATA = np.float16([0.25, -1.5, 3, 1, -0.75])
FUNCTIONS = {
    "hypot": jnp.hypot,
    "derivative of hypot": lambda x, y: jax.grad(lambda x: jnp.sum(jnp.hypot(x, y)))(x),
    "polynomial": lambda x, y: jnp.polyval(jnp.asarray([1, 0.5, 0], x.dtype), x) + y,
    "1 - x²": lambda x, y: jax.jvp(jnp.atanh, (x,), (y,))[1],
}


@pytest.mark.parametrize("exponent", [0, 12, 30])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float16_keeps_what_float32_has(name, exponent):
    xs = [ScaledArray(jnp.asarray(x), 2.0**exponent) for x in (DATA, DATA[::-1])]
    wanted = FUNCTIONS[name](*unscale(xs, jnp.float32))
    for function in (scalify(FUNCTIONS[name]), jax.jit(scalify(FUNCTIONS[name]))):
        got = unscale(function(*xs), jnp.float32)
        np.testing.assert_allclose(got, wanted, rtol=2.0**-8)


def test_zeros_and_infinities_are_those_of_plain_float16():
    x, y = jnp.float16([0, 0, jnp.inf, -jnp.inf, jnp.nan, 2]), jnp.float16([0, 3, 1, jnp.nan, 1, 0])
    got = scalify(jnp.hypot)(ScaledArray(x, 1.0), ScaledArray(y, 1.0))
    np.testing.assert_array_equal(unscale(got), jnp.hypot(x, y))


def test_a_function_of_the_same_name_is_its_own():
    @jax.custom_jvp
    def _hypot(x, y):
        return x - y, x, y

    _hypot.defjvp(lambda primals, tangents: (_hypot(*primals), _hypot(*tangents)))
    x, y = (ScaledArray(jnp.float32([3, 4]), 0.5) for _ in range(2))
    np.testing.assert_array_equal(unscale(scalify(_hypot)(x, y)[0]), [0, 0])
