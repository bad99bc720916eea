"""``rescale``: the same values, with a scale measured from the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalify_cli.core import ScaledArray, rescale, rescale_cotangent, scalify, unscale

NORMS = {
    "l2": lambda x: np.sqrt(np.mean(np.square(x))),
    "l1": lambda x: np.mean(np.abs(x)),
    "max": lambda x: np.max(np.abs(x)),
}
VALUES = np.float32([3, -5, 0.5, 100, 0])


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("exponent", [-60, 0, 60])
@pytest.mark.parametrize("norm", NORMS)
def test_the_norm_of_the_data_comes_into_one_to_two(norm, exponent, dtype, compile):
    x = ScaledArray(jnp.asarray(VALUES, dtype), 2.0**exponent)
    f = scalify(lambda x: rescale(x, norm))
    got = (jax.jit(f) if compile else f)(x)
    assert 1 <= NORMS[norm](np.float64(got.data)) < 2
    assert got.dtype == dtype
    np.testing.assert_array_equal(*map(np.asarray, (unscale((got, x), jnp.float32))))


def test_headroom_lifts_the_data():
    got = scalify(lambda x: rescale(x, "max", headroom=14))(ScaledArray(jnp.float16(VALUES), 4.0))
    assert 2**14 <= np.max(np.abs(np.float32(got.data))) < 2**15


@pytest.mark.parametrize("norm", NORMS)
def test_zeros_take_a_scale_that_moves_no_other(norm):
    for dtype, lowest in ((jnp.float16, 2.0**-126), (jnp.float32, 2.0**-96)):
        zeros = ScaledArray(jnp.zeros(2, dtype), 8.0)
        got = jax.jit(scalify(lambda x: rescale(x, norm)))(zeros)
        np.testing.assert_array_equal(got.data, [0, 0])
        assert float(got.scale) == lowest


@pytest.mark.parametrize("values", [[np.nan, 1], [np.inf, 1], [-np.inf, 0]])
@pytest.mark.parametrize("norm", NORMS)
def test_what_has_no_finite_norm_stays_as_it_is(norm, values):
    x = ScaledArray(jnp.float32(values), 8.0)
    got = jax.jit(scalify(lambda x: rescale(x, norm)))(x)
    np.testing.assert_array_equal(got.data, x.data)
    assert float(got.scale) == 8


@pytest.mark.parametrize("value", [2.0**127, -(2.0**127), 2.0**-126])
def test_the_ends_of_float32(value):
    got = scalify(lambda x: rescale(x, "max"))(ScaledArray(jnp.float32([value]), 1.0))
    np.testing.assert_array_equal(unscale(got), np.float32([value]))


def test_outside_the_transform_it_does_nothing():
    tree = {"a": jnp.asarray(VALUES), "b": [jnp.ones(2)]}
    got = jax.jit(rescale)(tree)
    jax.tree.map(np.testing.assert_array_equal, got, tree)
    np.testing.assert_array_equal(jax.grad(lambda x: rescale(x).sum())(jnp.ones(3)), np.ones(3))
    np.testing.assert_array_equal(jax.vmap(rescale)(jnp.ones((2, 3))), np.ones((2, 3)))


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match=r"unknown norm 'l3'; choose from l2, l1, max"):
        rescale(jnp.ones(2), "l3")


def test_the_cotangent_is_rescaled_and_the_value_is_not():
    def f(x, y):
        return jax.value_and_grad(lambda x: jnp.sum(rescale_cotangent(x, "max") * y))(x)

    x = ScaledArray(jnp.float16([3.0, 3.0]), 2.0**-5)
    y = ScaledArray(jnp.float16([0.125, 0.25]), 2.0**40)
    value, gradient = jax.jit(scalify(f))(x, y)
    np.testing.assert_array_equal(np.float32(value), 9 / 8 * 2.0**35)
    np.testing.assert_array_equal(np.float32(gradient.data), [0.5, 1])
    assert float(gradient.scale) == 2.0**38


@pytest.mark.parametrize("compile", [False, True])
def test_zeros_far_above_move_no_other(compile):
    f = scalify(lambda x, y: rescale(x) + y * 2.0**-27)
    zeros = ScaledArray(jnp.zeros(4, jnp.float16), 2.0**60)
    y = ScaledArray(jnp.float16([1, 2, 0.5, -3]), 2.0**-60)
    got = (jax.jit(f) if compile else f)(zeros, y)
    np.testing.assert_array_equal(np.float64(got) * 2.0**87, [1, 2, 0.5, -3])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_rescaled_enters_a_convolution(dtype):
    x, kernel = jnp.ones((1, 2, 4), dtype), jnp.ones((3, 2, 2), dtype)
    f = lambda x, kernel: jax.lax.conv(rescale(x), kernel, (1,), "VALID")  # noqa: E731
    got = scalify(f)(ScaledArray(x, 2.0**-30), ScaledArray(kernel, 1.0))
    np.testing.assert_array_equal(unscale(got, jnp.float32) * 2.0**30, np.full((1, 3, 3), 4))
