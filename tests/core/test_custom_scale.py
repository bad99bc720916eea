"""``custom_scale``: a rule of one's own, under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ways import ways

from scalify_cli.core import ScaledArray, custom_scale, is_scaled, rescale, scalify, unscale

X = ScaledArray(jnp.float16([1, -2, 3]), 2.0**-30)


@custom_scale
def gated(x, y, power=1):
    """x times a gate of y."""
    return x * jax.nn.sigmoid(y) ** power


@gated.def_rule
def gated_rule(x, y, power=1):
    gate = jax.nn.sigmoid(unscale(y, jnp.float32)) ** power
    return ScaledArray((x.data.astype(jnp.float32) * gate).astype(x.dtype), x.scale)


def test_without_scalify_it_is_the_function():
    x, y = jnp.float32([1, 2]), jnp.float32([3, -4])
    wanted = gated.function(x, y, power=2)
    for f in (lambda: gated(x, y, power=2), jax.jit(lambda: gated(x, y, power=2))):
        np.testing.assert_allclose(f(), wanted, rtol=1e-6)
    assert gated.__doc__ == "x times a gate of y."


@pytest.mark.parametrize("compile", [False, True])
def test_the_rule_decides_the_scale(compile):
    f = scalify(lambda x, y: gated(x, y, power=2) * 2)
    got = (jax.jit(f) if compile else f)(X, ScaledArray(jnp.float16([0, 0, 0]), 1.0))
    assert float(got.scale) == 2.0**-29
    np.testing.assert_array_equal(np.float32(got.data), [0.25, -0.5, 0.75])


def test_a_static_scale_that_passes_through_stays_static():
    jaxpr = jax.make_jaxpr(lambda: scalify(lambda x: gated(x, x) + x)(X).data)().jaxpr
    exponents = [e for e in jaxpr.eqns if e.outvars[0].aval.dtype == jnp.int32]
    assert exponents == []


def test_derivatives_and_batches():
    x, y = jnp.float32([[1, 2], [3, 4]]), jnp.float32([[0, 1], [-1, 2]])
    gradients = jax.grad(lambda *xs: gated(*xs).sum(), (0, 1))(x, y)
    wanted = jax.grad(lambda *xs: gated.function(*xs).sum(), (0, 1))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradients, wanted)
    np.testing.assert_allclose(jax.vmap(gated)(x, y), gated(x, y), rtol=1e-6)
    mixed = jax.vmap(gated, (0, None))(x, y[0])
    np.testing.assert_allclose(mixed, gated.function(x, y[0][None]), rtol=1e-6)


def test_batches_and_derivatives_under_scalify():
    rows = ScaledArray(jnp.stack([X.data, X.data]), X.scale)
    got = scalify(jax.vmap(lambda row: gated(row, row)))(rows)
    assert float(got.scale) == 2.0**-30
    np.testing.assert_array_equal(np.float32(got.data), np.float32(rows.data) / 2)
    value, gradient = scalify(jax.value_and_grad(lambda x: gated(x, x).sum()))(X)
    np.testing.assert_allclose(float(np.float32(value)), 2.0**-30, rtol=1e-3)
    np.testing.assert_allclose(np.float32(unscale(gradient, jnp.float32)), 0.5, rtol=1e-3)


def test_in_a_loop():
    def f(x):
        return lax.scan(lambda c, _: (gated(c, c), None), x, None, length=3)[0]

    got = jax.jit(scalify(f))(X)
    np.testing.assert_allclose(np.float32(got) * 2.0**30, [0.125, -0.25, 0.375], rtol=1e-3)


def test_trees_of_arguments_and_results():
    @custom_scale
    def both(tree, x):
        return {"sum": tree["a"] + x, "same": x}

    x = jnp.float32([1, 2])
    assert jax.tree.structure(both({"a": x}, x)) == jax.tree.structure({"sum": 0, "same": 0})

    @both.def_rule
    def _(tree, x):
        return {"sum": x, "same": tree["a"]}

    got = scalify(both)({"a": ScaledArray(x, 2.0)}, ScaledArray(x, 4.0))
    np.testing.assert_array_equal(unscale(got["sum"]), [4, 8])
    np.testing.assert_array_equal(unscale(got["same"]), [2, 4])


def test_without_a_rule_it_follows_its_code():
    double = custom_scale(lambda x: x * 2)
    got = scalify(double)(X)
    assert is_scaled(got)
    np.testing.assert_array_equal(np.float32(got), np.float32([2, -4, 6]) * 2.0**-30)


def test_a_result_of_another_structure_is_refused():
    @custom_scale
    def f(x):
        return x, x

    f.def_rule(lambda x: x)
    with pytest.raises(TypeError, match="scale rule returned"):
        scalify(f)(X)


@pytest.mark.parametrize("change", [jnp.float32, lambda data: data[:1]], ids=["dtype", "shape"])
def test_a_result_of_another_type_is_refused(change):
    f = custom_scale(lambda x: x * 2)
    f.def_rule(lambda x: ScaledArray(change(x.data), x.scale))
    with pytest.raises(TypeError, match=r"scale rule returned float.*, not float16\[3\]"):
        scalify(f)(X)


@pytest.mark.parametrize("constant", [1.0, jnp.ones(3, jnp.float16)], ids=["number", "array"])
def test_its_rule_sees_constants_as_arrays(constant):
    got = jax.jit(scalify(lambda x: gated(x, constant)))(X)
    np.testing.assert_allclose(np.float32(got), np.float32(X) * jax.nn.sigmoid(1.0), rtol=2.0**-10)


@pytest.mark.parametrize("exponent", [-50, 20, 50])
def test_its_rule_may_keep_the_scale_of_a_wide_product(exponent):
    x = ScaledArray(jnp.float32([1, -2, 3]), 2.0**exponent)
    got = jax.jit(scalify(lambda x: gated(x * x, jnp.ones_like(x))))(x)
    wanted = unscale(x) ** 2 * jax.nn.sigmoid(1.0)
    np.testing.assert_allclose(unscale(got), wanted, rtol=2.0**-20)


@ways
def test_a_batch_of_scales_that_depend_on_the_data(way):
    @custom_scale
    def squared(x):
        return x * x

    squared.def_rule(lambda x: scalify(lambda x: rescale(x * x))(x))
    x = ScaledArray(jnp.float16([[1, 2], [3, 4]]), 2.0**20)
    found = way(scalify(jax.vmap(squared)))(x)
    np.testing.assert_array_equal(unscale(found, jnp.float32), np.float32(unscale(x, "f4")) ** 2)
