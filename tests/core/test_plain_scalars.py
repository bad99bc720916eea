"""Plain scalars beside scaled arrays: learning rates, counts and steps of a training program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from ways import ways

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
VALUES = np.float32([1, 2, 0.5, -3])


def array(dtype, scale=1.0):
    return ScaledArray(jnp.asarray(VALUES, dtype), scale)


@ways
@dtypes
@pytest.mark.parametrize("rate", [1e-12, 1e-9, 3e-3, 1e6, 1e12])
def test_a_rate_may_be_beyond_the_dtype_it_is_cast_to(way, dtype, rate):
    step = way(scalify(lambda x, rate: x * rate.astype(x.dtype)))
    got = np.float32(step(array(dtype, 2.0**-20), jnp.float32(rate)))
    np.testing.assert_allclose(got, VALUES * rate * 2.0**-20, rtol=2 * float(jnp.finfo(dtype).eps))


@ways
@dtypes
def test_a_count_may_be_beyond_the_dtype_it_is_cast_to(way, dtype):
    mean = way(scalify(lambda x, mask: x / jnp.sum(mask).astype(x.dtype)))
    got = np.float32(mean(array(dtype), jnp.ones(100_000, jnp.int32)))
    np.testing.assert_allclose(got, VALUES / 1e5, rtol=2 * float(jnp.finfo(dtype).eps))


@ways
@dtypes
@pytest.mark.parametrize("scale", [1.0, 2.0**10])
def test_a_power_by_a_traced_integer(way, dtype, scale):
    power = way(scalify(lambda x, n: lax.pow(x, n)))
    x, rtol = array(dtype, scale), 4 * float(jnp.finfo(dtype).eps)
    wanted = VALUES * np.float32(scale)
    np.testing.assert_allclose(np.float32(power(x, jnp.int32(3))), wanted**3, rtol=rtol)
    powers, wanted = np.float32(power(x, jnp.arange(4))), wanted ** np.arange(4)
    np.testing.assert_allclose(powers, wanted, rtol=rtol, atol=2.0**-24 * np.abs(wanted).max())


@ways
def test_bias_correction_in_float16(way):
    def corrected(x, decay, n):
        return x / (1 - decay.astype(x.dtype) ** n)

    with jax.numpy_dtype_promotion("standard"):
        got = way(scalify(corrected))(array(jnp.float16), jnp.float32(0.9), jnp.int32(3))
    np.testing.assert_allclose(np.float32(got), VALUES / (1 - 0.9**3), rtol=2e-3)


def test_injected_hyperparameters():
    optimizer = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.125, 0.25, 8), 0.5)

    def update(state, x):
        weights, moments = state
        gradient = jax.grad(lambda w: jnp.mean(jnp.square(w * x - 1)))(weights)
        updates, moments = optimizer.update(gradient, moments, weights)
        return optax.apply_updates(weights, updates), moments

    def trained(wrap, state):
        step = jax.jit(wrap(update))
        for _ in range(6):
            state = step(state, jnp.asarray(VALUES) / 4)
        return np.float32(unscale(state[0]))

    with jax.numpy_dtype_promotion("standard"):
        state = jnp.asarray(VALUES), optimizer.init(jnp.asarray(VALUES))
        ours, plain = trained(scalify, as_scaled(state)), trained(lambda f: f, state)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


@ways
@pytest.mark.parametrize("copy", [jnp.copy, lambda x: x.astype(jnp.float16)])
def test_copies_that_are_returned_are_buffers_of_their_own(way, copy):
    f = way(scalify(lambda x, plain: (x, copy(plain), copy(plain))))
    _, first, second = f(array(jnp.float32), jnp.arange(4.0))
    both = jax.jit(lambda a, b: (a + 1, b + 1), donate_argnums=(0, 1))(first, second)
    np.testing.assert_array_equal(np.float32(both), [[1, 2, 3, 4]] * 2)
