"""Loops, branches and calls under ``scalify``: the plain program's values, whatever the scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from scalify_cli.core import ScaledArray, scalify, unscale

X = np.float32([[1, 2, -3], [4, -0.5, 6], [0.25, 1, -1], [3, 5, -7]])
SAVE_NAMED = jax.checkpoint_policies.save_only_these_names("kept")


def accumulate(x, **options):
    return lax.scan(lambda c, row: (c + row, c * 2), x[0], x, **options)


def mixed_carry(x):
    def body(carry, row):
        count, total, flag, (largest, key) = carry
        largest = jnp.maximum(largest, row)
        state = (count + 1, total + row * 0.5, flag & (row[0] > 0), (largest, key))
        return state, (row * 2, count, jnp.float32(3))

    nothing = jnp.full_like(x[0], -jnp.inf)
    start = (0, jnp.zeros_like(x[0]), jnp.bool_(True), (nothing, jax.random.key(0)))
    (count, total, flag, (largest, _)), rows = lax.scan(body, start, x)
    return count, total, flag, largest, rows


def stacks_of_stacks(x):
    outer = lambda c, row: (c + row, lax.scan(lambda d, y: (d * y, d + y), c, x)[1])  # noqa: E731
    return lax.scan(outer, x[0], x)


def doubled_until(x):
    limit = 100 * jnp.max(jnp.abs(x))
    return lax.while_loop(
        lambda c: jnp.max(jnp.abs(c[1])) < limit, lambda c: (c[0] + 1, c[1] * 2), (0, x)
    )


def trips(x):
    return jnp.sum(x > 0).astype(jnp.int32)  # a number unknown while tracing


def norm_of(x):
    x = x / x[0, 0]

    def body(carry):
        i, v, _ = carry
        w = x @ (x.T @ v)
        size = jnp.sqrt(jnp.sum(jnp.square(w)))
        return i + 1, w / size, size

    start = (0, x[:, 0], jnp.zeros((), x.dtype))
    return lax.while_loop(lambda c: c[0] < trips(x) + 3, body, start)[2]


def branches_of_three_scales(x):
    return lax.switch(trips(x) % 3, [lambda y: y * 2**12, jnp.negative, lambda y: y * 2**-12], x)


def branches_of_numbers(x):
    none = lambda y: (jnp.zeros_like(y), jnp.full_like(y, -jnp.inf), 2, y)  # noqa: E731
    return lax.cond(trips(x) > 100, none, lambda y: (y * 3, y - y[:1], 3, -y), x)


@jax.custom_jvp
def relu(x):
    return jnp.maximum(x, 0 * x)


relu.defjvp(lambda xs, ts: (relu(*xs), jnp.where(xs[0] > 0, ts[0], 0 * ts[0])))


@jax.custom_vjp
def clipped(x):
    return x * 2


clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (jnp.where(x > 0, 5 * g, 3 * g),))


@jax.custom_batching.custom_vmap
def sums(x):
    return jnp.sum(x)


@sums.def_vmap
def _(size, batched, x):
    return jnp.sum(x, 1), True


def gradient(f):
    return jax.grad(lambda x: jnp.sum(f(x)))


def named(x):
    return jnp.square(checkpoint_name(x * 3, "kept") + x)


def attention_in_blocks(x):
    """Online softmax: a running maximum that starts at -inf, a sum, a weighted sum."""
    unit = x / jnp.max(jnp.abs(x))

    def body(carry, key):
        largest, total, out = carry
        score = unit @ key
        new = jnp.maximum(largest, score)
        old, now = jnp.exp(largest - new), jnp.exp(score - new)
        return (new, total * old + now, out * old[:, None] + now[:, None] * key[None]), None

    shape = x.shape[:1]
    start = (jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, x.dtype), jnp.zeros_like(x))
    _, total, out = lax.scan(body, start, unit)[0]
    return out / total[:, None]


def through_reference(x):
    reference = jax.new_ref(x[0])

    def body(total, row):
        reference[...] = reference[...] * 2
        return total + reference[...], None

    return lax.scan(body, x[0], x)[0]


HOMOGENEOUS = {
    "scan": accumulate,
    "scan in reverse": lambda x: accumulate(x, reverse=True),
    "scan unrolled": lambda x: accumulate(x, unroll=3),
    "scan fully unrolled": lambda x: accumulate(x, unroll=True),
    "scan of no steps": lambda x: lax.scan(lambda c, row: (c + row, c * 2), x[0], x[:0]),
    "scan without inputs": lambda x: lax.scan(lambda c, _: (c * 0.5, c), x, None, length=9),
    "scan of mixed carries": mixed_carry,
    "scan in a scan": stacks_of_stacks,
    "map": lambda x: lax.map(lambda row: row * 2 + row[0], x),
    "map in batches": lambda x: lax.map(lambda row: row * 2, x, batch_size=3),
    "associative scan": lambda x: lax.associative_scan(jnp.add, x),
    "while": doubled_until,
    "power iteration": norm_of,
    "fori": lambda x: lax.fori_loop(0, 20, lambda i, y: y * 0.5, x),
    "fori of unknown length": lambda x: lax.fori_loop(0, trips(x), lambda i, y: y * 3, x),
    "fori on an index": lambda x: lax.fori_loop(0, 3, lambda i, y: y.at[i].add(y[i + 1]), x),
    "cond": lambda x: lax.cond(x[0, 0] > x[0, 1], lambda y: y * 8, jnp.negative, x),
    "cond of numbers": branches_of_numbers,
    "switch": branches_of_three_scales,
    "branch in a loop": lambda x: lax.scan(
        lambda c, row: (lax.cond(row[0] > row[1], jnp.add, jnp.subtract, c, row), c), x[0], x
    ),
    "loop in a branch": lambda x: lax.cond(trips(x) > 2, accumulate, lambda y: (y[0], y), x),
    "vmap of cond": lambda x: jax.vmap(
        lambda r: lax.cond(r[0] > r[1], lambda y: y * 64, lambda y: y / 64, r)
    )(x),
    "vmap of while": lambda x: jax.vmap(
        lambda r: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, r))[1]
    )(x),
    "vmap of while that ends row by row": lambda x: jax.vmap(
        lambda r: lax.while_loop(lambda c: c[0] < trips(r), lambda c: (c[0] + 1, c[1] * 2), (0, r))
    )(x),
    "vmap of fori of unknown length": lambda x: jax.vmap(
        lambda r: lax.fori_loop(0, trips(r), lambda i, y: y * 0.5, r)
    )(x),
    "jit": jax.jit(lambda x: x * 2 + x, inline=True),
    "remat": jax.checkpoint(lambda x: x * 3 + x),
    "remat with names": gradient(jax.checkpoint(lambda x: named(x) / x, policy=SAVE_NAMED)),
    "custom_jvp": lambda x: (relu(x), gradient(relu)(x)),
    "custom_vjp": lambda x: (clipped(x), gradient(clipped)(x), jax.vmap(clipped)(x)),
    "custom_vmap": lambda x: (sums(x[0]), jax.vmap(sums)(x)),
    "linearize": lambda x: jax.linearize(lambda y: y * 3 + relu(y), x)[1](x),
    "platform_dependent": lambda x: lax.platform_dependent(
        x, cpu=lambda y: y * 2, default=lambda y: y * 4
    ),
    "attention in blocks": attention_in_blocks,
    "grad of scan": gradient(lambda x: accumulate(x)[1]),
    "grad of cond": gradient(lambda x: lax.cond(x[0, 0] > x[0, 1], jnp.abs, lambda y: y * 8, x)),
    "grad of switch": gradient(branches_of_three_scales),
    "grad of map": gradient(lambda x: lax.map(lambda row: row * 2 + relu(row), x)),
}

INHOMOGENEOUS = {
    "logistic map": lambda x: lax.fori_loop(
        0, 20, lambda i, y: 2.9 * y * (1 - y), jax.nn.sigmoid(x)
    ),
    "escape time": lambda x: (
        lax.fori_loop(0, 90, lambda i, z: jnp.where(z < 2, z * z + jnp.abs(x) / 16, z), x * 0) < 2
    ),
    "newton": lambda x: lax.fori_loop(0, 30, lambda i, y: (y + jnp.abs(x) / y) / 2, x * 0 + 1),
    "rnn": lambda x: lax.scan(lambda h, row: (jnp.tanh(h + row), h), x[0] * 0, x),
    "polynomial": lambda x: lax.while_loop(
        lambda y: jnp.all(jnp.abs(y) < 100), lambda y: y * y + 1, x
    ),
    "orthogonalise": lambda x: lax.fori_loop(
        0, 6, lambda i, y: 1.5 * y - 0.5 * y @ (y.T @ y), x / jnp.linalg.norm(x)
    ),
    "grad of rnn": gradient(
        lambda x: lax.scan(jax.checkpoint(lambda h, r: (jnp.tanh(h + r), h)), x[0] * 0, x)[1]
    ),
}
ROUNDING = {"float32": 2.0**-20, "bfloat16": 2.0**-6, "float16": 2.0**-8}


def check(got, wanted, rtol):
    """Every leaf within ``rtol`` of the reference's largest magnitude, and of its structure."""

    def leaf(x, reference):
        x, reference = np.float64(x), np.float64(reference)
        size = np.max(np.abs(reference[np.isfinite(reference)]), initial=0)
        np.testing.assert_allclose(x, reference, rtol=rtol, atol=rtol * size)

    jax.tree.map(leaf, unscale(got, jnp.float32), wanted)


