"""Results whose size propagation cannot tell: right in FP16 at every scale, and far from it."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import pytest
from jax import lax, nn

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

NORMAL = np.asarray(jax.random.normal(jax.random.key(0), (4, 6)))


def huber(x):
    return jnp.where(jnp.abs(x) < 1, 0.5 * x * x, jnp.abs(x) - 0.5)


def doubled(a, b):
    return a + 2 * b


ACTIVATIONS = {
    "gelu": nn.gelu,
    "exact gelu": lambda x: nn.gelu(x, approximate=False),
    "silu": nn.silu,
    "elu": nn.elu,
    "relu6": nn.relu6,
    "mish": nn.mish,
    "huber": huber,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "clamp": lambda x: lax.clamp(jnp.asarray(-1, x.dtype), x, jnp.asarray(1, x.dtype)),
}
FUNCTIONS = {
    **ACTIVATIONS,
    "tan": lambda x: jnp.tan(jnp.minimum(x, 1)),
    "expm1": lambda x: jnp.expm1(jnp.minimum(x, 1)),
    "sinh": lambda x: jnp.sinh(jnp.minimum(x, 2)),
    "arctan2": lambda x: jnp.arctan2(x, 1),
    "power of 3/2": lambda x: x**1.5,
    "power of -3/2": lambda x: x**-1.5,
    "cube root": lambda x: x ** (1 / 3),
    "cumprod": lambda x: jnp.cumprod(x[:1]),
    "cumlogsumexp": lax.cumlogsumexp,
    "reduce": lambda x: lax.reduce(x, jnp.zeros((), x.dtype), doubled, (0,)),
    "reduce_window": lambda x: lax.reduce_window(
        x, jnp.zeros((), x.dtype), doubled, (2,), (1,), "VALID"
    ),
    "apply": lambda x: x.at[1].apply(lambda y: 3 * y),
    "multiply": lambda x: x.at[jnp.array([0, 2])].multiply(x[:2]),
    "conjugate gradients": lambda x: jsp.sparse.linalg.cg(lambda y: 3 * y, x)[0],
}


def check(f, *arguments, rtol=2.0**-8):
    """By float32's results on the true values, relative to the largest."""
    wanted = jax.jit(f)(*(unscale(x, jnp.float32) for x in arguments))
    for way in (scalify(f), jax.jit(scalify(f))):
        got = np.float32(unscale(way(*arguments), jnp.float32))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * np.max(np.abs(wanted)))


@pytest.mark.parametrize("exponent", [-60, -20, 0, 11, 20, 60])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float16_holds_results_of_any_size(name, exponent):
    x = ScaledArray(jnp.float16([1, 1.3, 1.7]), 2.0**exponent)
    check(FUNCTIONS[name], x)


@pytest.mark.parametrize("exponent", [-60, -20, 0, 11, 20, 60])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float16_holds_their_derivatives(name, exponent):
    x = ScaledArray(jnp.float16([1.1, 1.3, 1.7]), 2.0**exponent)
    check(jax.grad(lambda x: jnp.sum(ACTIVATIONS[name](x))), x)


@pytest.mark.parametrize("f", [jnp.minimum, jnp.maximum, lambda x, y: jnp.where(x > y, y, x)])
@pytest.mark.parametrize("exponents", [(15, -10), (20, -20), (-20, 20)])
def test_a_choice_may_take_the_smaller_scale_only(f, exponents):
    x, y = (ScaledArray(jnp.float16([1, 1.5]), 2.0**k) for k in exponents)
    check(f, x, y)
    check(lambda x, y: f(-x, -y), x, y)


def powers(m):
    for _ in range(5):
        m = m @ m
    return m


def chain(x):
    product = x
    for _ in range(40):
        product = product * x
    return product


