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
    wanted, _ = f(x.astype(jnp.float32), w.astype(jnp.float32))
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
