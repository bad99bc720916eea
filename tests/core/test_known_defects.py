"""What the paper's public code gets wrong, seventeen ways, and this one does not.

The source is jax-scalify at f9aa9af. Every test is named after a defect that running it showed.
"""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex
from jax.scipy.special import logsumexp

from scalify_cli import (
    ScaledArray,
    as_scaled,
    custom_scale,
    rescale,
    scalify,
    unscale,
    with_precision,
)
from scalify_cli.core import RULES, tap
from scalify_cli.formats import FORMATS, saturating_cast
from scalify_cli.formats.primitive import cast_p
from scalify_cli.precision import load_precision

X = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)
eager_and_jit = pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["eager", "jit"])


def near(result, expected, bits=21):
    """Within 2**-bits of the expected value's largest magnitude (float32 keeps 24 bits)."""
    expected = np.asarray(expected, np.float32)
    bound = 2.0**-bits * np.max(np.abs(expected))
    np.testing.assert_allclose(unscale(result, jnp.float32), expected, rtol=0, atol=bound)


def casts(f, *args) -> Counter:
    """How many casts to each format are in f's jaxpr and those it calls."""

    def formats(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive is cast_p:
                yield equation.params["format"].name
            for inner in jex.jaxprs_in_params(equation.params):
                yield from formats(inner)

    return Counter(formats(jax.make_jaxpr(f)(*args).jaxpr))


def test_01_casts_and_rescales_of_the_forward_pass_stay_under_differentiation():
    square = lambda x: saturating_cast(x, "e4m3") ** 2  # noqa: E731
    assert jax.grad(square)(jnp.float32(1.1)) == 2 * 1.125
    loss = with_precision(lambda w, x: jnp.sum(jnp.tanh(x @ w) @ w.T), load_precision("fp8"))
    assert casts(loss, jnp.ones((4, 4)), X) == {"e4m3": 4}
    backward = casts(jax.grad(loss), jnp.ones((4, 4)), X)
    assert backward["e4m3"] >= 4
    assert backward["e5m2"] >= 2
    gradient = scalify(jax.grad(lambda w, x: jnp.sum(w * rescale(x))))(
        as_scaled(X), as_scaled(X, 2**9)
    )
    assert 1 <= np.sqrt(np.mean(np.square(gradient.data))) < 2


@eager_and_jit
@pytest.mark.parametrize(
    "f",
    [
        jax.nn.softmax,
        jax.nn.log_softmax,
        logsumexp,
        lambda x: jnp.where(x > -1.8, x, -jnp.inf).max(1),
        lambda x: jnp.var(x, axis=1),
        lambda x: jnp.std(x, axis=1),
    ],
    ids=["softmax", "log_softmax", "logsumexp", "masked", "var", "std"],
)
def test_02_softmax_and_its_kin_are_finite(way, f):
    near(way(scalify(f))(as_scaled(X)), f(X))


@eager_and_jit
def test_03_exp_of_zeros_is_one(way):
    near(way(scalify(lambda x, zeros: jnp.exp(zeros) * x))(*as_scaled((X, 0 * X))), X)
    near(way(scalify(lambda x: jnp.exp(jnp.zeros_like(x)) * x))(as_scaled(X)), X)


@eager_and_jit
def test_04_concatenate_takes_its_operands(way):
    stack = lambda x, y: (jnp.concatenate([x, y, x]), jnp.stack([x, y]), jnp.roll(x, 1))  # noqa: E731
    y = X * np.float32(2.0**9)
    for result, expected in zip(way(scalify(stack))(*as_scaled((X, y))), stack(X, y), strict=True):
        near(result, expected)


@eager_and_jit
def test_05_a_state_born_as_zeros_has_no_say(way):
    def first_moment(x):
        zeros = jnp.zeros_like(x)
        scalar = jnp.sum(x - x)
        return zeros * 0.9 + x, scalar * 0.9 + x

    for result in way(scalify(first_moment))(as_scaled(X)):
        near(result, X)


@eager_and_jit
def test_06_a_choice_among_zeros_is_zero(way):
    def gradient(x, cotangent):
        return jax.vjp(jax.nn.relu, x)[1](cotangent)[0]

    result = way(scalify(gradient))(as_scaled(X), as_scaled(0 * X))
    np.testing.assert_array_equal(unscale(result), 0 * X)


@eager_and_jit
def test_07_bfloat16_is_a_float(way):
    f = lambda x: jax.nn.relu(x) * 2.0 + jnp.mean(x)  # noqa: E731
    result = way(scalify(f))(as_scaled(jnp.asarray(X, jnp.bfloat16)))
    assert isinstance(result, ScaledArray)
    assert result.dtype == jnp.bfloat16
    near(result, f(X), bits=7)


@eager_and_jit
def test_08_an_integer_is_cast_from_the_true_value(way):
    result = way(scalify(lambda x: (x * 100).astype(jnp.int32)))(as_scaled(X, 2.0**-5))
    np.testing.assert_array_equal(result, (X * 100).astype(np.int32))


def test_09_every_power_of_two_of_e8m0_is_exact():
    exponents = np.arange(-127, 128)
    powers = np.ldexp(1.0, exponents).astype(np.float32)
    np.testing.assert_array_equal(saturating_cast(jnp.asarray(powers), "e8m0"), powers)
    scales = [float(ScaledArray(np.float32(1), 2.0**k).scale) for k in range(-126, 128)]
    np.testing.assert_array_equal(np.log2(scales), np.arange(-126, 128))
    assert np.isnan(saturating_cast(jnp.float32(np.nan), "e8m0"))


def test_10_e4m3_reaches_448_has_subnormals_and_saturates():
    values = np.float32([256, 448, 500, np.inf, 2.0**-7, 2.0**-9, -np.inf])
    expected = np.float32([256, 448, 448, 448, 2.0**-7, 2.0**-9, -448])
    np.testing.assert_array_equal(saturating_cast(jnp.asarray(values), "e4m3"), expected)
    assert FORMATS["e4m3"].max == 448


def test_11_trees_of_scaled_arrays_can_be_asked_about_all_their_leaves():
    tree = as_scaled({"a": X, "b": [X + 8]})
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), tree))
    assert not jax.tree.all(jax.tree.map(lambda x: bool((x > 1).all()), tree))


