"""On a mesh of devices every program has the numbers and the scales that it has without one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, auto_axes
from jax.sharding import PartitionSpec as P

from scalify_cli.core import ScaledArray, scalify
from scalify_cli.precision import load_precision, with_precision

VALUES = np.random.default_rng(0)
X, W = (VALUES.normal(size=size).astype(np.float32) for size in ((8, 16), (16, 16)))
IDS = np.array([99, 1])


def normalised(x, w):
    centred = x - x.mean(-1, keepdims=True)
    return jnp.sum(centred / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5) @ w)


def layers(x, w):
    last, every = lax.scan(lambda c, _: (jnp.tanh(c @ w), jnp.where(c > 1, 0, c)), x, length=3)
    return jnp.mean(last**2) + jnp.sum(every)


def stacked_zeros(x, w):
    _, (zeros, every) = lax.scan(lambda c, _: (c, (jnp.zeros_like(c), c @ w)), x, length=2)
    return jnp.sum(jnp.where(every > 0, zeros, every))


def either(x, w):
    return lax.cond(x.sum() > 0, lambda x: jnp.sum(x @ w), lambda x: jnp.sum(x), x)


def elsewhere(x, w):
    """Partly on a mesh of another kind."""
    bent = auto_axes(lambda x: lax.scan(bend, x, length=2)[0], out_sharding=P("rows", None))
    return jnp.sum(bent(x) @ w)


def bend(x, _):
    return jnp.tanh(x) + x, None


def faint(x, w):
    """With a number that FP16 rounds to zero, after a gradient."""
    slope = jax.grad(lambda w: jnp.sum(jnp.square(x @ w)))(w)
    return jnp.sum(slope) * 1e-9


def weighted(x, w):
    weights = jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) / x.size
    return jnp.sum(jnp.where(x > 0, x, 0) * weights) + jnp.sum(w)


PROGRAMS = {
    "mlp": lambda x, w: jnp.mean(jnp.square(jax.nn.gelu(x @ w))),
    "softmax": lambda x, w: -jnp.mean(jax.nn.log_softmax(x @ w)[:, 0]),
    "where": lambda x, w: jnp.sum(jnp.where(x > 0, x, 0.0) @ w),
    "maximum": lambda x, w: jnp.sum(jnp.maximum(x @ w, 0.5)),
    "clip": lambda x, w: jnp.sum(jnp.clip(x @ w, -1, 1)),
    "known numbers": lambda x, w: jnp.sum((x + 1.5) * 2 - w[:1]),
    "remat": lambda x, w: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ w))(x)),
    "batched": lambda x, w: jnp.sum(jax.vmap(lambda row: jnp.tanh(row @ w))(x)),
    "norm": normalised,
    "scan": layers,
    "stacked zeros": stacked_zeros,
    "cond": either,
    "auto axes": elsewhere,
    "faint": faint,
    "weights": weighted,
    "filled": lambda x, w: jnp.sum(x.at[:, IDS].get(mode="fill", fill_value=3.0) @ w[:2]),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("recipe", [None, "fp8"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_mesh_changes_nothing(name, kind, recipe, dtype):
    f = with_precision(PROGRAMS[name], load_precision(recipe)) if recipe else PROGRAMS[name]
    update = jax.jit(scalify(jax.value_and_grad(f, (0, 1))))
    arguments = ScaledArray(X.astype(dtype) * 8, 1 / 8), ScaledArray(W.astype(dtype), 4.0)
    alone = update(*arguments)

    mesh = jax.make_mesh((1,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        places = [NamedSharding(mesh, P(*spec)) for spec in (("rows", None), (), (None, None), ())]
        leaves, structure = jax.tree.flatten(arguments)
        put = [jax.device_put(x, place) for x, place in zip(leaves, places, strict=True)]
        spread = update(*jax.tree.unflatten(structure, put))
    jax.tree.map(check_same, spread, alone)


def check_same(got, wanted):
    """But for the last bit of the largest: XLA joins other products and sums into one operation."""
    np.testing.assert_allclose(got, wanted, 0, 2.0**-23 * np.max(np.abs(wanted)))


@pytest.mark.parametrize("tracked", [True, False])
def test_shards_are_rounded_as_the_whole_is(tracked):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    rounded = with_precision(PROGRAMS["mlp"], load_precision("fp8"))
    sharded = jax.shard_map(
        lambda x, w: lax.pmean(rounded(x, w), "rows"),
        mesh=mesh,
        in_specs=(P("rows"), P()),
        out_specs=P(),
        check_vma=tracked,
    )
    got, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(X, W) for f in (sharded, rounded))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


EAGER = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from scalify_cli import as_scaled, observe, scalify, trace, unscale, with_precision
from scalify_cli.precision import load_precision

mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
x = jax.device_put(jnp.full((4, 8), 1.5), NamedSharding(mesh, P("rows")))
w = jax.device_put(jnp.full((8, 8), 0.5), NamedSharding(mesh, P()))
f = with_precision(
    lambda w, x: jnp.sum(jax.nn.softmax(jnp.where(x > 0, x, 1.0) @ w) * x), load_precision("fp8")
)
scaled = as_scaled((w, x))
assert f(w, x) == jax.jit(f)(w, x) == 6
assert observe(f)(w, x)[0] == jax.jit(observe(f))(w, x)[0] == 6
assert unscale(scalify(f)(*scaled)) == unscale(observe(scalify(f))(*scaled)[0]) == 6
assert trace(f, *scaled).rows
"""


def test_each_transform_sees_the_mesh_of_what_it_is_called_with():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", EAGER], env={**os.environ, **flags}, check=True)