LONG = {
    "prod": jnp.prod,
    "associative scan": lambda x: lax.associative_scan(jnp.multiply, x),
    "linear recurrence": lambda x: lax.associative_scan(
        lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (x, jnp.ones_like(x))
    )[1],
    "chain": chain,
    "powers of a matrix": lambda x: powers(jnp.diag(x[:4])),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", LONG)
def test_long_products_do_not_run_away(name, dtype):
    count = 200 if dtype == jnp.float32 else 64
    check(LONG[name], as_scaled(jnp.full(count, 0.9, dtype)), rtol=2.0**-5)


def spread(x):
    """A positive definite matrix in float32."""
    wide = x.astype(jnp.float32)
    square = wide @ wide.T
    return square + jnp.trace(square) * jnp.eye(4)


WIDE_INSIDE = {
    "solve": lambda x: jnp.sum(jnp.linalg.solve(spread(x), x.astype(jnp.float32))),
    "inverse": lambda x: jnp.sum(jnp.linalg.inv(spread(x))) * 1e-3,
    "determinant": lambda x: jnp.linalg.slogdet(spread(x))[1],
    "expm": lambda x: jnp.sum(jsp.linalg.expm(x[:, :4].astype(jnp.float32) / 8)),
    "hypot": lambda x: jnp.sum(jnp.hypot(x, x[::-1])),
}


@pytest.mark.parametrize("exponent", [-10, 0, 3])
@pytest.mark.parametrize("name", WIDE_INSIDE)
def test_what_is_computed_wide_comes_back_at_its_size(name, exponent):
    x = ScaledArray(jnp.float16(NORMAL), 2.0**exponent)
    check(jax.grad(WIDE_INSIDE[name]), x)


FAR = {
    "cube": lambda x: x**3,
    "fourth power": lambda x: x * x * x * x,
    "seventh power": lambda x: x**7,
    "norm": lambda x: x * lax.rsqrt(jnp.mean(x * x) + 1e-6),
    "layer norm": lambda x: (x - x.mean()) / x.std(),
    "power": lambda x: jnp.abs(x) ** 2.5,
    "quotient": lambda x: x * x / (x * x * x),
    "gradient": jax.grad(lambda x: jnp.sum(x**4)),
    "hypot": jax.grad(lambda x: jnp.sum(jnp.hypot(x, x[::-1]))),
}


@pytest.mark.parametrize("exponent", [-60, -40, 40, 60])
@pytest.mark.parametrize("name", FAR)
def test_float32_data_may_be_far_from_its_scale(name, exponent):
    check(FAR[name], as_scaled(jnp.asarray(NORMAL[0]), 2.0**exponent), rtol=2.0**-20)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("size, exponent", [(1e6, -60), (1e-6, 60), (1e-3, 60), (1e6, -40)])
def test_wide_results_leave_as_they_are_in_plain_jax(dtype, size, exponent):
    x = as_scaled(jnp.asarray(NORMAL[0] * size, dtype), 2.0**exponent)
    for f in (lambda x: x * x, lambda x: jnp.mean(x * x), lambda x: x @ x, lambda x: x**4):
        check(f, x, rtol=2.0**-6 if dtype == jnp.bfloat16 else 2.0**-20)
    large = ScaledArray(jnp.asarray([1, 2, -0.5], dtype), 2.0**60)
    a = ScaledArray(jnp.asarray([1, 2.0**-5, 2.0**-8], dtype), 2.0**-60)
    check(lambda a, b: lax.cond(a[0] > 1, lambda: b, lambda: a)[2], a, large, rtol=2.0**-6)
    check(lambda a, b: jnp.minimum(a, jnp.abs(b))[2], a, large, rtol=2.0**-6)


@pytest.mark.parametrize("exponent", [-60, -30])
def test_what_is_vague_stays_so(exponent):
    x = ScaledArray(jnp.float16([1.5, -1.25, 3]), 2.0**exponent)
    check(lambda x: jnp.expm1(x) / jnp.cosh(x), x)
    check(lambda x: jnp.minimum(x, -x) / jnp.where(x == 0, 1, x), x)
    check(jax.grad(lambda x: jnp.sum(jnp.hypot(x, x[::-1]))), x)
    check(lambda x: jnp.prod(jnp.pad(x, (0, 2), constant_values=1)), ScaledArray(x.data, 2.0**-10))


@pytest.mark.parametrize("exponent", [0, 6, 10])
@pytest.mark.parametrize("layers", [2, 4, 6])
def test_large_terms_that_cancel_are_rounded_alike(layers, exponent):
    """A softmax's sums are in float32, in plain JAX too; what they are taken from is not."""

    def loss(x):
        for _ in range(layers):
            x = x * jax.nn.softmax(jnp.roll(x, 1, -1)) * 4
        return jnp.sum(x)

    data = jnp.float16(np.random.default_rng(0).normal(size=(4, 8)))
    check(jax.grad(loss), ScaledArray(data, 2.0**exponent), rtol=2.0**-9)


def test_a_rounding_that_the_program_asks_for():
    def split(x):
        wide = x.astype(jnp.float32) * 1.1
        high = wide.astype(x.dtype)
        return high, wide - high.astype(jnp.float32)

    x = jnp.float16([0.3, 0.7, 1.9])
    high, low = unscale(jax.jit(scalify(split))(as_scaled(x, 1.0)))
    wide = np.float32(x) * np.float32(1.1)
    np.testing.assert_array_equal(high, np.float16(wide))
    np.testing.assert_allclose(low, wide - np.float32(np.float16(wide)), rtol=2.0**-8)


UNCHANGED = {
    "all equal": lambda new, old: jnp.all(new == old),
    "no difference": lambda new, old: jnp.max(jnp.abs(new - old)) < 1e-6,
    "norm": lambda new, old: jnp.linalg.norm(new - old) <= 1e-7 * jnp.linalg.norm(old),
}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["body", "call"])
@pytest.mark.parametrize("exponent", [-20, 0, 20])
@pytest.mark.parametrize("name", UNCHANGED)
def test_a_loop_until_nothing_changes_ends(name, exponent, wrap):
    def root(a):
        @wrap
        def newton(x):
            new = 0.5 * (x + a / x)
            return new, UNCHANGED[name](new, x)

        def body(carry):
            x, _, count = carry
            return *newton(x), count + 1

        going = lambda carry: ~carry[1] & (carry[2] < 60)  # noqa: E731
        return lax.while_loop(going, body, (jnp.ones_like(a) * a[0], False, 0))

    a = ScaledArray(jnp.float16([2, 3, 5, 7.11]), 2.0**exponent)
    found, _, count = jax.jit(scalify(root))(a)
    wanted = np.sqrt(np.float32(unscale(a, jnp.float32)))
    np.testing.assert_allclose(unscale(found, jnp.float32), wanted, rtol=2.0**-9)
    assert count < 30


