"""Whole programs under ``scalify``: loops, calls, derivatives, pytrees, and what has no rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ways import ways

from scalify_cli.core import RULES, ScaledArray, as_scaled, is_scaled, scalify, unscale

X = np.float32([[1, 2, -3], [4, -0.5, 6]])
TINY = 2.0**-30


def true(tree):
    return jax.tree.map(np.float32, unscale(tree, jnp.float32))


def check_close(got, wanted, rtol):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol, atol=0), true(got), true(wanted)
    )


def layer(x):
    return jnp.square(x) - x * 3


def cumulative(x):
    return lax.scan(lambda total, row: (total + row, total * row), jnp.zeros_like(x[0]), x)


def of_zeros(x):
    return lax.scan(lambda c, y: (c + y, c * 2), x, jnp.zeros((4, *x.shape), x.dtype))


def outputs_feed_a_second_loop(x):
    carry, rows = lax.scan(lambda c, row: (c * 2, c * row), x[0], x)
    return carry, lax.scan(lambda c, row: (c + row, row - c), carry, rows)


def constants_and_integers(x):
    def body(carry, inputs):
        count, total = carry
        row, number = inputs
        return (count + 1, total + row * number), (count, total > 0)

    numbers = jnp.full(2, 4, x.dtype)
    return lax.scan(body, (0, jnp.zeros_like(x[0])), (x, numbers))


def swapped(x):
    return lax.scan(lambda c, _: ((c[1], c[0] * 0.5), c[0]), (x, x * 4), None, length=3)


def halved(x):
    return lax.fori_loop(0, 3, lambda i, y: y * 0.5, x)


def checkpointed(x):
    return jax.grad(lambda y: jnp.sum(jax.checkpoint(lambda z: layer(layer(z)))(y)))(x)


def through_scan(x, wrap=lambda f: f):
    def loss(y):
        step = wrap(lambda c, row: (c * row - row, jnp.square(c)))
        carry, squares = lax.scan(step, jnp.ones_like(y[0]), y)
        return jnp.sum(carry) + jnp.sum(squares)

    return jax.value_and_grad(loss)(x)


def attention(x):
    scores = x @ x.T
    masked = jnp.where(jnp.tril(jnp.ones(scores.shape, bool)), scores, -jnp.inf)
    return jax.nn.softmax(masked) @ x


PROGRAMS = {
    "scan": cumulative,
    "scan in reverse": lambda x: lax.scan(lambda c, y: (c + y, c), x[0], x, reverse=True),
    "scan unrolled": lambda x: lax.scan(lambda c, y: (c + y, c), x[0], x, unroll=2),
    "scan over scan's outputs": outputs_feed_a_second_loop,
    "scan of many kinds": constants_and_integers,
    "scan of nothing": swapped,
    "scan of zeros": of_zeros,
    "map": lambda x: lax.map(lambda row: row @ row, x),
    "associative scan": lambda x: lax.associative_scan(jnp.add, x),
    "fori_loop": halved,
    "while_loop": lambda x: lax.while_loop(lambda y: (y < 100).all(), lambda y: y * y + 1, x),
    "cond": lambda x: lax.cond(x[0, 0] > 0, layer, jnp.negative, x),
    "switch": lambda x: lax.switch(2, [jnp.negative, jnp.abs, layer], x),
    "jit": lambda x: jax.jit(layer)(x) + jax.jit(layer, inline=True)(x),
    "remat": checkpointed,
    "grad of scan": through_scan,
    "grad of remat of scan": lambda x: through_scan(x, jax.checkpoint),
    "vjp": lambda x: jax.vjp(layer, x)[1](x),
    "jvp": lambda x: jax.jvp(layer, (x,), (x,)),
    "hessian": lambda x: jax.hessian(lambda y: jnp.sum(y * y * y))(x),
    "vmap": jax.vmap(lambda row: jnp.outer(row, row).sum(0) / row),
    "attention": attention,
    "grad of attention": jax.grad(lambda x: jnp.sum(jnp.sin(attention(x)))),
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "swiglu": jax.grad(lambda x: jnp.sum(jax.nn.silu(x @ x.T) * (x @ x.T))),
    "standardize": jax.nn.standardize,
    "gather": lambda x: x.at[jnp.array([1, 9])].get(mode="fill", fill_value=5.0),
    "scatter": lambda x: x.at[:, jnp.array([0, 0])].add(3.0).at[0].set(1.0).at[0].mul(2.0),
    "one hot": lambda x: jax.nn.one_hot(jnp.array([1, 0]), 2) @ x,
    "norms": lambda x: (jnp.linalg.norm(x), jnp.mean(x), jnp.prod(x), jnp.median(x)),
    "sorting": lambda x: (jnp.sort(x), jnp.argsort(x), lax.top_k(x, 2), jnp.argmax(x)),
    "sort by key": lambda x: lax.sort((x, x * 2, jnp.arange(6).reshape(2, 3)), num_keys=1),
    "cumulative": lambda x: (jnp.cumsum(x), jnp.cumprod(x), lax.cummax(x), lax.cumlogsumexp(x)),
    "to integers": lambda x: (x.astype(jnp.int32), (x * 2).astype(bool), jnp.round(x).astype(int)),
    "float power": lambda x: x**2.0,
    "powers": lambda x: (x**3, x**2.0, x**-1, jnp.abs(x) ** 0.5, x**0),
    "of no rule": lambda x: (jnp.ceil(x), lax.rem(x, x * 0.7), jnp.arctan2(x, x), lax.lgamma(x)),
    "complex": lambda x: (jnp.abs(jnp.fft.fft(x)), jnp.imag(lax.complex(x, x * 2))),
    "linear algebra": lambda x: jnp.linalg.inv(x @ x.T),
    "generic reduction": lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b * 2, (1,)),
    "random": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "barrier": lambda x: lax.optimization_barrier((x, jnp.arange(3))),
}


@pytest.mark.parametrize("exponent", [-7, 0, 7])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_programs_in_float32(program, exponent):
    x = ScaledArray(jnp.asarray(X), 2.0**exponent)
    wanted = program(unscale(x))
    check_close(scalify(program)(x), wanted, rtol=2.0**-18)
    if exponent == 7:
        check_close(jax.jit(scalify(program))(x), wanted, rtol=2.0**-18)


HOMOGENEOUS = (
    *("scan", "scan over scan's outputs", "map", "associative scan", "vmap", "jvp", "attention"),
    *("scan of zeros", "scan of nothing", "float power", "sorting", "gelu", "silu", "norms"),
)


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_programs_in_float16_on_values_it_cannot_hold(name):
    program = PROGRAMS[name]
    x = ScaledArray(jnp.asarray(X, jnp.float16), TINY)
    wanted = program(unscale(x, jnp.float32))
    for function in (scalify(program), jax.jit(scalify(program))):
        jax.tree.map(
            lambda got, reference: np.testing.assert_allclose(
                got, reference, rtol=2.0**-8, atol=2.0**-9 * np.max(np.abs(reference))
            ),
            true(function(x)),
            true(wanted),
        )


def test_without_scaled_arguments_it_is_the_function():
    @scalify
    def function(x, n, tree):
        return {"a": layer(x) * n, "b": tree["list"][0] + 1, "c": None, "d": jax.nn.softmax(x)}

    arguments = (jnp.asarray(X), 3, {"list": [jnp.arange(2), None]})
    got, wanted = function(*arguments), function.__wrapped__(*arguments)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert not any(map(is_scaled, jax.tree.leaves(got, is_leaf=is_scaled)))


def test_signature_structure_and_static_values_are_the_functions():
    def function(x, power, *, mode="twice", rest=None):
        """Its documentation."""
        y = x["w"] ** power if mode == "power" else x["w"] * 2
        return y, {"count": x["n"] + 1, "rest": rest, "plain": jnp.ones(2)}

    wrapped = scalify(function)
    assert (wrapped.__name__, wrapped.__doc__) == ("function", "Its documentation.")
    x = {"w": ScaledArray(jnp.ones(2), 4.0), "n": jnp.int32(1)}
    y, others = wrapped(x, 2, mode="power", rest=(1, None))
    np.testing.assert_array_equal(true(y), [16, 16])
    assert others["rest"] == (1, None)
    assert int(others["count"]) == 2
    assert not is_scaled(others["plain"])
    np.testing.assert_array_equal(true(wrapped(x, 2)[0]), [8, 8])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_empty_arrays(shape):
    x = ScaledArray(jnp.zeros(shape), 8.0)
    for f in (layer, jnp.sum, jnp.exp, lambda y: y @ y.T, lambda y: jnp.concatenate([y, y])):
        check_close(scalify(f)(x), f(x.data), rtol=0)


@ways
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_matmuls_of_floats_with_integers_and_flags(way, dtype):
    x = ScaledArray(jnp.asarray([1, 2, 3], dtype), TINY)
    groups = jnp.array([2, 1])

    def f(x):
        wide = {"preferred_element_type": jnp.float32}
        ones = jnp.ones((2, 1, 3), jnp.int8)
        return {
            "flags": jnp.array([True, False, True]) @ x,
            "integers": x @ jnp.array([3, -2, 100]),
            "one": x[:1] @ jnp.array([3]),
            "dot": lax.dot_general(x, jnp.int8([3, -2, 4]), (((0,), (0,)), ((), ())), **wide),
            "ragged": lax.ragged_dot(x[:, None], ones, groups, **wide).sum(),
            "gradient": jax.grad(lambda x: x @ jnp.array([3, -2, 100]))(x),
        }

    wanted = {"flags": 4, "integers": 299, "one": 3, "dot": 11, "ragged": 18}
    with jax.numpy_dtype_promotion("standard"):
        got = way(scalify(f))(x)
    np.testing.assert_array_equal(true(got.pop("gradient")), [3, -2, 100])
    check_close({k: true(y) / TINY for k, y in got.items()}, wanted, rtol=2.0**-8)


def test_results_that_are_no_arrays_are_returned():
    got = scalify(lambda x: (x * 2, jax.nn.relu, "name", None))(ScaledArray(jnp.ones(2), 4.0))
    np.testing.assert_array_equal(true(got[0]), [8, 8])
    assert got[1:] == (jax.nn.relu, "name", None)


def test_python_and_numpy_scalars():
    x = ScaledArray(jnp.ones(2, jnp.float16), TINY)
    for number in (3, 3.0, np.float16(3), np.int32(3).item(), np.asarray(3, np.float16)):
        got = scalify(lambda x, n: x * n)(x, number)
        np.testing.assert_array_equal(true(got) / TINY, [3, 3])
        assert got.dtype == jnp.float16


def test_nested_transforms():
    x = ScaledArray(jnp.asarray(X, jnp.float16), TINY)
    check_close(scalify(scalify(jnp.negative))(x), -X * TINY, rtol=0)
    rows = ScaledArray.tree_unflatten(None, (x.data, jnp.float32([TINY, 1])))
    doubled = jax.vmap(scalify(lambda row: row * 2 + row))(rows)
    values = np.float32(doubled.data) * np.float32(doubled.scale)[:, None]
    np.testing.assert_array_equal(values, 3 * X * np.float32([[TINY], [1]]))
    gradient = jax.grad(
        lambda data: unscale(scalify(lambda y: jnp.sum(y * y))(ScaledArray(data, 4.0)))
    )
    np.testing.assert_array_equal(gradient(jnp.ones(3)), [32, 32, 32])


def test_callbacks_see_true_values():
    seen = []

    def function(x):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), x)
        return x * 2

    x = ScaledArray(jnp.float32([1, 2]), TINY)
    jax.block_until_ready(jax.jit(scalify(function))(x))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen, [[TINY, 2 * TINY]])


def test_a_table_of_ones_own_decides():
    seen = []

    def opposite(equation, x):
        seen.append(equation.primitive)
        return [x]

    x = ScaledArray(jnp.ones(2), 2.0)
    got = scalify(jnp.negative, rules={**RULES, lax.neg_p: opposite})(x)
    np.testing.assert_array_equal(true(got), [2, 2])
    assert seen == [lax.neg_p]


def test_one_compilation_and_donation():
    traces = []

    def update(x, y):
        traces.append(None)
        return x * 0.5 + y

    step = jax.jit(scalify(update), donate_argnums=0)
    state, other = as_scaled((jnp.ones(4), jnp.full(4, 3.0)))
    for _ in range(4):
        before, state = state, step(state, other)
        assert before.data.is_deleted() and before.scale.is_deleted()
    assert len(traces) == 1
    np.testing.assert_array_equal(true(state), np.float32(5.6875))


def test_static_scales_cost_no_operations():
    def function(x, y):
        return jnp.transpose(x * y) * 8 / 2 + x.T * 4

    x, y = ScaledArray(jnp.asarray(X), 4.0), ScaledArray(jnp.asarray(X), 0.5)
    jaxpr = jax.make_jaxpr(lambda: scalify(function)(x, y).data)().jaxpr
    assert [str(e.primitive) for e in jaxpr.eqns] == [
        *("mul", "transpose", "transpose", "mul", "add"),  # the second one aligns the scales
    ]


def test_a_scale_given_inside_a_trace_stays_static():
    def program(x):
        return scalify(jnp.square)(ScaledArray(x, 4.0)).data, as_scaled(x, 4.0).data

    names = [str(e.primitive) for e in jax.make_jaxpr(program)(X).jaxpr.eqns]
    assert names[0] == "square"
    assert not {"bitcast_convert_type", "abs", "shift_right_logical"} & set(names)


def test_names_of_scopes_survive():
    def function(x):
        with jax.named_scope("block"), jax.named_scope("norm"):
            return x * jnp.sqrt(x)

    x = ScaledArray(jnp.ones(2), 2.0)
    jaxpr = jax.make_jaxpr(scalify(function))(x)
    scopes = {str(e.source_info.name_stack) for e in jaxpr.eqns if e.primitive is lax.mul_p}
    assert "block/norm" in scopes


@ways
@pytest.mark.parametrize("f", [jnp.mean, jnp.var, jnp.std, lambda x: jnp.linalg.inv(jnp.diag(x))])
def test_float64(way, f):
    with jax.enable_x64(True):
        x = jnp.arange(1.0, 7)
        found = unscale(way(scalify(f))(as_scaled(x)))
        np.testing.assert_allclose(found, f(x), rtol=1e-12)
