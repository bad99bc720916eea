"""Collectives: shards with scales of their own, or with one, meet as their true values do."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collective_examples import COLLECTIVES
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from scalify_cli.core import ScaledArray, scalify, unscale

SHARDS = jnp.float16([[1, -2, 3], [0.5, 0, -4], [2, 2, 1], [-1, 3, 8]])
names = pytest.mark.parametrize("name", COLLECTIVES, ids=str)


def check_equal(got, wanted):
    np.testing.assert_array_equal(np.float32(got), np.float32(wanted))


@names
@pytest.mark.parametrize("exponents", [(0, 0, 0, 0), (1, -1, 0, 2), (-33, -30, -36, -32)])
def test_shards_with_scales_of_their_own(name, exponents):
    f = COLLECTIVES[name]
    scales = jnp.float32([2.0**k for k in exponents])
    shards = ScaledArray.tree_unflatten(None, (SHARDS, scales))
    function = jax.vmap(lambda x: unscale(scalify(f)(x), jnp.float32), axis_name="i")
    true = SHARDS.astype(jnp.float32) * scales[:, None]
    check_equal(function(shards), jax.vmap(f, axis_name="i")(true))


@names
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("exponent", [-30, 4])
def test_inside_a_mesh(name, tracked, exponent):
    f = COLLECTIVES[name]
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def sharded(function):
        specs = ScaledArray.tree_unflatten(None, (P("i"), P()))
        whole = lambda x: unscale(function(x), jnp.float32)  # noqa: E731
        return jax.jit(
            jax.shard_map(whole, mesh=mesh, in_specs=(specs,), out_specs=P("i"), check_vma=tracked)
        )

    x = ScaledArray(SHARDS, jnp.float32(2.0**exponent))
    wanted = sharded(lambda x: f(unscale(x, jnp.float32)))(x)
    check_equal(sharded(scalify(f))(x), wanted)


def test_stacks_of_a_loop_differ_along_the_axes_that_they_did():
    """One is of what each shard has, one of what all have."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def f(x, rows):
        body = lambda carry, row: (carry, (jnp.expm1(row), jnp.expm1(x * row)))  # noqa: E731
        return jax.lax.scan(body, 0.0, rows)[1]

    def stacks(function):
        plain = lambda *xs: tuple(unscale(y, jnp.float32) for y in function(*xs))  # noqa: E731
        scaled = lambda spec: ScaledArray.tree_unflatten(None, (spec, P()))  # noqa: E731
        specs = (scaled(P("i")), scaled(P()))
        return jax.shard_map(plain, mesh=mesh, in_specs=specs, out_specs=(P(), P(None, "i")))

    x, rows = ScaledArray(SHARDS[0], 0.5), ScaledArray(SHARDS[2], 2.0**-3)
    wanted = stacks(lambda x, rows: f(unscale(x, jnp.float32), unscale(rows, jnp.float32)))
    for got, true in zip(jax.jit(stacks(scalify(f)))(x, rows), wanted(x, rows), strict=True):
        np.testing.assert_allclose(got, true, rtol=2.0**-9, atol=2.0**-9)


def test_a_sum_of_shards_is_divided_before_it_overflows():
    shards = ScaledArray(jnp.full((64, 2), 2048, jnp.float16), 2.0)
    axes = ScaledArray.tree_unflatten(None, (0, None))
    total = jax.vmap(scalify(lambda x: jax.lax.psum(x, "i")), (axes,), axis_name="i")(shards)
    check_equal(total.data, np.full((64, 2), 2.0**14))
    check_equal(total.scale, np.full(64, 16))


def ring(x, y):
    def step(_, carry):
        return jax.lax.ppermute(carry[0], "i", [(0, 0)]), carry[1] + carry[0] * y

    return jax.lax.fori_loop(0, 3, step, (x, x))[1]


def by_sign(x, y):
    return jax.lax.cond(jax.lax.axis_index("i") > 0, lambda: x, lambda: y * 2)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y: jax.lax.psum(x * y, "i") + x,
        lambda x, y: jax.lax.all_gather(jax.nn.gelu(x), "i", tiled=True) @ y.T,
        lambda x, y: jax.grad(lambda x: jax.lax.psum(jnp.sum(jnp.tanh(x) * y), "i"))(x),
        ring,
        by_sign,
    ],
    ids=["sum", "gather", "gradient", "loop", "branch"],
)
@pytest.mark.parametrize("tracked", [True, False])
def test_a_program_on_a_mesh(f, tracked):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    sharded = jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=tracked)
    x, y = (ScaledArray(SHARDS.astype(jnp.float32), 2.0**k) for k in (-20, 4))
    wanted = jax.jit(sharded)(unscale(x), unscale(y))
    got = unscale(jax.jit(scalify(sharded))(x, y))
    np.testing.assert_allclose(got, wanted, rtol=2.0**-20)


def test_a_shard_has_its_part_of_a_known_array():
    mesh = AbstractMesh((2,), ("i",), axis_types=(AxisType.Auto,))
    join = jax.shard_map(
        lambda x, y: jnp.concatenate([x, y]), mesh=mesh, in_specs=P("i"), out_specs=P("i")
    )
    scaled = scalify(lambda x: join(x, jnp.full_like(x, 3)))
    assert jax.eval_shape(scaled, ScaledArray(SHARDS, 2.0)).shape == (8, 3)