@pytest.mark.parametrize(
    ("dtype", "exponent"), [("float32", -40), ("bfloat16", 20), ("float16", -40), ("float16", 20)]
)
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_programs_on_values_far_from_one(name, dtype, exponent):
    """Where float16 could not hold the values, nor a plain program over it compute them."""
    x = ScaledArray(jnp.asarray(X, dtype), 2.0**exponent)
    wanted = jax.jit(HOMOGENEOUS[name])(unscale(x, jnp.float32))
    check(jax.jit(scalify(HOMOGENEOUS[name]))(x), wanted, ROUNDING[dtype])


@pytest.mark.parametrize("exponent", [-3, 6])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", INHOMOGENEOUS)
def test_programs_whose_static_scales_drift(name, dtype, exponent):
    """Squares double an exponent each time, and 1.5 y - 0.5 y adds one: loops keep them near."""
    x = ScaledArray(jnp.asarray(X * 2.0**-exponent, dtype), 2.0**exponent)
    wanted = jax.jit(INHOMOGENEOUS[name])(unscale(x, jnp.float32))
    check(jax.jit(scalify(INHOMOGENEOUS[name]))(x), wanted, 16 * ROUNDING[dtype])


@pytest.mark.parametrize(
    "name", ["scan of mixed carries", "while", "switch", "remat", "custom_vjp"]
)
def test_eager_and_compiled_agree(name):
    x = ScaledArray(jnp.asarray(X, jnp.float16), 2.0**-30)
    f = scalify(HOMOGENEOUS[name])
    jax.tree.map(np.testing.assert_array_equal, unscale(f(x)), unscale(jax.jit(f)(x)))


