"""``tap`` makes a value visible and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from scalify_cli.core import ScaledArray, scalify, tap, tap_p, unscale

X = jnp.float32([1, 2, 3])


def named(x):
    return tap(jnp.sin(x), "wave") * 2


def test_it_is_the_identity_under_every_transform():
    np.testing.assert_array_equal(tap(X, "x"), X)
    np.testing.assert_array_equal(jax.jit(named)(X), jnp.sin(X) * 2)
    np.testing.assert_allclose(jax.vmap(named)(X), jnp.sin(X) * 2, rtol=1e-6)
    gradient = jax.grad(lambda x: named(x).sum())(X)
    np.testing.assert_allclose(gradient, 2 * jnp.cos(X), rtol=1e-6)


def test_rounded_values_are_what_goes_on():
    x, rounded = jnp.float32([1.1]), jnp.float32([1.0])
    np.testing.assert_array_equal(tap(x, "x", rounded, "e4m3"), rounded)
    gradient = jax.grad(lambda r: tap(x, "x", r, "e4m3").sum())(rounded)
    np.testing.assert_array_equal(gradient, [1])


def test_it_keeps_scales_and_carries_the_exponent():
    x = ScaledArray(jnp.float16([1, 2]), 2.0**-30)
    jaxpr = jax.make_jaxpr(scalify(lambda x: tap(x * x, "square")))(x).jaxpr
    (equation,) = [e for e in jaxpr.eqns if e.primitive is tap_p]
    assert equation.params["name"] == "square"
    rounded, data, exponent = equation.invars
    assert rounded.aval.dtype == data.aval.dtype == jnp.float16
    assert (exponent.aval.shape, exponent.aval.dtype) == ((), jnp.int32)
    got = scalify(lambda x: tap(x * x, "square"))(x)
    assert float(got.scale) == 2.0**-60
    np.testing.assert_array_equal(unscale(got, jnp.float32), np.float32([1, 4]) * 2.0**-60)


def test_names_survive_grad_scan_and_jit():
    def loss(x):
        return lax.scan(lambda c, y: (tap(c * y, "product"), None), 1.0, x)[0]

    text = str(jax.make_jaxpr(jax.jit(jax.grad(loss)))(X))
    assert "name=product" in text


def test_compiled_programs_hold_nothing_of_it():
    def instructions(f):
        text = jax.jit(f).lower(X).compile().as_text()
        return sorted(word for word in text.split() if word.startswith("f32[3]"))

    assert instructions(named) == instructions(lambda x: jnp.sin(x) * 2)
    assert "custom-call" not in jax.jit(named).lower(X).compile().as_text()