def test_12_a_compiled_function_keeps_the_rules_it_was_made_with():
    x = as_scaled(X, 2.0**-3)
    unit = {jax.lax.neg_p: lambda equation, x: RULES[jax.lax.neg_p](equation, x)[:1]}
    table = {**RULES, jax.lax.neg_p: lambda equation, x: [x]}
    for rules, expected in ((RULES, -X), (table, X), (RULES | unit, -X)):
        near(jax.jit(scalify(lambda x: -x, rules=rules))(x), expected)


def _with_rule():
    @custom_scale
    def twice(x):
        return x + x

    twice.def_rule(lambda x: ScaledArray(x.data, x.scale * 2))
    return twice


@pytest.mark.parametrize(
    "f",
    [rescale, lambda x: tap(x, "x"), lambda x: saturating_cast(x, "fp16"), _with_rule()],
    ids=["rescale", "tap", "saturating_cast", "custom_scale"],
)
def test_13_every_primitive_of_ours_differentiates_and_batches(f):
    x = np.float32([1, 2, 3, 4]).reshape(2, 2)
    loss = lambda x: jnp.sum(f(x) * x)  # noqa: E731
    slope = float(f(jnp.float32(1)))
    expected = 2 * slope * x
    np.testing.assert_array_equal(jax.grad(loss)(x), expected)
    np.testing.assert_array_equal(jax.vmap(jax.grad(loss))(x), expected)
    near(scalify(jax.grad(loss))(as_scaled(x, 0.5)), expected)
    near(scalify(jax.vmap(jax.grad(loss)))(as_scaled(x, 0.5)), expected)
    near(jax.linear_transpose(lambda t: jax.jvp(f, (x,), (t,))[1], x)(x)[0], slope * x)


@eager_and_jit
def test_14_a_long_sum_is_divided_before_float16_overflows(way):
    x = as_scaled(np.full((1, 2**16), 2, np.float16), 1.0)
    near(way(scalify(lambda x: x @ x.T))(x), [[2.0**18]])
    near(way(scalify(lambda x: jnp.sum(x * x)))(x), 2.0**18)
    image = as_scaled(np.full((1, 2**12, 4, 4), 4, np.float16), 1.0)
    convolve = lambda x: jax.lax.conv(x, x, (1, 1), "VALID")  # noqa: E731
    near(way(scalify(convolve))(image), np.full((1, 1, 1, 1), 2.0**20))


@eager_and_jit
def test_15_scales_reach_beyond_float16_and_any_number_is_a_scale(way):
    x = ScaledArray(jnp.float16([1, 1.5]), 256)
    assert x.scale.dtype == jnp.float32
    near(way(scalify(lambda x: x * x * 64))(x), 2.0**22 * np.float32([1, 2.25]))
    far = ScaledArray(jnp.float16(X), 2.0**60)
    far = way(scalify(lambda x: (x * x) * (x * x) * 2.0**-75 * 2.0**-75))(far)
    near(far, np.float32(jnp.float16(X)) ** 4 * np.float32(2.0**90), bits=10)
    assert np.isfinite(far.scale)
    assert ScaledArray(X, 2).scale == 2


@eager_and_jit
def test_16_small_literals_are_not_rounded_to_the_datas_dtype(way):
    x = ScaledArray(jnp.float16([1, 2]), 2.0**-30)
    near(way(scalify(lambda x: x / (x + 1e-8)))(x), 1 / (1 + 1e-8 * 2.0**30 / x.data), bits=9)


def test_17_a_scale_has_no_gradient():
    x = as_scaled(X, 2.0**-3)
    gradient = jax.grad(lambda x: unscale(scalify(lambda x: jnp.sum(x**3))(x)))(x)
    assert gradient.scale == 0
    np.testing.assert_allclose(gradient.data, 3 * X**2 * x.scale, rtol=2**-21)
