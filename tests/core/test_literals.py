"""Numbers in a program are split before a 16-bit dtype can lose them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ways import ways

from scalify_cli.core import ScaledArray, as_scaled, scalify

halves = pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
VALUES = np.float32([1, 2, 0.5, -3])


@ways
@halves
@pytest.mark.parametrize("exponent", [-40, -30, -27, -10, 0])
def test_adams_epsilon(way, dtype, exponent):
    def f(x):
        return x / (jnp.sqrt(x * x) + 1e-8)

    got = np.float32(way(scalify(f))(ScaledArray(jnp.asarray(VALUES, dtype), 2.0**exponent)))
    np.testing.assert_allclose(got, f(VALUES * 2.0**exponent), rtol=4 * jnp.finfo(dtype).eps)


@ways
@halves
@pytest.mark.parametrize("number", [1e-8, 3e-20, 1e6, 3e20, -7e-9])
def test_numbers_beyond_float16(way, dtype, number):
    x = ScaledArray(jnp.asarray(VALUES, dtype), 2.0**-3)
    unit = float(jnp.finfo(dtype).eps)
    for f in (lambda x: x * number, lambda x: x / number, lambda x: (x + number) - x * 0):
        got = np.float32(way(scalify(f))(x))
        wanted = f(VALUES / 8)
        np.testing.assert_allclose(got, wanted, rtol=2 * unit, atol=2 * unit * np.abs(wanted).max())


@ways
def test_inside_called_functions_and_loops(way):
    def f(x):
        inner = jax.jit(lambda y: y * 1e-8)
        total, _ = jax.lax.scan(lambda c, y: (c + y * 1e-8, None), jnp.zeros_like(x[0]), x)
        return inner(x), total, jnp.clip(x * 1e-9, 0, 1e-9) * 1e8

    x = ScaledArray(jnp.float16([1, 2, 4]), 1.0)
    product, total, clipped = way(scalify(f))(x)
    np.testing.assert_allclose(np.float32(product), np.float32([1e-8, 2e-8, 4e-8]), rtol=2e-3)
    np.testing.assert_allclose(np.float32(total), 7e-8, rtol=2e-3)
    np.testing.assert_allclose(np.float32(clipped), 0.1, rtol=2e-3)


@ways
def test_a_program_that_depends_on_its_dtype_still_runs(way):
    def f(x):
        half = x.dtype == jnp.float16
        y = x * 1e-8 if half else jnp.sin(x)
        return y * jnp.asarray(2, x.dtype), jnp.zeros(2, x.dtype)

    x = ScaledArray(jnp.float16([1, 2]), 1.0)
    got, zeros = way(scalify(f))(x)
    assert got.dtype == jnp.float16
    assert got.shape == (2,)
    assert np.float32(zeros).tolist() == [0, 0]


@ways
def test_arithmetic_of_numbers_is_folded_in_float32(way):
    def f(x):
        tiny = jnp.full((), 1e-8, x.dtype)
        return x * (tiny * 1e-4) / tiny

    got = np.float32(way(scalify(f))(ScaledArray(jnp.float16([1, 2]), 1.0)))
    np.testing.assert_allclose(got, [1e-4, 2e-4], rtol=4e-3)


@ways
def test_an_optimizers_epsilon_where_casts_reorder_the_program(way):
    """The gradient of a norm in float32 has other equations in another order than plain FP16's."""
    optimizer = optax.rmsprop(0.125)

    def norm(x):
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(jnp.square(centred).mean(-1) + 1e-5)).astype(x.dtype)

    def update(state, x):
        weights, moments = state

        def loss(weights):
            y = x * weights["used"]
            y = y + norm(y) * 3
            return jnp.mean(jax.nn.gelu(norm(y)))

        updates, moments = optimizer.update(jax.grad(loss)(weights), moments, weights)
        return optax.apply_updates(weights, updates), moments

    weights = {"used": jnp.float16([1, 2, 0.5, -3]), "unused": jnp.ones(3, jnp.float16)}
    state = as_scaled((weights, optimizer.init(weights)))
    new, _ = way(scalify(update))(state, as_scaled(jnp.float16([1, -2, 0.5, 3])))
    np.testing.assert_array_equal(np.float32(new["unused"]), 1)  # 0 / (0 + ε), not 0 / 0
    assert np.isfinite(np.float32(new["used"])).all()


@ways
def test_beside_numbers_that_follow_the_dtype(way):
    @jax.jit
    def f(x, y):
        share = y / (jnp.abs(y) + jnp.finfo(y.dtype).eps)
        return x / (jnp.abs(x) + 1e-8) + 0 * share

    x = ScaledArray(jnp.float16(VALUES), 2.0**-30)
    got = np.float32(way(scalify(f))(x, ScaledArray(jnp.ones(4, jnp.float16), 1.0)))
    true = VALUES * 2.0**-30
    np.testing.assert_allclose(got, true / (np.abs(true) + 1e-8), rtol=4e-3)


@ways
@pytest.mark.parametrize("error", [AssertionError, KeyError, NotImplementedError])
def test_a_program_that_refuses_other_dtypes_still_runs(way, error):
    def f(x):
        if x.dtype != jnp.float16:
            raise error(x.dtype)
        return x + 1e-8

    got = way(scalify(f))(ScaledArray(jnp.float16(VALUES), 1.0))
    np.testing.assert_array_equal(np.float32(got), VALUES)