@pytest.mark.parametrize(
    "f", [jnp.square, lambda x: x**3, lambda x: x * x * x, lambda x: jnp.square(x * x)]
)
def test_powers_of_mostly_zeros(f):
    """An element may be hundreds of times the root mean square."""
    x = as_scaled(jnp.zeros(1 << 20, jnp.float16).at[jnp.array([3, 5])].set(jnp.float16([1, -0.5])))
    check(f, x)


@pytest.mark.parametrize("binades", [0, 2, 3])
def test_normalised_again_and_again(binades):
    """Data above its scale by some binades: what is divided by a norm still is."""

    def power_iteration(x, matrix):
        for _ in range(7):
            x = matrix @ x
            x = x / jnp.linalg.norm(x)
        return x

    draw = np.random.default_rng(0).normal(size=(9, 8))
    matrix = as_scaled(jnp.float16(draw[1:] @ draw[1:].T))
    shifted = ScaledArray(matrix.data * 2**binades, matrix.scale / 2**binades)
    check(power_iteration, as_scaled(jnp.float16(draw[0])), shifted)


@pytest.mark.parametrize("f", [lambda x: x * jnp.sum(x[:2]), lambda x: x / jnp.mean(x)])
def test_scaled_by_scalars_again_and_again(f):
    """A scalar is up to twice its scale: a product of many is far from theirs."""

    def chain(x):
        for _ in range(22):
            x = f(x)
        return x

    check(chain, as_scaled(jnp.float16([0.475, 0.475, 1.3, 0.7])))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-8, 1e-6])
def test_a_small_number_beside_squares_of_outliers(epsilon):
    x = as_scaled(jnp.ones(4096, jnp.float16).at[0].set(100))
    check(lambda x: x * x + epsilon, x)


GUARDED = {
    "added to": lambda h: nn.relu(h) + 1e-6,
    "at least": lambda h: jnp.maximum(h, 1e-6),
    "clipped": lambda h: jnp.clip(h, 1e-6, None),
    "instead": lambda h: jnp.where(h > 0, h, 1e-6),
}


@pytest.mark.parametrize("exponent", [0, 7, 10])
@pytest.mark.parametrize("name", GUARDED)
def test_what_is_kept_from_zero_is_stored_so(name, exponent):
    """Of a logarithm that is saved for its derivative: at the scale of the others it was zero."""
    x, v, w = (jax.random.normal(k, (32, 32)) / 6 for k in jax.random.split(jax.random.key(1), 3))

    def loss(x, v, w):
        return jnp.mean((jnp.log(GUARDED[name](x @ v)) @ w) ** 2)

    arguments = as_scaled([jnp.float16(y) for y in (x * 2**exponent, v, w)])
    for which in range(3):
        check(jax.grad(loss, which), *arguments, rtol=2.0**-6)


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("size", [1, 64])
def test_what_is_kept_from_zero_leaves_as_it_is(name, size):
    """Returned and read; an operand of matmuls; fed back."""

    def step(h, w):
        y = GUARDED[name](h)
        return y, jnp.log(y), jnp.square(y @ w) @ jnp.square(w)

    h, w = (np.random.default_rng(i).normal(size=(32, 32)) for i in (2, 3))
    h, w = as_scaled([jnp.float16(np.abs(h) * size), jnp.float16(w)])
    for _ in range(2):
        for which in range(3):
            check(lambda h, w, i=which: step(h, w)[i], h, w)
        h, *_ = jax.jit(scalify(step))(h, w)


def test_products_of_what_is_kept_from_zero():
    """The light that passes a volume."""
    density = as_scaled(jnp.float16(np.random.default_rng(4).normal(size=(4, 32))))
    passing = lambda x: jnp.cumprod(1 - jnp.exp(-nn.softplus(x)) + 1e-10, -1)  # noqa: E731
    check(jax.grad(lambda x: jnp.sum(passing(x) ** 2)), density)


@pytest.mark.parametrize("factor", [0.49, 0.3])
def test_a_carry_may_be_tiny(factor):
    """Only zeros that are measured have a scale far from the smallest."""
    decay = lambda x: lax.fori_loop(0, 60, lambda _, c: c * factor, x)  # noqa: E731
    check(decay, as_scaled(jnp.float16(NORMAL)), rtol=2.0**-5)  # of as many roundings
