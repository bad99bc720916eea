"""Elements of an array equal themselves, whatever they and the array are stored in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ways import ways

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

X, B = np.float32([0.3, 0.7, 1.1, 1.9]), np.float32([0.1, 0.2, 0.3, 0.7])
FLOATS = [jnp.float16, jnp.float8_e5m2, jnp.float32]


def weights(dtype):
    return jnp.eye(4, dtype=dtype)


LAYERS = {
    "relu": lambda h: jnp.maximum(h, 0),
    "relu of a layer": lambda h: jnp.maximum(h @ weights(h.dtype), 0),
    "leaky relu": lambda h: jnp.maximum(h, 0.01 * h),
    "hinge": lambda h: jnp.maximum(1 - 0.3 * h, 0),
    "relu6": lambda h: jnp.minimum(jnp.maximum(h, 0), 6),
    "clip": lambda h: jnp.clip(h, 0.5, 1.2),
    "maxout": lambda h: jnp.repeat(h.reshape(2, 2).max(-1), 2),
    "minout": lambda h: jnp.tile(jnp.min(h.reshape(2, 2), 0), 2),
    "norm": lambda h: h / jnp.maximum(jnp.linalg.norm(h), 1e-3),
    "largest update": lambda h: h.at[0].max(h[1]),
    "loop": lambda h: lax.fori_loop(0, 2, lambda _, c: jnp.maximum(c * 1.1, c + 0.1), h),
    "rematerialised": jax.checkpoint(lambda h: jnp.maximum(h, 0)),
}


@ways
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_what_a_matmul_reads(way, name, dtype):
    def gradient(x, b):
        loss = lambda b: jnp.sum(LAYERS[name](x * 1.1 + b) @ weights(b.dtype))  # noqa: E731
        return jax.grad(loss)(b)

    x, b = (jnp.asarray(v, dtype) for v in (X, B))
    wanted = gradient(x.astype(jnp.float32), b.astype(jnp.float32))
    found = unscale(way(scalify(gradient))(*as_scaled((x, b), 1.0)), jnp.float32)
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found, wanted, rtol=8 * unit, atol=8 * unit)


@ways
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.__name__)
def test_an_array_is_compared_with_its_own_elements(way, dtype):
    def f(x, w):
        y = x * 1.1
        most, least = jnp.max(y, -1, keepdims=True), jnp.min(y, -1, keepdims=True)
        inside = jnp.clip(y, 0.5, 1.2)
        masks = y == most, most == y, y >= least, y > most, inside == y
        return masks, (most @ w, least @ w, inside @ w.T)

    x, w = jnp.asarray([[0.3, 0.7], [1.3, 0.9]], dtype), jnp.ones((1, 2), dtype)
    masks, _ = way(scalify(f))(*as_scaled((x, w), 1.0))
    wanted, _ = f(x, w)
    jax.tree.map(np.testing.assert_array_equal, masks, wanted)


@ways
@pytest.mark.parametrize("exponent", [-30, -16, -8, 8])
def test_elements_that_are_stored_at_the_scale_of_larger_ones(way, exponent):
    def gradient(x, y, w):
        def loss(x):
            h = jnp.maximum(x, y)
            return jnp.sum((h @ w) * h) + jnp.sum(h) + jnp.sum(x.at[3].max(y[3]) @ w)

        return jax.grad(loss)(x)

    x = ScaledArray(jnp.float16([1.1, 0.7, 1.3, -0.3]), 2.0**exponent)
    y, w = as_scaled((jnp.float16([-1, -0.5, -2, 1]), weights(jnp.float16)), 1.0)
    wanted = gradient(*(unscale(v, jnp.float32) for v in (x, y, w)))
    found = unscale(way(scalify(gradient))(x, y, w), jnp.float32)
    np.testing.assert_allclose(found, wanted, rtol=2.0**-9, atol=2.0**-10)


H = jnp.float16
M = H([[-3.1, 2.3, 0.4], [7, 0.9, 1.3], [0.2, 5, 0.6]])
V = np.float32([-9.3, 2.3, 0.4, 7])


def twice(f):
    """The largest of something, and that something made again."""
    return lambda x: ((f(x) == f(x).max(-1, keepdims=True)).sum(), f(x).max(-1) @ x)


def pair(x):
    y = x * 1.1
    return y, y.max()


def equal(pair, x):
    y, most = pair
    return (y == most).sum(), y @ x


EQUAL = {
    "made again": twice(lambda x: jnp.abs(x * 1.1)),
    "softmax made again": twice(lambda x: jax.nn.softmax(x @ M.astype(x.dtype))),
    "another shape": lambda x: (
        ((x * 1.1)[:, None] == (x * 1.1).max(-1)[:, None, None]).sum(),
        (x * 1.1).max(-1) @ x,
    ),
    "another dtype": lambda x: (
        ((x * 1.1).astype("float32") == (x * 1.1).max().astype("float32")).sum(),
        (x * 1.1).max(-1) @ x,
    ),
    "the largest of the largest": lambda x: (
        ((x * 1.1) == (x * 1.1).max(-1).max()).sum(),
        (x * 1.1).max(-1) @ x,
    ),
    "a call": lambda x: equal(jax.jit(pair)(x), x),
    "a branch": lambda x: equal(lax.cond(x[0, 1] > 0, pair, lambda x: (x, x.max()), x), x),
    "negatives": lambda x: ((x * 1.1 <= -(-x * 1.1).max()).sum(), (x * 1.1) @ x),
    "halves": lambda x: ((x * 1.1 * 2 / 2 == x * 1.1).sum(), (x * 1.1 * 2) @ x),
}


@ways
@pytest.mark.parametrize("name", EQUAL)
def test_what_is_equal_in_its_dtype_is_equal(way, name):
    found, _ = way(scalify(EQUAL[name]))(as_scaled(M))
    assert int(found) == int(EQUAL[name](M)[0]) == int(EQUAL[name](M.astype(jnp.float32))[0])


SHIFTED = {
    "larger": lambda x: jnp.maximum(x, 0) * 2 - 1,
    "largest": lambda x: x.max() * 4 - 1,
    "smaller": lambda x: x - 2 * jnp.minimum(x, 1),
    "clip": lambda x: jnp.clip(x, -2, 2) * 0.5 - 0.5,
    "compared": lambda x: (jnp.maximum(x, 1) * 2 == x) | (x.max() * 2 == x),
    "division": lambda x: jnp.floor_divide(x, 0.5),
    "gradient": jax.grad(lambda x: jnp.sin(jnp.maximum(x, 0) * 2 - 1).sum()),
    "rows": lambda x: lax.map(lambda row: jnp.maximum(row * row.sum(), 0), x[:, None]) - 0.5,
    "rows compared": lambda x: (lax.map(lambda row: jnp.maximum(row, 0), x[:, None]) > 0).sum(),
}


@ways
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", SHIFTED)
def test_what_becomes_of_what_is_picked(way, name, dtype):
    x = jnp.asarray(V, dtype)
    wanted = SHIFTED[name](x.astype(jnp.float32))
    found = np.float32(unscale(way(scalify(SHIFTED[name]))(as_scaled(x))))
    np.testing.assert_allclose(found, np.float32(wanted), rtol=2.0**-8, atol=2.0**-8)


@ways
def test_a_mask_and_what_it_masks(way):
    def entropy(x, weights):
        share = jnp.where(x < 99, jax.nn.softmax(x), 0)
        return jnp.where(share > 0, share * jnp.log(share), 0).sum(), (share @ weights).sum()

    found = way(scalify(entropy))(*as_scaled((H([[0, -20, 1]]), M)))
    wanted = entropy(np.float32([[0, -20, 1]]), M.astype(jnp.float32))
    np.testing.assert_allclose(unscale(found, jnp.float32), wanted, rtol=2.0**-8)


def compensated(values):
    """Kahan's sum."""

    def add(carry, value):
        total, lost = carry
        value = value - lost
        new = total + value
        return (new, (new - total) - value), None

    return lax.scan(add, (values[0] * 0, values[0] * 0), values)[0][0]


