"""Zero, infinity and NaN have any scale: they never move a shared one and never spread."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from ways import ways

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

TINY = 2.0**-40  # float16 holds it as a scale only


def tiny(*values, dtype=jnp.float16):
    return ScaledArray(jnp.asarray(values, dtype), TINY)


def true(tree):
    return jax.tree.map(np.float32, unscale(tree, jnp.float32))


@ways
@pytest.mark.parametrize(
    "f",
    [
        jax.nn.relu,
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: jnp.maximum(x, 0) + jnp.zeros_like(x),
        lambda x: x + jnp.zeros(x.shape, x.dtype),
        lambda x: jnp.zeros(x.shape, x.dtype).at[:].add(x),
        lambda x: jnp.pad(x, 1)[1:-1],
        lambda x: lax.clamp(np.asarray(0, x.dtype), x, np.asarray(np.inf, x.dtype)),
        lambda x: jnp.where(jnp.isfinite(x), x, -jnp.inf),
        lambda x: jnp.clip(x, 0),
        lambda x: 0 * x + x,
    ],
)
def test_a_zero_or_an_infinity_does_not_move_the_scale(way, f):
    result = way(scalify(f))(tiny(1, 2, 3))
    np.testing.assert_array_equal(np.float32(result.data) * float(result.scale) / TINY, [1, 2, 3])
    assert float(result.scale) == TINY


@ways
def test_zeros_given_to_the_transform_do_not_move_the_scale(way):
    result = way(scalify(jnp.add))(tiny(1, 2), as_scaled(jnp.zeros(2, jnp.float16)))
    assert float(result.scale) == TINY


@ways
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_scalar_zero_known_only_at_run_time(way, dtype):
    x, zero = tiny(1, -2, dtype=dtype), jnp.zeros((), dtype)
    np.testing.assert_array_equal(true(way(scalify(jnp.add))(x, zero)) / TINY, [1, -2])
    np.testing.assert_array_equal(true(way(scalify(jnp.multiply))(x, zero)), [0, 0])
    np.testing.assert_array_equal(true(way(scalify(jnp.maximum))(x, zero)) / TINY, [1, 0])


@ways
def test_the_first_update_of_moments_born_as_zeros(way):
    def update(gradient, moments):
        first, second = moments
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * jnp.square(gradient)
        return first, second

    gradient = tiny(1.0, 0.0, -3.0)
    inside = way(scalify(lambda g: update(g, (jnp.zeros_like(g), jnp.zeros_like(g)))))(gradient)
    outside = way(scalify(update))(gradient, as_scaled((jnp.zeros(3, jnp.float16),) * 2))
    wanted = update(true(gradient), (0.0, 0.0))
    for moments in (inside, outside):
        np.testing.assert_allclose(true(moments), wanted, rtol=2.0**-9)


@ways
def test_adam_of_tiny_gradients(way):
    optimizer = optax.adam(0.125)
    gradients = {"w": tiny(1.0, -2.0, 0.0, dtype=jnp.float32)}
    parameters = {"w": jnp.ones(3)}

    def first_step(gradients, parameters):
        updates, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
        return optax.apply_updates(parameters, updates), state

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer
        got = way(scalify(first_step))(gradients, as_scaled(parameters))
        wanted = first_step(true(gradients), parameters)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), true(got), wanted)


def masked(x):
    return jnp.where(jnp.tril(jnp.ones((3, 3), bool)), x, -jnp.inf)


@ways
@pytest.mark.parametrize("exponent", [-20, 0, 3])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: jax.nn.softmax(masked(x)),
        lambda x: jax.nn.logsumexp(masked(x), axis=-1),
        lambda x: jnp.exp(jax.nn.log_softmax(masked(x))),
        lambda x: jax.grad(lambda y: jax.nn.softmax(masked(y))[:, 0].sum())(x),
        lambda x: jax.grad(lambda y: jax.nn.logsumexp(masked(y), axis=-1).sum())(x),
    ],
    ids=["softmax", "logsumexp", "log_softmax", "grad softmax", "grad logsumexp"],
)
def test_masks_of_minus_infinity(way, dtype, exponent, f):
    x = np.linspace(-2, 2, 9).reshape(3, 3)
    got = true(way(scalify(f))(ScaledArray(jnp.asarray(x, dtype), 2.0**exponent)))
    wanted = np.asarray(f(jnp.float32(np.asarray(x, dtype)) * 2.0**exponent))
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(got, wanted, rtol=4 * unit, atol=4 * unit)


@ways
@pytest.mark.parametrize("f", [jnp.var, jnp.std, lambda x: jnp.linalg.norm(x)])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_statistics_of_tiny_and_of_constant_values(way, f, dtype):
    values = np.float32([1, 2, 4, -3])
    got = float(true(way(scalify(f))(tiny(*values, dtype=dtype))))
    power = 2 if f is jnp.var else 1
    np.testing.assert_allclose(got / TINY**power, f(values), rtol=4 * jnp.finfo(dtype).eps)
    dead = true(way(scalify(f))(tiny(0, 0, 0, dtype=dtype)))
    assert dead == 0


@ways
def test_dead_rows_stay_dead(way):
    def normalise(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)

    def loss(x, f):
        return jnp.sum(f(x) * jnp.arange(8, dtype=x.dtype).reshape(2, 4))

    x = ScaledArray(jnp.float32([[0, 0, 0, 0], [1, 2, 3, -1]]), 2.0**-12)
    for f in (normalise, jax.nn.softmax, jax.nn.relu, jnp.abs):
        wanted = jax.value_and_grad(loss)(unscale(x), f)
        got = way(scalify(lambda x, f=f: jax.value_and_grad(loss)(x, f)))(x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), true(got), wanted)


@ways
def test_infinities_and_nan_are_kept_where_they_are(way):
    x = tiny(np.inf, -np.inf, np.nan, 1.0)
    got = true(way(scalify(lambda x: x * 2 + x))(x))
    np.testing.assert_array_equal(got, np.float32([np.inf, -np.inf, np.nan, 3 * TINY]))
    quotient = true(way(scalify(lambda x: x / jnp.zeros_like(x)))(tiny(1, -1, 0)))
    np.testing.assert_array_equal(quotient, np.float32([np.inf, -np.inf, np.nan]))


@ways
def test_zero_carry_of_a_loop_takes_the_scale_of_what_is_added(way):
    def total(xs):
        return lax.scan(lambda c, x: (c + x, None), jnp.zeros(2, xs.dtype), xs)[0]

    xs = ScaledArray(jnp.ones((5, 2), jnp.float16), TINY)
    np.testing.assert_array_equal(true(way(scalify(total))(xs)) / TINY, [5, 5])


def divided(x):
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def first_step(x):
    return 0.1 * x / (jnp.sqrt(0.001 * x * x) + 1e-8)


LIMITS = {
    "x / 0": lambda x: x / jnp.zeros_like(x),
    "0 / x": lambda x: jnp.zeros_like(x) / x,
    "0 * inf": lambda x: (x * 0) * jnp.inf,
    "sqrt(0)": lambda x: jnp.sqrt(x * 0) + x,
    "log(0)": lambda x: jnp.log(x * 0),
    "rsqrt(0)": lambda x: lax.rsqrt(x * 0),
    "exp(0)": lambda x: jnp.exp(jnp.zeros_like(x) * x),
    "power 0": lambda x: (lax.pow(x * 0, np.zeros((), x.dtype)), (x * 0) ** 0),
    "products of nothing": lambda x: jnp.prod((x * 0)[:0]),
    "sums of nothing": lambda x: jnp.sum(x[:0]) + x,
    "variance of a constant": lambda x: jnp.var(jnp.full_like(x, 3.0) + x * 0),
    "largest of nothing": lambda x: jnp.max(jnp.where(x > 1e9, x, -jnp.inf)),
    "logsumexp of -inf": lambda x: jax.nn.logsumexp(x * 0 - jnp.inf),
    "softmax of -inf": lambda x: jax.nn.softmax(jnp.full_like(x, -jnp.inf) + x * 0),
    "softmax, lowest": lambda x: jax.nn.softmax(jnp.where(x > 0, x, jnp.finfo(x.dtype).min)),
    "softmax, all lowest": lambda x: jax.nn.softmax(jnp.where(x > 1e9, x, jnp.finfo(x.dtype).min)),
    "norm of zeros": divided,
    "Adam": first_step,
    "Adam of zeros": lambda x: first_step(x * 0),
    "cumulative": lambda x: jnp.cumsum(jnp.where(x > 0, x, -jnp.inf)),
    "clip": lambda x: (jnp.clip(x, -1e4, 1e4), jnp.minimum(x, 6), jnp.maximum(x, -1)),
    "comparisons": lambda x: (x == 0, x != 0, x > 0, x < 1e-30),
    "gradient of a norm": jax.grad(jnp.linalg.norm),
    "updates of zeros": lambda x: jnp.zeros(8, x.dtype).at[1:5].set(x),
    "sign of zero": lambda x: jnp.sign(x * 0),
    "largest finite": lambda x: jnp.argmax(jnp.where(x > 0, x, -jnp.inf)),
}


@ways
@pytest.mark.parametrize("exponent", [-40, 0])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("f", LIMITS.values(), ids=LIMITS.keys())
def test_limits_are_those_of_plain_float32(way, f, dtype, exponent):
    for values in ([1.0, 0.0, -2.0, 3.0], [0.0] * 4):
        x = ScaledArray(jnp.asarray(values, dtype), 2.0**exponent)
        with jax.numpy_dtype_promotion("standard"):
            wanted, got = f(unscale(x, jnp.float32)), true(way(scalify(f))(x))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=2.0**-8)


@ways
def test_a_known_number_is_never_rounded_to_zero(way):
    x = ScaledArray(jnp.zeros(3, jnp.float16), 2.0**20)
    for f in (lambda x: x / (x + 1e-8), lambda x: x / jnp.where(x == 0, 1, x)):
        np.testing.assert_array_equal(true(way(scalify(f))(x)), [0, 0, 0])


@ways
@pytest.mark.parametrize("exponent", [-20, 0, 20])
def test_a_number_that_guards_a_division_does_not_crowd_out_the_rest(way, exponent):
    x = ScaledArray(jnp.float16([0, 1, -2, 8]), 2.0**exponent)
    got = way(scalify(lambda x: (x / jnp.where(x == 0, 1, x), jnp.hypot(x, x))))(x)
    np.testing.assert_array_equal(true(got[0]), [0, 1, 1, 1])
    hypotenuse = np.sqrt(np.float32(2)) * np.abs(true(x))
    np.testing.assert_allclose(true(got[1]), hypotenuse, rtol=2.0**-9)


X = ScaledArray(jnp.float32([[1, -2], [3, 0.5], [-1, 4]]), 2.0**20)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.maximum(
            lax.cond(x[0, 0] < 0, lambda: x, lambda: jnp.full_like(x, -jnp.inf)), x
        ),
        lambda x: lax.scan(
            lambda m, row: (lax.cond(row[0] < 0, lambda: m, lambda: jnp.maximum(m, row)), m),
            jnp.full(2, -jnp.inf),
            x,
        ),
        lambda x: lax.scan(
            lambda m, row: (jnp.maximum(m, row), lax.map(lambda r: jnp.maximum(m, r), x)),
            jnp.full(2, -jnp.inf),
            x,
        ),
    ],
    ids=["from a branch", "into a branch", "into an inner loop"],
)
def test_infinities_known_at_run_time_only_stay_infinite(f):
    jax.tree.map(np.testing.assert_array_equal, true(jax.jit(scalify(f))(X)), f(unscale(X)))


@ways
def test_an_infinity_far_below_stays_infinite(way):
    low = ScaledArray(jnp.float32([-np.inf, 1]), 2.0**-60)
    high = ScaledArray(jnp.float32([1, 1]), 2.0**60)
    got = way(scalify(lambda x, y: jnp.concatenate([x**3, y])))(low, high)
    np.testing.assert_array_equal(true(got)[[0, 2, 3]], [-np.inf, 2.0**60, 2.0**60])


def test_what_a_loop_divides_by_zero_does_not_crowd_out_the_rest():
    def f(x):
        step = lambda c, row: (c + row, jnp.where(c == 0, row, row / c))  # noqa: E731
        return lax.scan(step, jnp.zeros(2), x)[1]

    np.testing.assert_allclose(true(jax.jit(scalify(f))(X)), f(unscale(X)), rtol=2.0**-20)


def rows_of_none(x, function):
    return lax.scan(lambda c, _: (c * 2, function(c)), x, None, length=0)[1]


EMPTY = {
    "exponentials": lambda x: jnp.concatenate([jnp.exp(x[:0]), x]),
    "powers": lambda x: jnp.concatenate([(x**4)[:0], x]),
    "a constant": lambda x: jnp.concatenate([jnp.asarray(np.ones(0, x.dtype)), x]),
    "a matmul over none": lambda x: jnp.ones((4, 0), x.dtype) @ jnp.exp(x[:0]) + x,
    "a sum": lambda x: jnp.where(x[:0] > 0, jnp.exp(x[:0]), x[:0]).sum() + x,
    "a gradient": jax.grad(lambda x: jnp.exp(x[:0]).sum() + (x * x).sum()),
    "a scan of none": lambda x: rows_of_none(x, jnp.square).sum(0) + x,
    "the largest of none": lambda x: rows_of_none(x, jnp.square).max(0, initial=-1.0) + x,
    "a map of none": lambda x: lax.map(lambda a: jnp.exp(a) * x, x[:0]).sum(0) + x,
    "a carry": lambda x: jnp.concatenate([lax.fori_loop(0, 3, lambda _, c: jnp.exp(c), x[:0]), x]),
    "a branch": lambda x: jnp.concatenate(
        [lax.cond(x[0] > 0, lambda: jnp.exp(x[:0]), lambda: x[:0]), x]
    ),
    "parts of a cumulative product": lambda x: lax.associative_scan(jnp.multiply, x[:1]),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f])
@pytest.mark.parametrize("exponent", [0, 15, -30])
def test_an_array_without_elements_moves_no_scale(name, dtype, wrap, exponent):
    f, x = EMPTY[name], np.float32([1.5, -1, 0.5, 1])
    found = wrap(scalify(f))(ScaledArray(jnp.asarray(x, dtype), 2.0**exponent))
    np.testing.assert_allclose(np.asarray(found), f(jnp.asarray(x * 2.0**exponent)), rtol=2.0**-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_zeros_over_little_are_zeros(dtype):
    """Whatever XLA makes of one division after another."""
    over = {
        "once": lambda x, y: jnp.expm1(x) / y,
        "twice": lambda x, y: jnp.expm1(x) / y / y,
        "an epsilon": lambda x, y: jnp.expm1(x) / (y * 0 + 1e-7),
        "in a matmul": lambda x, y: (jnp.expm1(x) / y) @ jnp.ones((4, 4), x.dtype),
    }
    x, y = (
        ScaledArray(jnp.zeros(4, dtype), 1.0),
        as_scaled(jnp.asarray([0.3, 0.2, 0.1, 0.4], dtype)),
    )
    for name, f in over.items():
        np.testing.assert_array_equal(np.asarray(jax.jit(scalify(f))(x, y)), 0, err_msg=name)


@ways
@pytest.mark.parametrize("value", [-np.inf, 0.0])
def test_a_bound_of_what_has_any_scale(way, value):
    f = lambda x: jnp.clip(jnp.full(3, value, x.dtype), -0.5, 1) + x  # noqa: E731
    x = tiny(1, 2, 3)
    np.testing.assert_allclose(true(way(scalify(f))(x)), f(unscale(x, jnp.float32)), rtol=2.0**-10)


BRANCHES = {
    "cond": lambda x, y: lax.cond(y[0] > 0, lambda: jnp.zeros_like(x), lambda: x**3),
    "switch": lambda x, y: lax.switch(jnp.int32(y[0] > 0), [lambda: x**3, lambda: 0 * x]),
    "cast": lambda x, y: lax.cond(
        y[0] > 0, lambda: jnp.zeros(x.shape), lambda: x.astype(jnp.float32) ** 3
    ).astype(x.dtype),
    "loop": lambda x, y: lax.fori_loop(
        0, 3, lambda i, h: lax.cond(y[0] > 0, lambda: 0 * h, lambda: h**3), x
    ),
    "gradient": lambda x, y: jax.grad(
        lambda x: lax.cond(y[0] > 0, lambda: jnp.zeros((), x.dtype), lambda: jnp.sum(x**3))
    )(x),
    "where": lambda x, y: jnp.where(y > 0, 0 * x, x**3),
    "where by a scalar": lambda x, y: jnp.where(y[0] > 0, 0 * x, x**3),
}


@ways
@pytest.mark.parametrize("name", BRANCHES)
def test_zeros_in_the_place_of_large_values_do_not_crowd_out_others(way, name):
    large, small = (ScaledArray(jnp.ones(4, jnp.float16), 2.0**k) for k in (20, -16))
    f = lambda x, y: y + BRANCHES[name](x, y)  # noqa: E731
    np.testing.assert_array_equal(true(way(scalify(f))(large, small)), np.full(4, 2.0**-16))


RECIPROCALS = {
    "1 / (1 + x²)": lambda x: 1 / (1 + x * x),
    "x / (1 + x)": lambda x: x[::-1] / (1 + x),
    "by a scalar": lambda x: x / (1 + x[0]),
    "times one over a scalar": lambda x: x * (1 / (1 + x[0])),
    "times a scalar's inverse root": lambda x: x * lax.rsqrt(1 + x[0]),
    "times a root": lambda x: x[::-1] * lax.rsqrt(x * x + 1),
    "by a root": lambda x: x[::-1] / jnp.sqrt(x * x + 1),
    "inverse root": lambda x: lax.rsqrt(1 + x * x),
    "inverse square": lambda x: (1 + x) ** -2,
    "power": lambda x: jnp.power(1 + x, -3),
    "cast": lambda x: (1 / (1 + x.astype(jnp.float32))).astype(x.dtype),
    "cast by a scalar": lambda x: (x.astype(jnp.float32) / (1 + x[0].astype(jnp.float32))).astype(
        x.dtype
    ),
    "gradient of log": jax.grad(lambda x: jnp.log(1 + x).sum()),
    "gradient of atan": jax.grad(lambda x: jnp.arctan(x).sum()),
    "gradient of a quotient": jax.grad(lambda x: (1 / (1 + x)).sum()),
    "loop": lambda x: lax.scan(lambda c, row: (c, 1 / (1 + row)), 0.0, x)[1],
}


@ways
@pytest.mark.parametrize("exponent", [-20, 0, 10, 30])
@pytest.mark.parametrize("name", RECIPROCALS)
def test_what_is_divided_by_little_among_much_stays_finite(way, name, exponent):
    f, data = RECIPROCALS[name], jnp.float16([0, 1, 2, 3])
    wanted = f(data.astype(jnp.float32) * 2.0**exponent)
    found = true(way(scalify(f))(ScaledArray(data, 2.0**exponent)))
    largest = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=2.0**-8, atol=largest * 2.0**-9)


@ways
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_zeros_and_values_of_any_size_are_those(way, dtype):
    x = jnp.asarray([1, 2, -3], dtype)
    found = true(way(scalify(lambda x: 0 * x + jnp.expm1(x)))(ScaledArray(x, 2.0**-20)))
    np.testing.assert_allclose(found, np.expm1(np.float32(x) * 2.0**-20), rtol=2.0**-9)


@ways
@pytest.mark.parametrize("exponent", [-8, 0, 8])
@pytest.mark.parametrize("power", [-3, -1, 3, 7])
def test_powers_that_the_dtype_does_not_hold(way, power, exponent):
    data = jnp.float16([2.0**-9 if power < 0 else 0, 1, 2, 8])
    f = lambda x: lax.integer_pow(x, power)  # noqa: E731
    wanted = f(data.astype(jnp.float32) * 2.0**exponent)
    found = true(way(scalify(f))(ScaledArray(data, 2.0**exponent)))
    np.testing.assert_allclose(found, wanted, rtol=2.0**-8, atol=float(wanted.max()) * 2.0**-9)


BESIDE_ZEROS = {
    "sum": lambda x, z: x + z,
    "difference": lambda x, z: z - x,
    "sum of products": lambda x, z: x * x + z * x,
    "moving average": lambda x, z: 0.9 * z + 0.1 * x,
    "interpolation": lambda x, z: z + 0.1 * (x - z),
    "three": lambda x, z: (x + z) + (x - z),
    "concatenation": lambda x, z: jnp.concatenate([x, z]),
    "update": lambda x, z: z.at[1:].set(x[1:]),
    "updates that are added": lambda x, z: z.at[jnp.array([0, 0, 1])].add(x),
    "slice": lambda x, z: lax.dynamic_update_slice(jnp.concatenate([z, z]), x, (1,)),
    "largest": jnp.maximum,
    "choice": lambda x, z: jnp.where(x > 0, x, z),
    "outer products": lambda x, z: jnp.outer(x, x) + jnp.outer(z, x),
    "carry": lambda x, z: lax.fori_loop(0, 3, lambda _, c: c + x + z, z),
    "rows": lambda x, z: lax.scan(lambda c, row: (c, row + x), x, jnp.stack([z, z]))[1],
    "gradient": lambda x, z: jax.grad(lambda x: jnp.sum(x * x * z) + jnp.sum(x * x))(x),
    "cast": lambda x, z: (x.astype(jnp.float32) + z.astype(jnp.float32)).astype(x.dtype) / x,
    "relu": lambda x, z: x + jax.nn.relu(z - 1),
    "one number": lambda x, z: x * (1 + z),
}


@ways
@pytest.mark.parametrize("exponent", [4, 20, 50])
@pytest.mark.parametrize("name", BESIDE_ZEROS)
def test_zeros_known_at_run_time_only_do_not_crowd_out_others(way, name, exponent):
    x, z = tiny(1.5, -0.75, 3), ScaledArray(jnp.zeros(3, jnp.float16), 2.0**exponent)
    found = true(way(scalify(BESIDE_ZEROS[name]))(x, z))
    wanted = BESIDE_ZEROS[name](jnp.float32([1.5, -0.75, 3]) * TINY, jnp.zeros(3))
    largest = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(found, wanted, rtol=2.0**-9, atol=largest * 2.0**-10)


@ways
@pytest.mark.parametrize("exponent", [-30, 30])
def test_a_sum_has_the_larger_scale_where_that_is_not_of_zeros(way, exponent):
    x, y = (ScaledArray(jnp.float16([1.5, -0.75, 3]), 2.0**k) for k in (0, exponent))
    assert float(way(scalify(jnp.add))(x, y).scale) == max(1, 2.0**exponent)


GUARDED = {
    "sum": lambda x: x * 0 + 1e-3,
    "difference": lambda x: 1e-3 - x * 0,
    "total": lambda x: (x * 0).sum() + 1e-3,
    "quotient": lambda x: x / (x * 0 + 1e-3),
    "inverse root": lambda x: lax.rsqrt(x * 0 + 1e-4),
    "a first step": lambda x: x / (jnp.sqrt(x * 0) + 1e-6),
    "rematerialised": lambda x: jax.checkpoint(lambda x: x * 0)(x) + 1e-3,
    "gradient": jax.grad(lambda x: (jnp.sqrt((x * 0) ** 2 + 1e-6) * x).sum()),
}


@ways
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", GUARDED)
def test_zeros_and_a_number_are_the_number(way, name, dtype):
    x = jnp.asarray([1, -2, 3], dtype)
    found = true(way(scalify(GUARDED[name]))(as_scaled(x)))
    np.testing.assert_allclose(found, GUARDED[name](x.astype(jnp.float32)), rtol=2.0**-6)