def test_shards_of_a_known_array_are_a_whole():
    mesh = AbstractMesh((2,), ("i",), axis_types=(AxisType.Auto,))
    known = jax.shard_map(
        jnp.ones_like, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False
    )
    scaled = scalify(lambda x: (x, known(x)))
    assert jax.eval_shape(scaled, ScaledArray(SHARDS, 2.0))[1].shape == (4, 3)


EQUAL_VALUES = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from scalify_cli.core import ScaledArray, scalify, unscale

mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
double = jax.shard_map(
    lambda x: lax.cond(lax.axis_index("i") > 0, lambda: x + x, lambda: 2 * x),
    mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False,
)
f = lambda x: lax.with_sharding_constraint(double(x), NamedSharding(mesh, P("i")))[::-1] * 1.0
print(*unscale(jax.jit(scalify(f))(ScaledArray(jnp.arange(4.0), 1.0))))
"""


def test_shards_that_split_the_same_values_otherwise_share_a_scale():
    """Afterwards data of one device meets the scale of another."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", EQUAL_VALUES]
    done = subprocess.run(command, env={**os.environ, **flags}, stdout=subprocess.PIPE, check=True)
    assert [float(x) for x in done.stdout.split()] == [6, 4, 2, 0]


INSIDE = """
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec as P
from scalify_cli.core import ScaledArray, scalify, unscale

mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,))
shards, whole = P("i"), P()
programs = [
    (lambda x: lax.psum(x, "i"), whole),
    (lambda x: lax.ppermute(x, "i", [(0, 1), (1, 0)]) + x * 2 + 1, shards),
    (lambda x: lax.fori_loop(0, 3, lambda i, y: y * 2, x), shards),
    (lambda x: lax.scan(lambda c, r: (c + lax.psum(r, "i"), None), 0.0 * x[0], x)[0] + x, shards),
    (lambda x: lax.psum(lax.cond(lax.axis_index("i") > 0, lambda: x * 2, lambda: x), "i"), whole),
    (lambda x: x + lax.pcast(jnp.zeros(2), "i", to="varying"), shards),
]
data = jnp.array([1.0, -2, 3, 0.5])
for f, out in programs:
    for spec, scales in ((shards, jnp.array([2.0**-20, 8])), (whole, jnp.array([0.25]))):
        inner = lambda x, s: unscale(scalify(f)(ScaledArray(x, s.reshape(()))))
        got = jax.shard_map(inner, mesh=mesh, in_specs=(shards, spec), out_specs=out)(data, scales)
        true = data * jnp.repeat(scales, 4 // scales.size)
        on_mesh = jax.shard_map(f, mesh=mesh, in_specs=shards, out_specs=out)
        assert (got == on_mesh(true)).all(), (got, on_mesh(true))
        if spec == whole:
            outer = unscale(scalify(on_mesh)(ScaledArray(data, 0.25)))
            assert (outer == on_mesh(true)).all(), (outer, on_mesh(true))
"""


def test_inside_of_a_shard_map_that_tracks_how_shards_differ():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", INSIDE], env={**os.environ, **flags}, check=True)


MESHES = """
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from scalify_cli.core import as_scaled, scalify, unscale

def masked(x, y):
    zeros = lax.pcast(jnp.zeros(2, y.dtype), "i", to="varying")
    return x * lax.scan(lambda c, row: (c + row, None), zeros, y)[0]

shards = [
    lambda x, y: x + x * x,
    lambda x, y: x - lax.pmean(x, "i"),
    lambda x, y: lax.scan(lambda c, row: (c * row, jnp.sin(c)), x[0], x)[1],
    lambda x, y: lax.cond(lax.axis_index("i") > 0, lambda: x * x, lambda: x + 1),
    masked,
]
wholes = [
    lambda x, y: jnp.where(x > 0, x, 1.0),
    lambda x, y: jnp.exp(x) * jnp.sum(y),
    lambda x, y: jax.nn.logsumexp(x, axis=-1),
    lambda x, y: lax.fori_loop(0, 3, lambda _, carry: carry * y, x),
]
for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(kind,))
    lie = NamedSharding(mesh, P("i"))
    x = jax.device_put(jnp.float16([[3, 1], [-2, 4], [1, 0.5], [2, -1]]), lie)
    y = 2 * x
    of_shards = lambda f: jax.shard_map(f, mesh=mesh, in_specs=P("i"), out_specs=P("i"))
    for f in (*map(of_shards, shards), *wholes):
        for dtype in (jnp.float16, jnp.float32):
            for call in (jax.jit(scalify(f)), scalify(f)):
                got = unscale(call(as_scaled(x.astype(dtype)), y.astype(dtype)), jnp.float32)
                wanted = f(x.astype(jnp.float32), y.astype(jnp.float32))
                np.testing.assert_allclose(got, wanted, rtol=2.0**-9)
"""


def test_meshes_that_jax_tracks_and_those_that_it_does_not():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", MESHES], env={**os.environ, **flags}, check=True)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_split_along_some_of_the_axes(wrap):
    mesh = jax.make_mesh((1, 1), ("i", "j"), axis_types=(AxisType.Auto,) * 2)
    summed = lambda x: jax.lax.psum(x * 2, "i")  # noqa: E731
    f = jax.shard_map(summed, mesh=mesh, in_specs=P("i"), out_specs=P(), axis_names={"i"})
    check_equal(unscale(wrap(scalify(f))(ScaledArray(SHARDS, 4.0))), SHARDS * 8)