def first_of_the_largest(values):
    def step(carry, row):
        most, index = carry
        value = row[0] * 1.1
        return (jnp.where(value > most, value, most), jnp.where(value > most, row[1], index)), None

    return lax.scan(step, (values[0] * 0, -1), (values, jnp.arange(len(values))))[0][1]


def changes(values):
    def step(last, value):
        new = jnp.round(value / 0.1) * 0.1
        return new, new != last

    return lax.scan(step, values[0] * 0, values)[1]


@ways
def test_loops_that_read_what_they_round(way):
    total = way(scalify(compensated))(as_scaled(jnp.full(3000, 0.1, H)))
    np.testing.assert_allclose(float(unscale(total)), 3000 * float(H(0.1)), rtol=2.0**-10)
    assert int(way(scalify(first_of_the_largest))(as_scaled(H([1.7, 1.7, 1.7])))) == 0
    values = H([0.31, 0.3, 0.29, 0.5, 0.52, 0.7, 0.7])
    np.testing.assert_array_equal(way(scalify(changes))(as_scaled(values)), changes(values))


@pytest.mark.parametrize("number", [5, 7, 8.3, 1.7, 0.1])
def test_bisection_ends(number):
    def halvings(number):
        middle = lambda s: (s[0] + s[1]) / 2  # noqa: E731

        def going(s):
            return (middle(s) != s[0]) & (middle(s) != s[1]) & (s[2] < 99)

        def halve(s):
            m = middle(s)
            below = m * m < number
            return jnp.where(below, m, s[0]), jnp.where(below, s[1], m), s[2] + 1

        return lax.while_loop(going, halve, (number * 0, number + 1, 0))

    low, _, count = jax.jit(scalify(halvings))(as_scaled(H(number)))
    assert int(count) <= 14
    np.testing.assert_allclose(float(unscale(low)), float(H(number)) ** 0.5, rtol=2.0**-9)


