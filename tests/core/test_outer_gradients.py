"""``grad`` outside of ``scalify``: derivatives that a program defines itself are its own."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalify_cli.core import ScaledArray, as_scaled, scalify, unscale

X = np.float32([[0, 1.25, -2.25], [3.5, -0.75, 2]])


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, cotangent: (cotangent * 3,))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def reversed_gradient(x, by):
    return x


reversed_gradient.defvjp(lambda x, by: (x, None), lambda by, _, cotangent: (-by * cotangent,))


@jax.custom_jvp
def spike(x):
    return jnp.where(x > 1, 1.0, 0.0).astype(x.dtype)


@spike.defjvp
def _(primals, tangents):
    [x], [t] = primals, tangents
    return spike(x), t / (1 + jnp.abs(x))


@jax.custom_vjp
def picked_row(x, index):
    return x[index], index + 1


picked_row.defvjp(
    lambda x, index: (picked_row(x, index), (x, index)),
    lambda kept, ct: (jnp.zeros_like(kept[0]).at[kept[1]].set(ct[0] * 2), None),
)


def in_a_loop(x):
    return lax.scan(lambda c, row: (straight_through(c) + row, jax.nn.relu(c)), x[0], x)


def solved(x):
    matvec = lambda y: (4 + x[0, 1]) * y  # noqa: E731
    return lax.custom_linear_solve(matvec, x[1], lambda _, b: b / matvec(1.0), symmetric=True)


FUNCTIONS = {
    "straight through": straight_through,
    "reversed": lambda x: reversed_gradient(x, 0.5),
    "spike": spike,
    "relu": jax.nn.relu,
    "relu, silu, softmax": lambda x: jax.nn.softmax(jax.nn.silu(x)) * jax.nn.relu(x),
    "logsumexp": lambda x: jax.nn.logsumexp(jnp.where(x > 0, x, -jnp.inf), axis=1),
    "an integer beside": lambda x: picked_row(x, jnp.argmax(x[:, 0])),
    "in a loop": in_a_loop,
    "in a batch": jax.vmap(straight_through),
    "in remat": jax.checkpoint(lambda x: straight_through(x) * spike(x)),
}


def total(f, x):
    floats = [y for y in jax.tree.leaves(f(x)) if jnp.issubdtype(y.dtype, jnp.floating)]
    weights = [2 + jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape) for y in floats]
    return sum(jnp.sum(y.astype(jnp.float32) * w) for y, w in zip(floats, weights, strict=True))


def outer(f, scale=None):
    """The program of true values, computed with scales."""
    scaled = lambda x: unscale(scalify(f)(as_scaled(x, scale)))  # noqa: E731
    return lambda x: total(scaled, x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_the_programs_own(name, dtype):
    f, x = FUNCTIONS[name], jnp.asarray(X, dtype)
    wanted = jax.grad(partial(total, f))(jnp.asarray(X))
    rtol = 2 * float(jnp.finfo(dtype).eps)
    for gradient in (jax.grad(outer(f)), jax.jit(jax.grad(outer(f, 0.25)))):
        np.testing.assert_allclose(np.float32(gradient(x)), wanted, rtol, 4 * rtol, err_msg=name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_another_scalify_too(name):
    inner = lambda x: unscale(scalify(FUNCTIONS[name])(as_scaled(x)))  # noqa: E731
    wanted = jax.grad(partial(total, FUNCTIONS[name]))(jnp.asarray(X))
    for dtype in (jnp.float32, jnp.float16):
        rtol = 2 * float(jnp.finfo(dtype).eps)
        got = np.float32(jax.jit(jax.grad(outer(inner)))(jnp.asarray(X, dtype)))
        np.testing.assert_allclose(got, wanted, rtol, 4 * rtol)


@pytest.mark.parametrize(
    ("name", "exponent"),
    [("straight through", 40), *itertools.product(["reversed", "relu"], [-40, 40])],
)
def test_values_may_be_beyond_fp16(name, exponent):
    f, scale = FUNCTIONS[name], jnp.float32(2.0**exponent)

    def loss(data):
        result = scalify(f)(ScaledArray(data, scale))
        return jnp.sum(result.data.astype(jnp.float32)) * (result.scale / scale)

    wanted = jax.grad(lambda x: jnp.sum(f(x * scale)) / scale)(jnp.asarray(X))
    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_array_equal(gradient(jnp.float16(X)), wanted)


def test_forward_mode_and_second_derivatives():
    f = lambda x: jax.nn.relu(x) ** 2 * spike(x)  # noqa: E731
    x = jnp.asarray(X[0])
    plain, scaled = (
        (lambda x: jnp.sum(f(x))),
        (lambda x: jnp.sum(unscale(scalify(f)(as_scaled(x))))),
    )
    for transform in (jax.jacfwd, jax.jacrev, jax.hessian):
        np.testing.assert_allclose(transform(scaled)(x), transform(plain)(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_linear_solves_are_differentiated_by_their_rule(dtype):
    def by_iteration(x):
        return jax.scipy.sparse.linalg.cg(lambda y: (4 + x[0, 1]) * y, x[1])[0]

    for f in (solved, by_iteration):
        wanted = jax.grad(partial(total, f))(jnp.asarray(X))
        got = jax.grad(outer(f))(jnp.asarray(X, dtype))
        np.testing.assert_allclose(np.float32(got), wanted, rtol=5e-3)


def test_what_is_not_differentiated_costs_nothing():
    """The compiled program has no instruction more than one without a derivative of its own."""
    x = as_scaled(jnp.asarray(X))
    round_alone = jax.jit(scalify(jnp.round)).lower(x).compile().as_text()
    own = jax.jit(scalify(straight_through)).lower(x).compile().as_text()
    assert own.count(" = ") == round_alone.count(" = ")


def test_effects_happen_once(capsys):
    @jax.custom_jvp
    def told(x):
        jax.debug.print("told")
        return x * 2

    told.defjvp(lambda primals, tangents: (told(*primals), tangents[0] * 2))
    jax.block_until_ready(scalify(told)(as_scaled(jnp.ones(3))))
    jax.effects_barrier()
    assert capsys.readouterr().out.count("told") == 1


@jax.custom_vjp
def thrice(x):
    return lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=3)[0]


thrice.defvjp(lambda x: (thrice(x), x), lambda _, g: (lax.fori_loop(0, 3, lambda _, c: c * 2, g),))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_rules_with_loops_are_in_their_own_dtypes(dtype):
    x = jnp.asarray(X, dtype)
    got = jax.grad(lambda x: jnp.sum(unscale(scalify(thrice)(as_scaled(x)))))(x)
    np.testing.assert_array_equal(got, np.full_like(X, 8))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_what_nobody_differentiates_is_computed_once(dtype):
    calls = []

    @jax.custom_jvp
    def host_sine(x):
        kind = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda y: (calls.append(1), np.sin(y))[1], kind, x)

    host_sine.defjvp(lambda primals, tangents: (host_sine(*primals), tangents[0]))
    got = scalify(host_sine)(as_scaled(jnp.asarray(X, dtype)))
    np.testing.assert_allclose(unscale(got, jnp.float32), np.sin(X), rtol=2e-3, atol=1e-3)
    assert len(calls) == 1


def test_shards_have_the_derivative_of_the_body():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.sharding.PartitionSpec("i")
    f = jax.shard_map(jax.nn.relu, mesh=mesh, in_specs=specs, out_specs=specs)
    got = jax.grad(lambda x: jnp.sum(unscale(scalify(f)(as_scaled(x))) ** 2))(jnp.asarray(X))
    np.testing.assert_array_equal(got, 2 * np.maximum(X, 0))


def test_what_is_closed_over_is_differentiated_too():
    x = jnp.asarray(X)

    def loss(w):
        return jnp.sum(unscale(scalify(lambda x: jax.nn.relu(x * w))(as_scaled(x))))

    np.testing.assert_array_equal(jax.grad(loss)(jnp.zeros_like(x)), np.zeros_like(X))
