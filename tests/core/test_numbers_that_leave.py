"""Numbers known inside a body say nothing of what is read outside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli import as_scaled, scalify, unscale

X = np.float32([1, 2, 3, 4])
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def taken(number):
    """What a branch returns where another one returns a number."""

    def of(x):
        constant = lambda: jnp.full_like(x, number)  # noqa: E731
        return lax.cond(jnp.sum(x) > 0, lambda: x * 0.5, constant)

    return of


def not_taken(x):
    return lax.switch(jnp.int32(x[0]) + 1, [lambda: x, lambda: x * 3, lambda: jnp.full_like(x, 2)])


def stacked(x):
    return lax.scan(lambda c, _: (c * 0.5, jnp.full_like(c, 2)), x, None, length=3)[1][1]


def rematerialised(x):
    return jax.checkpoint(lambda x: (jnp.sin(x), jnp.full_like(x, 2)))(x)[1]


def carried(x):
    start = (jnp.zeros_like(x), jnp.ones_like(x))
    return lax.while_loop(lambda c: c[0][0] < 2, lambda c: (c[1] * 2, c[1]), start)[0]


def never(x):
    """Of a loop that makes no iteration."""
    start = jnp.zeros_like(x) + 0 * x
    return lax.while_loop(lambda c: c[0] > 9, lambda c: jnp.full_like(c, 2), start)


SOURCES = {
    **{f"cond, {n}": taken(n) for n in (0, 1, 2, 0.5, 1e-6)},
    **{f.__name__: f for f in (not_taken, stacked, rematerialised, carried, never)},
}
USES = {
    "times": lambda x, y: x * y,
    "times the negative": lambda x, y: x * -y,
    "times the magnitude": lambda x, y: x * abs(-y),
    "times it reversed": lambda x, y: x * y[::-1] + y,
    "over": lambda x, y: x / (y + 3),
    "over it alone": lambda x, y: jnp.where(y != 0, x / y, 0),
    "to the power": lambda x, y: x**y,
    "square": lambda x, y: x * jnp.square(y),
    "larger": lambda x, y: jnp.maximum(x, y) * 2,
    "sum": lambda x, y: x + y,
    "times it rounded": lambda x, y: x * jnp.round(y * 4),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", SOURCES)
def test_what_leaves_a_body_is_read_as_it_is(source, dtype):
    def update(x):
        return [use(x, SOURCES[source](x)) for use in USES.values()]

    x = as_scaled(jnp.asarray(X, dtype))
    wanted = update(unscale(x, jnp.float32))
    for f in (scalify(update), jax.jit(scalify(update))):
        for use, got, own in zip(USES, unscale(f(x), jnp.float32), wanted, strict=True):
            np.testing.assert_allclose(got, own, rtol=2e-2, atol=1e-6, err_msg=use)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_is_clipped_by_a_branch(dtype):
    def clipped(x):
        norm = jnp.linalg.norm(x)
        one = lambda: jnp.ones((), x.dtype)  # noqa: E731
        return x * lax.cond(norm > 1, lambda: 1 / norm, one)

    got = unscale(jax.jit(scalify(clipped))(as_scaled(jnp.asarray(X, dtype))), jnp.float32)
    np.testing.assert_allclose(got, X / np.linalg.norm(X), rtol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_go_through_a_branch_that_returns_zeros(dtype):
    def loss(x):
        return jnp.sum(lax.cond(x[0] > 0, lambda: x**3, lambda: jnp.zeros_like(x)) * x)

    got = scalify(jax.grad(loss))(as_scaled(jnp.asarray(X, dtype)))
    np.testing.assert_allclose(unscale(got, jnp.float32), 4 * X**3, rtol=2e-2)