RETURNED = {
    "a choice": lambda new, old: jnp.where(jnp.isfinite(new), new, old),
    "the larger": lambda new, old: jnp.maximum(new, 0),
    "another shape": lambda new, old: new.reshape(4),
    "a cast": lambda new, old: new.astype(jnp.float32).astype(new.dtype),
    "a call": lambda new, old: jax.jit(lambda x: x + 0)(new),
    "damped": lambda new, old: 0.5 * new + 0.5 * old,
}


@pytest.mark.parametrize("name", RETURNED)
def test_a_loop_that_returns_what_it_made_of_the_new_value_ends(name):
    def count(x):
        def body(state):
            new = jnp.tanh(state[0] * x + 0.1) * 0.9
            changed = jnp.abs(new - state[0]).max() > 0
            return RETURNED[name](new, state[0]), changed, state[2] + 1

        return lax.while_loop(lambda s: s[1] & (s[2] < 99), body, (x, True, 0))[2]

    x = H([0.31, 0.53, 0.77, 1.3])
    assert int(jax.jit(scalify(count))(as_scaled(x))) <= 2 * int(count(x))


LOST = {
    "a call": lambda total, old, value: jax.jit(lambda t, c, y: (t - c) - y)(total, old, value),
    "negatives": lambda total, old, value: -((-total + old) + value),
    "casts": lambda total, old, value: (
        (total.astype("float32") - old.astype("float32")).astype(total.dtype) - value
    ),
}


@ways
@pytest.mark.parametrize("name", LOST)
def test_what_a_sum_has_lost(way, name):
    def add(carry, value):
        value = value - carry[1]
        total = carry[0] + value
        return (total, LOST[name](total, carry[0], value)), None

    sums = lambda v: lax.scan(add, (v[0] * 0, v[0] * 0), v)[0][0]  # noqa: E731
    total = way(scalify(sums))(as_scaled(jnp.full(3000, 0.1, H)))
    np.testing.assert_allclose(float(unscale(total)), 3000 * float(H(0.1)), rtol=2.0**-10)


@pytest.mark.parametrize("factor", [0.3, 0.5])
def test_a_carry_vanishes(factor):
    falls = lambda s: (s[0] * factor, s[1] + 1)  # noqa: E731
    count = lambda x: lax.while_loop(lambda s: (s[0] > 0) & (s[1] < 300), falls, (x, 0))[1]  # noqa: E731
    assert int(jax.jit(scalify(count))(as_scaled(H(1)))) < 130
