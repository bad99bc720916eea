"""Where ``with_precision`` finds matmuls, and convolutions: rounded as the law of matmuls says."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, scalify, unscale
from scalify_cli.numerics.observe import observe
from scalify_cli.precision import NoScaling, Policy, Precision, Scalify, with_precision

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
FP8 = Policy(Precision("test", forward="e4m3", backward="e5m2"), NoScaling())
RNG = np.random.default_rng(0)
W, X = (jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32) for _ in range(2))


def to(format, x):
    """Rounded through the real 8-bit dtype; values here are within its range."""
    return jnp.asarray(np.asarray(x, np.float32).astype(format).astype(np.float32))


def looped(w, x):
    """The matmul in the body and in the condition of a loop of unknown length."""
    holds = lambda c: (c[0] < 1) & (jnp.sum(x @ w) > -1e9)  # noqa: E731
    return lax.while_loop(holds, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1]


@jax.custom_jvp
def doubled(w, x):
    return x @ w


doubled.defjvp(lambda xs, ts: (doubled(*xs), 2 * (ts[1] @ xs[0] + xs[1] @ ts[0])))


@jax.custom_vjp
def tripled(w, x):
    return x @ w


tripled.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (3 * r[1].T @ g, 3 * g @ r[0].T))

BRANCHES = [lambda w, x: x @ w, lambda w, x: x * w, lambda w, x: w @ x]
PLACES = {
    "cond": lambda w, x: lax.cond(x[0, 0] < 9, BRANCHES[0], BRANCHES[1], w, x),
    "switch": lambda w, x: lax.switch(jnp.int32(0), BRANCHES, w, x),
    "platform_dependent": lambda w, x: lax.platform_dependent(
        w, x, cpu=BRANCHES[0], default=BRANCHES[1]
    ),
    "while": looped,
    "custom_jvp": doubled,
    "custom_vjp": tripled,
    "cond in a scan": lambda w, x: lax.scan(
        lambda c, _: (lax.cond(c[0, 0] < 9, lambda y: y @ w, lambda y: y, c), None),
        x,
        None,
        length=1,
    )[0],
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_matmuls_are_rounded_wherever_they_are(place, compile):
    f = with_precision(PLACES[place], FP8)
    got = (jax.jit(f) if compile else f)(W, X)
    np.testing.assert_array_equal(got, to(E4M3, X) @ to(E4M3, W))


@pytest.mark.parametrize("place", ["cond", "switch", "cond in a scan"])
def test_cotangents_are_rounded_in_branches(place):
    cotangent = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    dw, dx = jax.vjp(with_precision(PLACES[place], FP8), W, X)[1](cotangent)
    g8 = to(E5M2, cotangent)
    np.testing.assert_array_equal(dw, to(E4M3, X).T @ g8)
    np.testing.assert_array_equal(dx, g8 @ to(E4M3, W).T)


@pytest.mark.parametrize(("f", "factor"), [(doubled, 2), (tripled, 3)])
def test_a_derivative_of_ones_own_is_kept(f, factor):
    """What it saved of the forward pass is rounded as that is; its own products are not."""
    cotangent = jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32)
    value, pull = jax.vjp(with_precision(f, FP8), W, X)
    np.testing.assert_array_equal(value, to(E4M3, X) @ to(E4M3, W))
    for got, wanted in zip(pull(cotangent), jax.vjp(f, W, X)[1](cotangent), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    plain = jax.vjp(lambda w, x: x @ w, W, X)[1](cotangent)
    np.testing.assert_allclose(pull(cotangent)[0], factor * plain[0], rtol=1e-5)


def test_functions_without_matmuls_keep_their_derivatives():
    gradient = jax.grad(lambda x: jnp.sum(with_precision(jax.nn.relu, FP8)(x)))
    np.testing.assert_array_equal(gradient(jnp.zeros(3)), np.zeros(3))


CONVOLUTIONS = {
    "plain": {},
    "strided": {"window_strides": (2, 1), "padding": "SAME"},
    "dilated": {"rhs_dilation": (1, 2), "padding": [(1, 0), (2, 2)]},
    "transposed": {"lhs_dilation": (2, 2), "padding": [(2, 2), (2, 2)]},
    "grouped": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_rounded_as_matmuls_are(kind, dtype):
    options = {"window_strides": (1, 1), "padding": "VALID", **CONVOLUTIONS[kind]}
    groups = options.get("feature_group_count", 1)
    image = jnp.asarray(RNG.normal(size=(2, 4, 6, 6)), dtype)
    kernel = jnp.asarray(RNG.normal(size=(4, 4 // groups, 3, 3)), dtype)
    convolve = lambda x, k: lax.conv_general_dilated(x, k, **options)  # noqa: E731
    compute = {jnp.float32: "fp32", jnp.bfloat16: "bf16", jnp.float16: "fp16"}[dtype]
    policy = Policy(Precision("t", compute, forward="e4m3", backward="e5m2"), NoScaling())

    value, pull = jax.vjp(jax.jit(with_precision(convolve, policy)), image, kernel)
    cotangent = jnp.asarray(RNG.normal(size=value.shape), dtype)
    image8, kernel8 = to(E4M3, image).astype(dtype), to(E4M3, kernel).astype(dtype)
    wanted, reference = jax.vjp(jax.jit(convolve), image8, kernel8)
    np.testing.assert_array_equal(value, wanted)
    gradients = zip(pull(cotangent), reference(to(E5M2, cotangent).astype(dtype)), strict=True)
    for got, expected in gradients:
        np.testing.assert_array_equal(got, expected)


def test_convolutions_are_observed_excluded_and_batched():
    image, kernel = jnp.ones((1, 2, 4, 4)), jnp.ones((2, 2, 3, 3)) * 1.01

    def loss(image, kernel):
        with jax.named_scope("stem"):
            return jnp.sum(jnp.sin(lax.conv(image, kernel, (1, 1), "SAME")))

    _, seen = observe(jax.grad(with_precision(loss, FP8), (0, 1)))(image, kernel)
    assert list(seen) == ["stem.activation", "stem.weight", "stem.cotangent"]
    excluded = Policy(
        Precision("t", forward="e4m3", backward="e5m2", exclude=["stem"]), NoScaling()
    )
    assert with_precision(loss, excluded)(image, kernel) == loss(image, kernel)
    rounded = with_precision(loss, FP8)(image, kernel)
    assert rounded == loss(image, to(E4M3, kernel))
    batched = jax.vmap(with_precision(loss, FP8), (None, 0))(image, jnp.stack([kernel, kernel]))
    np.testing.assert_array_equal(batched, [rounded, rounded])


def test_under_scalify_the_data_of_convolutions_is_rounded():
    policy = Policy(Precision("test", forward="e4m3", backward="e5m2"), Scalify())
    image = jnp.asarray(RNG.normal(size=(2, 2, 5, 5)), jnp.float32)
    kernel = jnp.asarray(RNG.normal(size=(3, 2, 3, 3)), jnp.float32)
    convolve = lambda x, k: jnp.sum(lax.conv(x, k, (1, 1), "SAME"))  # noqa: E731
    f = jax.value_and_grad(with_precision(convolve, policy), 1)
    value, gradient = jax.jit(scalify(f))(
        ScaledArray(image, 2.0**-50), ScaledArray(kernel, 2.0**20)
    )
    image8, kernel8 = to(E4M3, image), to(E4M3, kernel)
    wanted, reference = jax.value_and_grad(convolve, 1)(image8, kernel8)
    np.testing.assert_allclose(unscale(value), wanted * 2.0**-30, rtol=1e-5)
    np.testing.assert_allclose(unscale(gradient), reference * 2.0**-50, rtol=1e-5)