@pytest.mark.parametrize("exponent", [-20, 0, 20])
def test_a_polynomial_in_a_wide_loop_does_not_drive_its_scale_away(exponent):
    """The iteration of Newton and Schulz, as Muon's: x⁵ has the fifth power of x's scale."""

    def orthogonal(x):
        def step(_, x):
            gram = x @ x.T
            return 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x

        return lax.fori_loop(0, 5, step, x / jnp.linalg.norm(x))

    x = ScaledArray(jnp.float32([[1, -2, 0], [3, 0.5, 1], [-1, 4, 1]]), 2.0**exponent)
    got = unscale(jax.jit(scalify(orthogonal))(x))
    np.testing.assert_allclose(got, orthogonal(unscale(x)), rtol=2.0**-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_references_hold_true_values_in_their_dtype(dtype):
    x = ScaledArray(jnp.asarray(X, dtype), 0.5)
    np.testing.assert_array_equal(
        unscale(jax.jit(scalify(through_reference))(x)),
        through_reference(jnp.asarray(X / 2, dtype)),
    )


def test_bodies_may_have_effects_only():
    seen = []
    see = lambda y: jax.debug.callback(lambda v: seen.append(float(v)), y[0, 1])  # noqa: E731
    jax.jit(scalify(jax.checkpoint(see)))(ScaledArray(jnp.float16(X), 2.0**20))
    jax.effects_barrier()
    assert seen == [2.0**21]


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f])
def test_a_loop_that_changes_nothing_returns_what_is_known(wrap):
    f = lambda x: lax.fori_loop(0, 3, lambda i, y: y * 1.0, x * x) * 2.0**10  # noqa: E731
    found = wrap(scalify(f))(ScaledArray(jnp.float16([1, 1.5]), 2.0**-40))
    np.testing.assert_array_equal(np.asarray(found), np.float32([1, 2.25]) * np.float32(2.0**-70))
