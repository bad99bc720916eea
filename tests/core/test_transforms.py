"""``scalify`` composed with JAX's transforms, on either side, and what jit keeps and forgets."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from scalify_cli.core import (
    RULES,
    ScaledArray,
    as_scaled,
    custom_scale,
    is_scaled,
    scalify,
    unscale,
)

P = PartitionSpec
TINY = 2.0**-30
X = np.float32([[1, 2, -3], [4, -0.5, 6]])


def scaled(scale=TINY, dtype=jnp.float16):
    return ScaledArray(jnp.asarray(X, dtype), scale)


def true(tree):
    return jax.tree.map(np.float32, unscale(tree, jnp.float32))


def check(got, wanted, rtol=2.0**-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol=0), true(got), wanted)


def program(x):
    return lax.scan(lambda c, row: (c + row * 3, c), x[0] * 0, x)


def test_vmap_of_a_scalified_function():
    """A batch has one scale, or one each."""
    x, wanted = scaled(), jax.vmap(program)(np.stack([X, X]) * TINY)
    stack = jnp.stack([x.data, x.data])
    shared = jax.vmap(scalify(program), in_axes=(ScaledArray(0, None),))
    check_batches(shared(ScaledArray(stack, TINY)), wanted)
    each = ScaledArray.tree_unflatten(None, (stack, jnp.float32([TINY, 4 * TINY])))
    wanted = jax.vmap(program)(np.stack([X, 4 * X]) * TINY)
    check_batches(jax.vmap(scalify(program))(each), wanted)


def check_batches(got, wanted):
    for i in range(2):
        part = jax.tree.map(lambda x, i=i: x[i], (got, wanted))
        check(*part)


def test_scalify_of_a_vmapped_function():
    x = ScaledArray(jnp.asarray(np.stack([X, X]), jnp.float16), TINY)
    check(scalify(jax.vmap(program))(x), jax.vmap(program)(np.stack([X, X]) * TINY))


def cubes(x):
    return jnp.sum(jnp.square(x) * x)


def test_grad_inside():
    check(scalify(jax.grad(cubes))(scaled()), 3 * X**2 * TINY**2)


def test_grad_outside_is_by_the_data():
    """A scale is a constant to autodiff: a derivative by the value is that by the data over it."""
    x = scaled(4.0, jnp.float32)
    gradient = jax.grad(lambda x: unscale(scalify(cubes)(x)))(x)
    np.testing.assert_allclose(gradient.data / x.scale, 3 * (X * 4) ** 2, rtol=1e-6)
    assert gradient.scale == 0


@pytest.mark.parametrize(
    "f", [lambda x: program(x)[0], lambda x: lax.cond(True, jnp.sin, jnp.cos, x)]
)
def test_forward_mode_on_either_side(f):
    x, tangent = scaled(4.0, jnp.float32), scaled(2.0, jnp.float32)
    wanted = jax.jvp(f, (X * 4,), (X * 2,))
    inside = scalify(lambda x, t: jax.jvp(f, (x,), (t,)))(x, tangent)
    check(inside, wanted, rtol=1e-5)
    by_data = lambda data: unscale(scalify(f)(ScaledArray(data, 4.0)))  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        jax.jvp(by_data, (jnp.asarray(X),), (jnp.asarray(X / 2),)),
        wanted,
    )
    _, push = jax.linearize(by_data, jnp.asarray(X))
    np.testing.assert_allclose(push(jnp.asarray(X / 2)), wanted[1], rtol=1e-5)


def test_nesting():
    x = scaled()
    check(scalify(scalify(program))(x), program(X * TINY))
    inner = scalify(lambda y: y * 2)
    check(scalify(lambda x, y: (inner(x), inner(y)))(x, jnp.asarray(X)), (X * TINY * 2, X * 2))


def test_trees_of_mixed_leaves():
    def f(tree, *rest, flag, missing=None):
        total = tree["w"] * tree["s"] + (rest[0] if flag else 0 * tree["w"])
        out = {"none": missing, "n": tree["n"] + 1, "total": total, "empty": tree["e"] * 2}
        return out, (tree["key"], jnp.float16(3) * tree["plain"])

    key = jax.random.key(1)
    tree = {"w": scaled(), "s": 2.0, "n": jnp.arange(2), "e": as_scaled(jnp.zeros((0, 3)), 8.0)}
    tree |= {"key": key, "plain": jnp.ones(2, jnp.float16)}
    out, (same, plain) = jax.jit(scalify(f), static_argnames="flag")(tree, scaled(), flag=True)
    check(out["total"], X * TINY * 3)
    assert (out["none"], out["empty"].shape, is_scaled(plain)) == (None, (0, 3), False)
    np.testing.assert_array_equal(out["n"], [1, 2])
    np.testing.assert_array_equal(plain, [3, 3])
    assert same == key


def test_weak_types_are_the_functions():
    weak = ScaledArray(jnp.asarray(3.0), 2.0)
    f = lambda x, y: (x * y, x + 1)  # noqa: E731
    product, total = scalify(f)(weak, jnp.ones(2, jnp.float16))
    assert (product.dtype, total.dtype) == (jnp.float16, jnp.float32)
    check((product, total), (np.float32([6, 6]), np.float32(7)))
    assert scalify(f)(as_scaled(2.5), jnp.ones(2, jnp.bfloat16))[0].dtype == jnp.bfloat16


def test_shapes_alone_and_compilation_ahead_of_time():
    x = scaled()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    got = jax.eval_shape(scalify(program), shapes)
    wanted = jax.eval_shape(program, shapes.data)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got, is_leaf=is_scaled) == jax.tree.map(
        lambda x: (x.shape, x.dtype), wanted
    )
    compiled = jax.jit(scalify(program)).lower(shapes).compile()
    check(compiled(x), program(X * TINY))
    exported = jax.export.export(jax.jit(lambda data, scale: true_of(data, scale)))(x.data, x.scale)
    check(exported.call(x.data, x.scale), program(X * TINY))


def true_of(data, scale):
    return unscale(scalify(program)(ScaledArray(data, scale)), jnp.float32)


def test_donated_and_sharded_arguments_stay_so():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, P("rows"))
    inner = jax.jit(lambda x: x * 2, in_shardings=rows, out_shardings=rows)

    def f(x):
        return lax.with_sharding_constraint(inner(x), rows) + x

    step = jax.jit(
        scalify(f), donate_argnums=0, out_shardings=ScaledArray(rows, NamedSharding(mesh, P()))
    )
    text = step.lower(scaled()).as_text()
    assert text.count("@Sharding") + text.count("sdy.sharding_constraint") >= 3
    x = scaled()
    y = step(x)
    assert x.data.is_deleted() and y.data.sharding == rows
    check(y, X * TINY * 3)


def test_named_values_are_what_a_policy_saves():
    policy = jax.checkpoint_policies.save_only_these_names("kept")
    block = jax.checkpoint(lambda x: jnp.sin(checkpoint_name(jnp.sin(x), "kept")), policy=policy)
    by_data = lambda f: lambda data: unscale(f(ScaledArray(data, 1.0))).sum()  # noqa: E731
    text = str(jax.make_jaxpr(jax.grad(by_data(scalify(block))))(X))
    plain = str(jax.make_jaxpr(jax.grad(lambda x: block(x).sum()))(X))
    assert text.count("sin ") == plain.count("sin ") == 2
    recomputed = jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)))
    text = str(jax.make_jaxpr(jax.grad(by_data(scalify(recomputed))))(X))
    assert text.count("sin ") == 3


def test_rules_are_those_given():
    """A table changed later changes nothing, compiled or not."""
    table = dict(RULES)
    f = scalify(jnp.negative, table)
    compiled = jax.jit(f)
    check(compiled(scaled()), -X * TINY)
    table[lax.neg_p] = lambda equation, x: [x]
    check(f(scaled()), -X * TINY)
    check(compiled(scaled()), -X * TINY)
    check(jax.jit(scalify(jnp.negative, table))(scaled()), X * TINY)


def test_a_new_scale_rule_reaches_what_was_compiled_before():
    double = custom_scale(lambda x: x * 2)
    step = jax.jit(scalify(lambda x: jax.jit(double)(x)))
    check(step(scaled()), X * TINY * 2)
    double.def_rule(lambda x: ScaledArray(x.data * 3, x.scale))
    check(step(scaled()), X * TINY * 3)
    double.def_rule(lambda x: ScaledArray(x.data * 5, x.scale))
    check(step(scaled()), X * TINY * 5)


def test_a_trace_that_is_over_is_let_go():
    seen = []

    def product(equation, x, y):
        seen.append(weakref.ref((x.scale * y.scale).factor()))
        return RULES[lax.mul_p](equation, x, y)

    def f(x, y):
        return lax.scan(lambda c, row: (c * row + y, c), x[0], x)

    rules = {**RULES, lax.mul_p: product}
    arrays = as_scaled(np.ones((3, 2), np.float32)), as_scaled(np.ones(2, np.float32))
    jax.jit(scalify(f, rules)).trace(*arrays)
    gc.collect()
    assert seen
    assert all(reference() is None for reference in seen)


def test_the_collector_is_as_it_was():
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        jax.jit(scalify(lambda x: x * x)).trace(as_scaled(np.ones(2, np.float32)))
        assert gc.isenabled() is collects
    gc.enable()


def test_one_scale_an_element_of_a_batch():
    x = ScaledArray.tree_unflatten(None, (jnp.float32(X[:, :2]), jnp.float32([1, 4])))
    got = unscale(jax.vmap(scalify(lambda row: row * 3))(x))
    np.testing.assert_array_equal(got, X[:, :2] * 3 * np.float32([[1], [4]]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16], ids=lambda d: d.__name__)
def test_exported_with_symbolic_shapes(dtype):
    def f(x):
        return jax.nn.softmax(x) @ x.T, lax.scan(lambda c, row: (c + row, c), 0 * x[0], x)

    size = jax.export.symbolic_shape("b")
    avals = jax.ShapeDtypeStruct((*size, 3), dtype), jax.ShapeDtypeStruct((), jnp.float32)
    exported = jax.export.export(jax.jit(lambda *x: unscale(scalify(f)(ScaledArray(*x)))))(*avals)
    check(exported.call(jnp.asarray(X, dtype), jnp.float32(1)), true(f(jnp.float32(X))), 2.0**-8)


def test_one_compilation_fits_arguments_and_results_on_a_mesh():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    x = as_scaled(jax.device_put(jnp.float32(X), NamedSharding(mesh, P("i"))))
    step = jax.jit(scalify(lambda state, x: state - 0.5 * x))
    step(step(x, x), x)
    assert step._cache_size() == 1


def test_what_computes_scales_grows_with_the_program():
    """Each measured tensor adds to what scales are made of, which is not written down each time."""

    def text(steps):
        def f(x):
            for _ in range(steps):
                x = jnp.expm1(x @ x) + x
            return x

        x = ScaledArray(jnp.ones((4, 4), jnp.float16), 1.0)
        return jax.jit(scalify(f)).lower(x).as_text()

    assert len(text(80)) < 4 * len(text(40))


def test_scales_that_need_not_wait_are_computed_together():
    """Two products for them, however many tensors are measured."""

    def products(count):
        f = lambda *xs: [jnp.expm1(x @ x) + x for x in xs]  # noqa: E731
        xs = [ScaledArray(jnp.ones((4, 4), jnp.float16), 2.0**i) for i in range(count)]
        return jax.jit(scalify(f)).lower(*xs).as_text().count("dot_general") - count

    assert products(1) == products(5) == 2


def test_results_are_arrays_outside_of_jit_too():
    def update(x):
        return -x, jnp.var(x), x + 1, jnp.float32(3), 2, jnp.zeros_like(x)

    leaves = jax.tree.leaves(scalify(update)(as_scaled(jnp.arange(4.0))))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert all(leaf.sharding.is_fully_addressable for leaf in leaves)
